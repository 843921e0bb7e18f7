"""The silo's end of the coordinator's service: a channel, calls that are tried again, and refusals as sentences.

It sends what it is given. What may be given is decided in :mod:`client.private_history`.
"""

from __future__ import annotations

import ipaddress
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import grpc

from common.errors import ServingError
from common.proto import path_of

FIRST_PAUSE: Final = 0.05
"""Seconds before the second attempt, at most; each further pause may be twice as long."""

LONGEST_PAUSE: Final = 1.0
MESSAGE_BYTES: Final = 1 << 20

_OPTIONS: Final = (
    ("grpc.enable_retries", 0),  # tried again here, and without metadata that counts the attempts
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 60_000),
)


class CatalogueChanged(ServingError):
    """The service answers from a bundle with another catalogue than the silo's: fetch that bundle, then ask again."""


@dataclass(frozen=True)
class Certificates:
    """Paths, PEM: the silo's certificate (with the chain that leads to its authority), its key, the service's authority."""

    certificate: Path
    key: Path
    authority: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises :class:`ServingError` if a file cannot be read."""
        chain, key, authority = (_read(path) for path in (self.certificate, self.key, self.authority))
        return grpc.ssl_channel_credentials(root_certificates=authority, private_key=key, certificate_chain=chain)


class Service:
    """A connection to the service at ``target`` (``host:port``); a context manager. Threads may share it.

    Raises
    ------
    ServingError
        Without certificates, unless ``target`` is this machine: a question is for the coordinator's eyes only.
    """

    def __init__(self, target: str, certificates: Certificates | None = None) -> None:
        self.target = target
        if certificates is not None:
            self._channel = grpc.secure_channel(target, certificates.credentials(), options=_OPTIONS)
        elif _is_this_machine(target):
            self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        else:
            raise ServingError(f"{target}: give the silo's certificates: without TLS only a service on this machine is asked")
        self._methods: dict[str, Any] = {}

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, raw: bytes, deadline: float) -> bytes:
        """One message for one message, within ``deadline`` seconds.

        The same bytes are sent again when the service is away for a moment, or asks to be asked later: never a question that was
        made anew, which would show more of a history.

        Raises
        ------
        ServingError
            In one sentence.
        """
        known = self._methods.get(method)
        if known is None:
            known = self._methods[method] = self._channel.unary_unary(path_of(method))
        until, attempt = time.monotonic() + deadline, 0
        while True:
            try:
                answer: bytes = known(raw, timeout=max(0.001, until - time.monotonic()))
                return answer
            except grpc.RpcError as error:
                pause = pause_before_next(error, attempt)
                if pause is None or time.monotonic() + pause >= until:
                    raise self.sentence(error) from None
            time.sleep(pause)
            attempt += 1

    def stream(self, method: str, raw: bytes, deadline: float) -> Iterator[bytes]:
        """Messages as they come; :class:`grpc.RpcError` where they end early."""
        return iter(self._channel.unary_stream(path_of(method))(raw, timeout=deadline))

    def sentence(self, error: Any) -> ServingError:
        """A refusal for people."""
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return CatalogueChanged(f"{self.target}: {details}")
        if code is grpc.StatusCode.UNAVAILABLE:
            return ServingError(
                f"{self.target}: the service cannot be reached, or it does not know this silo's certificate ({details})"
            )
        if code is grpc.StatusCode.CANCELLED:
            return ServingError(f"{self.target}: the service has too much to do; ask again later")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ServingError(f"{self.target}: no answer in time; ask again later, or allow more time")
        return ServingError(f"{self.target}: {details or code.name}")


def pause_before_next(error: Any, attempt: int) -> float | None:
    """Seconds to wait before the next attempt, None if there should be none.

    Full jitter, so that silos that lost a service do not come back together.
    """
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        hints = [value for key, value in error.trailing_metadata() or () if key == "retry-after-ms"]
        return int(hints[0]) / 1000 if hints and str(hints[0]).isdecimal() else None
    if error.code() not in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
    ):  # cancelled by a server that is too busy to look
        return None
    return random.uniform(0.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt))


def _is_this_machine(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServingError(f"{path}: cannot be read ({error.strerror})") from None
