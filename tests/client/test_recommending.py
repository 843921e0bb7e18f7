"""What a silo sends to the coordinator's service, and what it makes of the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest

from client.private_history import Protection, protect
from client.recommending import RemoteRecommender
from client.remote import CatalogueChanged, Certificates, Service
from common.bundle.contents import Bundle
from common.errors import ServingError
from common.privacy.signing import SigningKey, create_key
from common.proto import SERVICE
from common.proto import recommender_pb2 as messages
from common.recommending import ANSWERS, PAD, SLOTS
from server.serving.tls import Admission
from simulations.bench.certificates import Authority
from tests.bundles import reference_scores, tiny_bundle, write_tiny
from tests.server.serving.conftest import with_tls
from tests.server.serving.running_service import Running

SHOWN = Protection(cap=SLOTS, buckets=(1,) * SLOTS, replacement=0.0)
"""Everything in its order: answers can be compared with those to the history itself."""


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return create_key(tmp_path_factory.mktemp("signer") / "signer.key")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, key: SigningKey) -> Bundle:
    path = tmp_path_factory.mktemp("bundles") / "shop.bundle"
    made = write_tiny(path, key, n_items=150)
    object.__setattr__(made, "path", path)
    return made


@pytest.fixture(scope="module")
def service(bundle: Bundle, key: SigningKey) -> Iterator[Running]:
    with Running(bundle.path, key.public_key) as running:  # type: ignore[attr-defined]
        yield running


Behaviour = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def stand_in(behaviour: Behaviour, port: int = 0) -> Iterator[int]:
    """Another server under the service's name, which does as it is told."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(behaviour) for name in ("Recommend", "RecommendBatch")}
    server = grpc.server(ThreadPoolExecutor(2), options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def good(bundle: Bundle) -> bytes:
    raw = messages.RecommendResponse(bundle=bytes(32), positions=range(ANSWERS), scores=[0.0] * ANSWERS)
    return bytes(raw.SerializeToString())


def test_the_best_items_that_were_not_seen_with_their_titles(service: Running, bundle: Bundle) -> None:
    history = [7, 1, 130, 7, 30]
    expected = reference_scores(bundle, history)
    expected[[*set(history), 99]] = -np.inf
    best = np.argsort(-expected)[:20]
    with RemoteRecommender(service.target, bundle, protection=SHOWN) as remote:
        got = remote.recommend(history, 20, without=[99])
    assert [item.position for item in got] == best.tolist()
    assert [item.title for item in got] == [bundle.catalogue.titles[i] for i in best]
    assert [item.id for item in got] == [bundle.catalogue.ids[i] for i in best]
    assert np.allclose([item.score for item in got], expected[best], atol=1e-4)


def test_what_is_sent_is_the_protected_history_and_nothing_else(bundle: Bundle) -> None:
    seen: list[tuple[bytes, list[tuple[str, Any]]]] = []

    def record(raw: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append((raw, [(key, value) for key, value in context.invocation_metadata()]))
        return good(bundle)

    protection, history = Protection(cap=6, buckets=(1, 2), replacement=0.0), list(range(100, 140))
    with (
        stand_in(record) as port,
        RemoteRecommender(f"127.0.0.1:{port}", bundle.catalogue, protection=protection, rng=Random(3)) as remote,
    ):
        remote.recommend(history)
        remote.recommend(history)
    rng = Random(3)
    for raw, metadata in seen:
        sent = messages.RecommendRequest.FromString(raw)
        assert sent.catalogue.hex() == bundle.catalogue_fingerprint
        assert tuple(sent.history) == protect(history, 150, protection, rng)
        assert set(sent.history) == {*history[-6:], PAD}
        assert [name for name, _ in metadata] == ["user-agent"]
    assert len({len(raw) for raw, _ in seen}) == 1


def test_seen_items_beyond_what_is_shown_are_taken_out_here(service: Running, bundle: Bundle) -> None:
    history = list(range(60))
    with RemoteRecommender(service.target, bundle, protection=Protection(cap=2, replacement=0.0)) as remote:
        got = remote.recommend(history, 100)
        assert not {item.position for item in got} & set(history)
        assert len(got) >= 100 - 60
        assert remote.recommend([*range(150)], 10) == []


def test_many_are_answered_like_each(service: Running, bundle: Bundle) -> None:
    histories = [[place % 150, (3 * place) % 150] for place in range(130)] + [[]]
    with RemoteRecommender(service.target, bundle, protection=SHOWN) as remote:
        together = remote.recommend_many(histories, 5)
        for place in (0, 63, 64, 129, 130):
            alone = remote.recommend(histories[place], 5)
            assert [item.position for item in together[place]] == [item.position for item in alone]
        assert remote.recommend_many([]) == []


def test_impossible_questions_are_one_sentence_and_are_not_sent(bundle: Bundle) -> None:
    with RemoteRecommender("localhost:9", bundle) as remote:
        for k in (0, 101):
            with pytest.raises(ServingError, match="ask for 1 to 100"):
                remote.recommend([], k)
        with pytest.raises(ServingError, match="not in the catalogue of 150 items") as caught:
            remote.recommend([149, 150])
        assert "is not in the catalogue" in str(caught.value)


def test_another_catalogue_says_what_to_fetch(service: Running, bundle: Bundle) -> None:
    other = tiny_bundle(n_items=150, prefix="x")
    with RemoteRecommender(service.target, other) as remote, pytest.raises(CatalogueChanged, match=bundle.digest):
        remote.recommend([1])


def test_a_service_that_is_away_for_a_moment_gets_the_same_bytes_again(bundle: Bundle) -> None:
    sent: list[bytes] = []

    def stumble(raw: bytes, context: grpc.ServicerContext) -> bytes:
        sent.append(raw)
        if len(sent) < 4:
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        return good(bundle)

    with stand_in(stumble) as port, RemoteRecommender(f"127.0.0.1:{port}", bundle, deadline=10.0) as remote:
        assert len(remote.recommend([1, 2, 3], 5)) == 5
    assert len(sent) == 4
    assert len(set(sent)) == 1


def test_a_service_that_starts_late_is_waited_for(bundle: Bundle) -> None:
    with stand_in(lambda raw, context: good(bundle)) as port:
        pass
    with RemoteRecommender(f"127.0.0.1:{port}", bundle, deadline=15.0) as remote, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(remote.recommend, [1], 5)
        time.sleep(0.5)
        with stand_in(lambda raw, context: good(bundle), port):
            assert len(asked.result(20)) == 5


def test_a_busy_service_is_asked_again_when_it_says(bundle: Bundle) -> None:
    times: list[float] = []

    def busy(raw: bytes, context: grpc.ServicerContext) -> bytes:
        times.append(time.monotonic())
        if len(times) == 1:
            context.set_trailing_metadata((("retry-after-ms", "300"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "try again in 0.30 s")
        return good(bundle)

    with stand_in(busy) as port, RemoteRecommender(f"127.0.0.1:{port}", bundle, deadline=5.0) as remote:
        assert remote.recommend([1], 5)
    assert 0.29 < times[1] - times[0] < 3.0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "as the service said it"),
        (grpc.StatusCode.PERMISSION_DENIED, "as the service said it"),
        (grpc.StatusCode.INTERNAL, "as the service said it"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "as the service said it"),
        (grpc.StatusCode.UNAVAILABLE, "cannot be reached"),
    ],
)
def test_a_refusal_is_one_sentence_within_the_deadline(bundle: Bundle, code: grpc.StatusCode, said: str) -> None:
    asked: list[bytes] = []

    def refuse(raw: bytes, context: grpc.ServicerContext) -> bytes:
        asked.append(raw)
        context.abort(code, "as the service said it")
        raise AssertionError

    with stand_in(refuse) as port, RemoteRecommender(f"127.0.0.1:{port}", bundle, deadline=0.5) as remote:
        began = time.monotonic()
        with pytest.raises(ServingError, match=said):
            remote.recommend([1])
        assert time.monotonic() - began < 3.0
    assert (len(asked) > 1) == (code is grpc.StatusCode.UNAVAILABLE)


def test_no_answer_in_time_is_one_sentence(bundle: Bundle) -> None:
    def sleep(raw: bytes, context: grpc.ServicerContext) -> bytes:
        time.sleep(1.0)
        return good(bundle)

    with (
        stand_in(sleep) as port,
        RemoteRecommender(f"127.0.0.1:{port}", bundle, deadline=0.2) as remote,
        pytest.raises(ServingError, match="no answer in time"),
    ):
        remote.recommend([1])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xff",
        messages.RecommendResponse(positions=[1], scores=[1.0]).SerializeToString(),
        messages.RecommendResponse(positions=[150] * ANSWERS, scores=[0.0] * ANSWERS).SerializeToString(),
        messages.RecommendResponse(positions=[1] * ANSWERS).SerializeToString(),
    ],
    ids=["empty", "no message", "short", "outside", "no scores"],
)
def test_an_answer_that_is_none_is_not_believed(bundle: Bundle, raw: bytes) -> None:
    with (
        stand_in(lambda *_: raw) as port,
        RemoteRecommender(f"127.0.0.1:{port}", bundle) as remote,
        pytest.raises(ServingError, match="service"),
    ):
        remote.recommend([1])


