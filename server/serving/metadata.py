"""What may come beside a call's message: what gRPC itself needs, and nothing by which a person could be known again.

Proxies, tracing and web frameworks like to add headers: a user's id, a cookie, a trace's id, a browser's address. A call with one
of them is refused, so that whoever sets up such a thing notices at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from server.serving.refusal import malformed

_VERSION = r"\d{1,3}(?:\.\d{1,4}){1,3}(?:-(?:dev|pre\d?))?"
_PLATFORM = r"\((?:linux|osx|windows|freebsd|android|ios); chttp2\)"
_AGENTS = "|".join(
    (
        rf"(?:grpc-(?:python|python-asyncio|c\+\+|ruby|csharp|php|objc)/{_VERSION} )?grpc-c/{_VERSION} {_PLATFORM}",
        rf"grpc-(?:go|java-netty|java-okhttp|java-cronet|node-js|dart|swift|kotlin)/{_VERSION}",
        rf"tonic/{_VERSION}",
        rf"grpc-dotnet/{_VERSION}(?: \(\.NET {_VERSION}; CLR {_VERSION}; net{_VERSION}; [a-z]{{3,8}}; [a-z0-9]{{3,8}}\))?",
    )
)

ALLOWED: Final = {
    "user-agent": re.compile(_AGENTS),
    "accept-encoding": re.compile(r"[a-z, ]{0,40}"),
    "grpc-accept-encoding": re.compile(r"[a-z, ]{0,40}"),
    "grpc-encoding": re.compile(r"identity"),
    "grpc-timeout": re.compile(r"\d{1,8}[HMSmun]"),
    "grpc-previous-rpc-attempts": re.compile(r"\d"),
    "content-type": re.compile(r"application/grpc(?:\+proto)?"),
    "te": re.compile(r"trailers"),
}
"""Keys of metadata, and what their values may be. ``user-agent`` is a gRPC library's own: no words of an application in front."""


def check_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
    """Refuse a call that carries more than gRPC needs. The key is named in the refusal if it is a usual one, its value never."""
    for key, value in metadata or ():
        if not _allowed(key, value):
            if key in ALLOWED:
                raise malformed(f"metadata {key!r} may hold only what a gRPC library itself writes there; remove what was added")
            raise malformed("the call carries metadata that gRPC does not need; send none, and have proxies add no headers")


def _allowed(key: str, value: str | bytes) -> bool:
    form = ALLOWED.get(key)
    return form is not None and isinstance(value, str) and form.fullmatch(value) is not None
