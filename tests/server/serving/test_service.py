"""What the service answers over a real socket, what it refuses, and what it keeps to itself."""

from __future__ import annotations

import hashlib
import logging
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client import generate_latest

from common.bundle.card import Card
from common.bundle.contents import Bundle
from common.privacy.signing import SigningKey
from common.proto import SERVICE, path_of
from common.proto import recommender_pb2 as messages
from common.recommending import ANSWERS, PAD, SLOTS
from server.serving.limits import Limits
from tests.bundles import reference_scores, write_tiny
from tests.server.serving.running_service import InThread, Running, question, raw_call, refusal


def answer(raw: bytes) -> messages.RecommendResponse:
    return messages.RecommendResponse.FromString(raw)


def test_an_answer_is_the_hundred_best_by_a_computation_of_its_own(channel: grpc.Channel, bundle: Bundle) -> None:
    for history in ((), (3,), (7, 1, 7), tuple(range(20, 20 + SLOTS))):
        got = answer(raw_call(channel)(question(bundle.catalogue_fingerprint, history), timeout=5))
        expected = reference_scores(bundle, history)
        best = np.argsort(-expected, kind="stable")[:ANSWERS]
        assert got.bundle.hex() == bundle.digest
        assert np.allclose(got.scores, expected[best], atol=1e-4)
        assert np.allclose(got.scores, expected[list(got.positions)], atol=1e-4)
        assert len(set(got.positions)) == ANSWERS


def test_a_batch_is_its_questions_one_by_one(channel: grpc.Channel, bundle: Bundle) -> None:
    histories = [(place, (place * 7) % 150, 5)[: place % 4] for place in range(64)]
    slots = [slot for history in histories for slot in [*history, *[PAD] * (SLOTS - len(history))]]
    fingerprint = bytes.fromhex(bundle.catalogue_fingerprint)
    raw = messages.RecommendBatchRequest(catalogue=fingerprint, histories=slots).SerializeToString()
    got = messages.RecommendBatchResponse.FromString(raw_call(channel, "RecommendBatch")(raw, timeout=5))
    assert got.bundle.hex() == bundle.digest
    positions, scores = (np.array(part).reshape(64, ANSWERS) for part in (got.positions, got.scores))
    for row, history in enumerate(histories):
        one = answer(raw_call(channel)(question(bundle.catalogue_fingerprint, history), timeout=5))
        assert np.allclose(one.scores, scores[row], atol=1e-5)
        assert (np.array(one.positions) == positions[row]).mean() > 0.97  # ties may swap where batches round differently


def test_every_question_and_every_answer_has_one_size(channel: grpc.Channel, bundle: Bundle) -> None:
    asked = [question(bundle.catalogue_fingerprint, history) for history in ((), (0,), (149,), tuple(range(SLOTS)), (0,) * SLOTS)]
    assert len({len(raw) for raw in asked}) == 1
    assert len({len(raw_call(channel)(raw, timeout=5)) for raw in asked}) == 1


def test_a_small_catalogue_is_padded_to_the_same_size(
    tmp_path: Path, key: SigningKey, bundle: Bundle, channel: grpc.Channel
) -> None:
    small = write_tiny(tmp_path / "small.bundle", key, n_items=40)
    with Running(tmp_path / "small.bundle", key.public_key) as running, grpc.insecure_channel(running.target) as other:
        raw = raw_call(other)(question(small.catalogue_fingerprint, (4,)), timeout=5)
    assert len(raw) == len(raw_call(channel)(question(bundle.catalogue_fingerprint), timeout=5))
    got = answer(raw)
    assert sorted(got.positions[:40]) == list(range(40))
    assert list(got.positions[40:]) == [PAD] * 60
    assert list(got.scores[40:]) == [-np.inf] * 60