def test_without_certificates_only_this_machine_is_asked(bundle: Bundle, tmp_path: Path) -> None:
    for target in ("shop.example:50051", "192.168.0.7:50051", "0.0.0.0:1"):
        with pytest.raises(ServingError, match="give the silo's certificates"):
            RemoteRecommender(target, bundle)
    with pytest.raises(ServingError, match="cannot be read"):
        RemoteRecommender("localhost:1", bundle, Certificates(tmp_path / "none.pem", tmp_path / "k", tmp_path / "a"))
    Service("[::1]:50051").close()


def test_over_tls_with_the_silos_certificate(bundle: Bundle, key: SigningKey, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    endpoint = with_tls(authority, authority.sign("service", server=True), Admission())
    north, stranger = authority.sign("north"), Authority(tmp_path, "other").sign("stranger")
    with Running(bundle.path, key.public_key, endpoint) as running:  # type: ignore[attr-defined]
        certificates = Certificates(north.certificate, north.key, authority.certificate)
        with RemoteRecommender(running.target, bundle, certificates) as remote:
            assert len(remote.recommend([1, 2], 10)) == 10
        foreign = Certificates(stranger.certificate, stranger.key, authority.certificate)
        with (
            RemoteRecommender(running.target, bundle, foreign, deadline=0.5) as remote,
            pytest.raises(ServingError, match=r"does not know this silo's certificate|no answer in time"),
        ):
            remote.recommend([1, 2])
