"""Fetching the bundle from which the coordinator's service answers: going on where a download broke off, and believing nothing.

What arrives is a file until its signature, its signer and every hash hold; only then it takes the place of the one before.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from filelock import FileLock
from google.protobuf.message import DecodeError

from client.remote import Service, pause_before_next
from common.bundle.contents import Bundle
from common.bundle.files import read_bundle, read_manifest
from common.durable import sync_folder
from common.errors import BundleError, ServingError
from common.proto import recommender_pb2 as messages

MAX_BYTES: Final = 2**32 - 1
ATTEMPTS: Final = 8
"""Streams that may break off without a byte having come before it is given up."""

CALL_SECONDS: Final = 600.0


def fetch_bundle(service: Service, path: Path, trusted: Collection[str], *, max_bytes: int = MAX_BYTES) -> Bundle:
    """The bundle that the service answers from, verified, as the file ``path``.

    A download that broke off leaves ``.NAME.<digest>.part`` beside it, and goes on there when it is called again. Nothing is
    fetched where ``path`` is that bundle already.

    Parameters
    ----------
    trusted:
        Ed25519 public keys (hex) of which one must have signed it.

    Raises
    ------
    ServingError
        If the service cannot be reached or sends something else.
    BundleError
        If what came is not what a trusted signer made; it was deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        try:
            return _fetched(service, path, trusted, max_bytes)
        except OSError as error:
            raise ServingError(f"{path}: the bundle cannot be written ({error.strerror})") from None


def _fetched(service: Service, path: Path, trusted: Collection[str], max_bytes: int) -> Bundle:
    failures = 0
    while True:
        part = _part_of(path)
        had = 0 if part is None else part.have
        try:
            whole = _go_on(service, path, part, max_bytes)
        except grpc.RpcError as error:
            again: Any = error
            if part is not None and again.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.OUT_OF_RANGE):
                part.file.unlink()  # of a bundle that is not served any more
                continue
            now = _part_of(path)
            failures = 0 if now is not None and now.have > had else failures + 1
            pause = pause_before_next(error, failures)
            if pause is None and again.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise service.sentence(error) from None
            if failures >= ATTEMPTS:
                raise service.sentence(error) from None
            time.sleep(pause or 0.0)
            continue
        return _put(whole, path, trusted)


@dataclass(frozen=True)
class _Part:
    """A file that holds the first ``have`` bytes of bundle ``digest`` (hex)."""

    file: Path
    digest: str
    have: int


def _part_of(path: Path) -> _Part | None:
    """What is left of an earlier download to ``path``; of several the longest."""
    name = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{64}})\.part")
    found = [
        _Part(file, matched[1], file.stat().st_size)
        for file in path.parent.glob(f".{path.name}.*.part")
        if (matched := name.fullmatch(file.name))
    ]
    return max(found, key=lambda part: part.have, default=None)


def _go_on(service: Service, path: Path, part: _Part | None, max_bytes: int) -> tuple[Path, str]:
    """A file that has all bytes of the bundle with the digest (hex) beside it: ``path`` itself if it is that one already.

    Raises :class:`grpc.RpcError` when the stream ends early; what came is kept.
    """
    offset = 0 if part is None else part.have
    request = messages.GetBundleRequest(digest=b"" if part is None else bytes.fromhex(part.digest), offset=offset)
    replies = _replies(service, request.SerializeToString())
    header = next(replies, messages.GetBundleResponse()).header
    digest, size = header.digest.hex(), int(header.size)
    if len(header.digest) != 32 or (part is not None and digest != part.digest) or not offset <= size:
        raise ServingError(f"{service.target}: what it sends is not the beginning of a bundle; is it the coordinator's service?")
    if size > max_bytes:
        raise ServingError(f"{service.target}: the bundle has {size:,} bytes, more than the {max_bytes:,} that are allowed")
    if part is None and _is_there(path, digest):
        return path, digest
    file = path.with_name(f".{path.name}.{digest}.part")
    with file.open("ab") as out:
        for reply in replies:
            if offset + len(reply.chunk) > size or not reply.chunk:
                raise ServingError(f"{service.target}: it sends something else than the {size:,} bytes it spoke of")
            out.write(reply.chunk)
            offset += len(reply.chunk)
        out.flush()
        os.fsync(out.fileno())
    if offset != size:
        raise ServingError(f"{service.target}: the bundle ended after {offset:,} of {size:,} bytes")
    return file, digest


def _replies(service: Service, raw: bytes) -> Iterator[Any]:
    for message in service.stream("GetBundle", raw, CALL_SECONDS):
        try:
            yield messages.GetBundleResponse.FromString(message)
        except DecodeError:
            raise ServingError(f"{service.target}: what it sends is not a bundle; is it the coordinator's service?") from None


def _is_there(path: Path, digest: str) -> bool:
    try:
        return path.is_file() and read_manifest(path)[0].digest == digest
    except BundleError:
        return False


def _put(whole: tuple[Path, str], path: Path, trusted: Collection[str]) -> Bundle:
    """Verify, then let it take its place."""
    file, digest = whole
    try:
        bundle = read_bundle(file, trusted)
        if bundle.digest != digest:
            raise BundleError(f"{path}: the service sent another bundle than it named; nothing was kept")
    except BundleError:
        if file != path:
            file.unlink()
        raise
    if file != path:
        os.replace(file, path)
        sync_folder(path.parent)
    return bundle