@pytest.mark.parametrize("method", ["Recommend", "RecommendBatch", "GetCard", "GetBundle"])
def test_more_than_a_question_is_refused_by_every_method(channel: grpc.Channel, method: str) -> None:
    call = (
        raw_call(channel, method)
        if method != "GetBundle"
        else (lambda *a, **k: [*channel.unary_stream(path_of(method))(*a, **k)])
    )
    code, said = refusal(lambda: call(b"\x7a\x07user 42", timeout=5))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "fields that the schema does not know" in said
    for metadata in (("x-user-id", "42"), ("cookie", "user=42"), ("traceparent", "00-42"), ("user-bin", b"42")):
        code, said = refusal(lambda metadata=metadata: call(b"", timeout=5, metadata=(metadata,)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "metadata that gRPC does not need" in said
        assert "42" not in said


def test_an_application_that_names_itself_is_refused(service: Running, bundle: Bundle) -> None:
    with grpc.insecure_channel(service.target, options=(("grpc.primary_user_agent", "shop/user42"),)) as channel:
        code, said = refusal(lambda: raw_call(channel)(question(bundle.catalogue_fingerprint), timeout=5))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "'user-agent'" in said


def test_a_question_in_another_catalogue_is_told_which_bundle_to_fetch(channel: grpc.Channel, bundle: Bundle) -> None:
    code, said = refusal(lambda: raw_call(channel)(question("ab" * 32, (1,)), timeout=5))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert bundle.digest in said
    assert "GetBundle" in said


def test_an_item_outside_the_catalogue_is_refused(channel: grpc.Channel, bundle: Bundle) -> None:
    code, said = refusal(lambda: raw_call(channel)(question(bundle.catalogue_fingerprint, (150,)), timeout=5))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "has 150 items" in said


def test_messages_that_are_too_large_or_compressed_are_refused(channel: grpc.Channel, bundle: Bundle) -> None:
    code, _ = refusal(lambda: raw_call(channel)(bytes(Limits().message_bytes + 1), timeout=5))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    asked = question(bundle.catalogue_fingerprint)
    code, _ = refusal(lambda: raw_call(channel)(asked, timeout=5, compression=grpc.Compression.Gzip))
    assert code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL)


def test_the_card_is_the_bundles(channel: grpc.Channel, bundle: Bundle) -> None:
    got = messages.GetCardResponse.FromString(raw_call(channel, "GetCard")(b"", timeout=5))
    assert Card.from_json(got.card.encode()) == bundle.card
    assert (got.bundle.hex(), got.catalogue.hex()) == (bundle.digest, bundle.catalogue_fingerprint)


def test_the_bundle_comes_as_its_file_from_any_place_on(channel: grpc.Channel, bundle: Bundle, bundle_file: Path) -> None:
    content = bundle_file.read_bytes()
    get = channel.unary_stream(path_of("GetBundle"), response_deserializer=messages.GetBundleResponse.FromString)
    for digest, offset in ((b"", 0), (bytes.fromhex(bundle.digest), 0), (b"", 1_000), (b"", len(content))):
        first, *rest = get(messages.GetBundleRequest(digest=digest, offset=offset).SerializeToString(), timeout=5)
        assert (first.header.digest.hex(), first.header.size) == (bundle.digest, len(content))
        assert b"".join(part.chunk for part in rest) == content[offset:]
    for digest, offset, expected in (
        (b"", len(content) + 1, grpc.StatusCode.OUT_OF_RANGE),
        (hashlib.sha256(b"another").digest(), 0, grpc.StatusCode.FAILED_PRECONDITION),
    ):
        raw = messages.GetBundleRequest(digest=digest, offset=offset).SerializeToString()
        assert refusal(lambda raw=raw: [*get(raw, timeout=5)])[0] is expected


def test_health_and_reflection_are_served(channel: grpc.Channel) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        assert (
            health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status == health_pb2.HealthCheckResponse.SERVING
        )
    assert next(health.Watch(health_pb2.HealthCheckRequest(), timeout=5)).status == health_pb2.HealthCheckResponse.SERVING
    code, said = refusal(lambda: health.Check(health_pb2.HealthCheckRequest(service="user42"), timeout=5))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "42" not in said
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    described = database.FindFileContainingSymbol(SERVICE)
    assert [method.name for method in described.service[0].method] == ["Recommend", "RecommendBatch", "GetBundle", "GetCard"]


def test_health_and_reflection_stand_behind_the_same_gate(channel: grpc.Channel) -> None:
    for path, malformed in (("/grpc.health.v1.Health/Check", b"\x12\x0242"), ("/grpc.health.v1.Health/Check", b"\xff")):
        assert refusal(lambda p=path, m=malformed: raw_call(channel, p)(m, timeout=5))[0] is grpc.StatusCode.INVALID_ARGUMENT
    marked = {"timeout": 5, "metadata": (("x-user-id", "42"),)}
    assert (
        refusal(lambda: raw_call(channel, "/grpc.health.v1.Health/Check")(b"", **marked))[0] is grpc.StatusCode.INVALID_ARGUMENT
    )
    info = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    assert refusal(lambda: [*info(iter([b"\xff"]), timeout=5)])[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(lambda: [*info(iter([b""]), **marked)])[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_a_silo_that_asks_too_fast_is_told_when_to_come_back(bundle_file: Path, bundle: Bundle, key: SigningKey) -> None:
    limits = Limits(rate=50.0, burst=100)
    with Running(bundle_file, key.public_key, limits=limits) as running, grpc.insecure_channel(running.target) as channel:
        ask, raw = raw_call(channel), question(bundle.catalogue_fingerprint)
        with pytest.raises(grpc.RpcError) as caught:
            all(ask(raw, timeout=5) for _ in range(1_000))
        assert running.metric("silorec_questions_total", silo="local") >= 100
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "50 questions a second; try again in" in caught.value.details()
    hints = dict(caught.value.trailing_metadata())
    assert 0 < int(hints["retry-after-ms"]) <= 21


def test_nothing_of_a_question_is_logged_or_counted(
    service: Running, channel: grpc.Channel, bundle: Bundle, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Marked histories, fields, metadata, names, broken bytes; then every log record, both streams and all metrics are read."""
    caplog.set_level(logging.DEBUG)
    mark, items = "MARK31337", (131, 137, 149)
    raw = question(bundle.catalogue_fingerprint, items)
    raw_call(channel)(raw, timeout=5)
    for call in (
        lambda: raw_call(channel)(raw, timeout=5, metadata=(("x-user-id", mark), (mark.lower(), "1"))),
        lambda: raw_call(channel)(raw + b"\x7a\x09" + mark.encode(), timeout=5),
        lambda: raw_call(channel)(mark.encode(), timeout=5),
        lambda: raw_call(channel)(question(hashlib.sha256(mark.encode()).hexdigest(), items), timeout=5),
        lambda: raw_call(channel)(question(bundle.catalogue_fingerprint, (31337,)), timeout=5),
        lambda: raw_call(channel, f"/{SERVICE}/{mark}")(raw, timeout=5),
        lambda: raw_call(channel, "/grpc.health.v1.Health/Check")(b"\x0a\x09" + mark.encode(), timeout=5),
    ):
        refusal(call)
    port, close = service.counts.open_port(0)
    try:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    finally:
        close()
    assert page == generate_latest(service.counts.registry).decode()
    assert 'silorec_calls_total{method="Recommend",silo="local",status="OK"}' in page
    out, err = capfd.readouterr()
    records = "\n".join(record.getMessage() + (record.exc_text or "") for record in caplog.records)
    for text in (page, out, err, records):
        assert mark.lower() not in text.lower()
        assert "31337" not in text
        assert "131, 137" not in text
    labels = {label for metric in service.counts.registry.collect() for sample in metric.samples for label in sample.labels}
    assert labels == {"silo", "method", "status"}


def test_a_bug_is_logged_by_its_kind_and_place_alone(
    bundle_file: Path, bundle: Bundle, key: SigningKey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(histories: object, *_: object) -> None:
        raise ValueError(f"cannot rank {histories}")

    with (
        Running(bundle_file, key.public_key, open_engine=InThread) as running,
        grpc.insecure_channel(running.target) as channel,
    ):
        monkeypatch.setattr(running.live.engine, "top", broken)
        code, said = refusal(lambda: raw_call(channel)(question(bundle.catalogue_fingerprint, (131, 137)), timeout=5))
        assert code is grpc.StatusCode.INTERNAL
        monkeypatch.undo()
        assert raw_call(channel)(question(bundle.catalogue_fingerprint, (131, 137)), timeout=5)
    assert "ValueError" in caplog.text
    assert "131" not in caplog.text + said
