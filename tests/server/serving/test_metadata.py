"""Beside a question comes what gRPC needs, and nothing else."""

from __future__ import annotations

import grpc
import pytest

from server.serving.metadata import ALLOWED, check_metadata
from server.serving.refusal import Refused

AGENTS = [
    "grpc-python/1.85.1 grpc-c/53.0.0 (linux; chttp2)",
    "grpc-python-asyncio/1.85.1 grpc-c/53.0.0 (osx; chttp2)",
    "grpc-c++/1.62.1 grpc-c/39.0.0 (windows; chttp2)",
    "grpc-go/1.64.0",
    "grpc-go/1.65.0-dev",
    "grpc-java-netty/1.63.0",
    "grpc-node-js/1.10.8",
    "grpc-dotnet/2.63.0 (.NET 8.0.5; CLR 8.0.5; net8.0; linux; x64)",
    "tonic/0.11.0",
]


@pytest.mark.parametrize("agent", AGENTS)
def test_what_grpc_libraries_send_is_let_through(agent: str) -> None:
    check_metadata((("user-agent", agent), ("grpc-accept-encoding", "identity, deflate, gzip"), ("te", "trailers")))


@pytest.mark.parametrize(
    "key",
    [
        "x-user-id", "cookie", "authorization", "traceparent", "tracestate", "x-request-id", "x-forwarded-for", "forwarded",
        "via", "baggage", "b3", "x-b3-traceid", "x-client-data", "grpc-trace-bin", "grpc-tags-bin", "grpc-user", "referer",
        "from", "date", "x-envoy-attempt-count", "sentry-trace", "note-bin",
    ],
)  # fmt: skip
def test_anything_else_is_refused(key: str) -> None:
    value = b"\1" if key.endswith("-bin") else "1"
    with pytest.raises(Refused, match="metadata that gRPC does not need") as caught:
        check_metadata((("user-agent", AGENTS[0]), (key, value)))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("user-agent", "shop/7 grpc-python/1.85.1 grpc-c/53.0.0 (linux; chttp2)"),
        ("user-agent", "grpc-go/1.64.0 user42"),
        ("user-agent", "grpc-go/1.123456789"),
        ("user-agent", "Mozilla/5.0"),
        ("grpc-previous-rpc-attempts", "42424242"),
        ("grpc-encoding", "user42"),
        ("content-type", "application/grpc; user=42"),
        ("te", b"trailers"),
    ],
)
def test_a_usual_key_with_an_unusual_value_is_refused_without_repeating_it(key: str, value: str | bytes) -> None:
    with pytest.raises(Refused, match=repr(key)) as caught:
        check_metadata(((key, value),))
    assert "42" not in caught.value.sentence


def test_no_allowed_value_has_room_for_an_identifier() -> None:
    """128 bits as hexadecimal, a UUID, an e-mail address, ten digits."""
    for key, form in ALLOWED.items():
        for mark in ("9f86d081884c7d659a2feaa0c55ad015", "9f86d081-884c-7d65-9a2f-eaa0c55ad015", "a@b.example", "4242424242"):
            assert form.fullmatch(mark) is None, key
    assert all(key == key.lower() for key in ALLOWED)
