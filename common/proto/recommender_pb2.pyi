from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecommendRequest(_message.Message):
    __slots__ = ("catalogue", "history")
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    catalogue: bytes
    history: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, catalogue: _Optional[bytes] = ..., history: _Optional[_Iterable[int]] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("bundle", "positions", "scores")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    bundle: bytes
    positions: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, bundle: _Optional[bytes] = ..., positions: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ...) -> None: ...

class RecommendBatchRequest(_message.Message):
    __slots__ = ("catalogue", "histories")
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    HISTORIES_FIELD_NUMBER: _ClassVar[int]
    catalogue: bytes
    histories: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, catalogue: _Optional[bytes] = ..., histories: _Optional[_Iterable[int]] = ...) -> None: ...

class RecommendBatchResponse(_message.Message):
    __slots__ = ("bundle", "positions", "scores")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    bundle: bytes
    positions: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, bundle: _Optional[bytes] = ..., positions: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ...) -> None: ...

class GetBundleRequest(_message.Message):
    __slots__ = ("digest", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    offset: int
    def __init__(self, digest: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class GetBundleResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: BundleHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[BundleHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class BundleHeader(_message.Message):
    __slots__ = ("digest", "size")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    size: int
    def __init__(self, digest: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class GetCardRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCardResponse(_message.Message):
    __slots__ = ("bundle", "catalogue", "card")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    bundle: bytes
    catalogue: bytes
    card: str
    def __init__(self, bundle: _Optional[bytes] = ..., catalogue: _Optional[bytes] = ..., card: _Optional[str] = ...) -> None: ...
