"""What the gateway answers: the engine's answers as JSON, and sentences where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from client.gateway.app import Settings
from client.gateway.models import BATCH_MOST
from common.engine import Engine, Request
from common.privacy.signing import SigningKey, create_key, fingerprint
from common.serving import Live, warmed
from tests.bundles import reference_scores, write_tiny
from tests.client.gateway_server import client, opened

TOKEN = "a token of many characters"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return create_key(tmp_path_factory.mktemp("keys") / "signer.key")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, key: SigningKey) -> Live:
    path = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    write_tiny(path, key)
    return opened(path, key.public_key)


@pytest.fixture(scope="module")
def asking(live: Live) -> Iterator[httpx.Client]:
    with client(live) as found:
        yield found


def ids(answer: Any) -> list[str]:
    return [item["id"] for item in answer["recommendations"]]


def test_recommendations_are_those_of_the_formula(asking: httpx.Client, live: Live) -> None:
    bundle = live.engine.bundle
    reply = asking.post("/v1/recommend", json={"history": ["i3", bundle.catalogue.titles[7]], "k": 5})
    scores = reference_scores(bundle, [3, 7])
    scores[[3, 7]] = -np.inf
    best = np.argsort(-scores)[:5]
    answer = reply.json()
    assert reply.status_code == 200
    assert ids(answer) == [f"i{i}" for i in best]
    assert [item["score"] for item in answer["recommendations"]] == pytest.approx(scores[best].tolist(), abs=1e-5)
    assert [(item["id"], item["title"]) for item in answer["history"]] == [(f"i{i}", bundle.catalogue.titles[i]) for i in (3, 7)]
    assert answer["bundle"] == reply.headers["Silorec-Bundle"] == bundle.digest


def test_every_wish_reaches_the_engine(asking: httpx.Client, live: Live) -> None:
    engine = live.engine
    wishes = {
        "history": ["i1", "i2", "i3"], "k": 4, "exclude_seen": False, "allow": [f"i{i}" for i in range(30)], "deny": ["i5"],
        "categories": ["comedy", "drama"], "diversity": 0.4, "explain": True,
        "boost": {"i9": 1.5, engine.bundle.catalogue.titles[12]: -2},
    }  # fmt: skip
    request = Request(
        history=(1, 2, 3), k=4, exclude_seen=False, allow=frozenset(range(30)), deny=frozenset({5}),
        categories=frozenset({"comedy", "drama"}), diversity=0.4, boost={9: 1.5, 12: -2.0}, explain=True,
    )  # fmt: skip
    expected = engine.recommend(request)
    found = asking.post("/v1/recommend", json=wishes).json()["recommendations"]
    for item, recommended in zip(found, expected, strict=True):
        assert item["id"] == recommended.id
        assert item["categories"] == list(engine.bundle.catalogue.categories[recommended.position])
        assert item["year"] == engine.bundle.catalogue.fields["year"][recommended.position]
        for part in ("score", "popularity", "pool", "sequence", "boost"):
            assert item[part] == getattr(recommended, part)
        assert [(r["id"], r["contribution"], r["kind"]) for r in item["reasons"]] == [
            (r.id, r.contribution, r.kind) for r in recommended.reasons
        ]
        assert item["score"] == pytest.approx(item["popularity"] + item["pool"] + item["sequence"] + item["boost"], abs=1e-5)


def test_without_a_history_it_is_what_is_popular(asking: httpx.Client, live: Live) -> None:
    biases = live.engine.bundle.items.biases
    assert ids(asking.post("/v1/recommend", json={}).json()) == [f"i{i}" for i in np.argsort(-biases)[:10]]


def test_a_batch_is_answered_in_order_and_by_one_bundle(asking: httpx.Client, live: Live) -> None:
    questions = [{"history": [f"i{i % 40}"], "k": 3, "explain": True} for i in range(BATCH_MOST)]
    answer = asking.post("/v1/recommend/batch", json={"requests": questions}).json()
    expected = live.engine.recommend_many([Request(history=(i % 40,), k=3, explain=True) for i in range(BATCH_MOST)])
    assert [ids(part) for part in answer["answers"]] == [[item.id for item in part] for part in expected]
    assert answer["bundle"] == live.engine.bundle.digest
    questions[5]["history"] = ["i40"]  # of 40 items
    refused = asking.post("/v1/recommend/batch", json={"requests": questions})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "requests[5].history[0]")
    assert asking.post("/v1/recommend/batch", json={"requests": questions + questions}).status_code == 422


def test_card_and_bundle_say_what_answers(asking: httpx.Client, live: Live) -> None:
    bundle = live.engine.bundle
    card, facts = asking.get("/v1/card").json(), asking.get("/v1/bundle").json()
    assert card == {"bundle": bundle.digest, "card": bundle.card.model_dump(mode="json")}
    assert (facts["bundle"], facts["signer"], facts["fingerprint"]) == (bundle.digest, bundle.signer, fingerprint(bundle.signer))
    assert (facts["items"], facts["window"], facts["search"], facts["recall"]) == (40, 6, "exact", 1.0)
    counted = {name: sum(name in row for row in bundle.catalogue.categories) for name in live.engine.categories}
    assert {row["name"]: row["items"] for row in facts["categories"]} == counted
    assert facts["typical_popularity"] == pytest.approx(float(np.median(bundle.items.biases)))


def test_an_approximate_search_says_so_and_how_much_it_finds(tmp_path: Path, key: SigningKey) -> None:
    write_tiny(tmp_path / "large.bundle", key, n_items=1500)
    live = opened(tmp_path / "large.bundle", key.public_key, open_engine=lambda bundle: warmed(bundle, "approximate"))
    with client(live) as asking:
        facts = asking.get("/v1/bundle").json()
    assert live.engine.index is not None
    assert (facts["search"], facts["recall"]) == ("approximate", live.engine.index.recall)
    assert 0.9 <= facts["recall"] <= 1


def test_items_are_searched_by_both_ways_of_asking(asking: httpx.Client, live: Live) -> None:
    titles = live.engine.bundle.catalogue.titles
    wanted = [item["id"] for item in asking.get("/v1/items", params={"q": "lantern", "limit": 50}).json()["items"]]
    assert sorted(wanted) == sorted(f"i{i}" for i, title in enumerate(titles) if "lantern" in title)
    found = asking.post("/v1/items/search", json={"q": "lantern", "limit": 3}).json()["items"]
    assert [item["id"] for item in found] == wanted[:3]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"history": ["The harbor of meadow 0"]}, "history[0]", "no item is called 'The harbor of meadow 0'; did you mean 'The h"),
    ({"history": ["i1", "qqqq"]}, "history[1]", "no item is called 'qqqq'"),
    ({"deny": ["qqqq"]}, "deny[0]", "no item is called 'qqqq'"),
    ({"allow": ["qqqq"]}, "allow[0]", "no item is called 'qqqq'"),
    ({"boost": {"qqqq": 1}}, "boost.qqqq", "no item is called 'qqqq'"),
    ({"categories": ["opera"]}, "categories[0]", "no item is of category 'opera'"),
    ({"k": 0}, "k", "input should be greater than or equal to 1"),
    ({"k": 101}, "k", "input should be less than or equal to 100"),
    ({"k": "5"}, "k", "input should be a valid integer"),
    ({"diversity": 1.5}, "diversity", "input should be less than or equal to 1"),
    ({"boost": {"i1": 1e9}}, "boost.i1", "input should be less than or equal to 100"),
    ({"history": [17]}, "history[0]", "input should be a valid string"),
    ({"history": ["i1"] * 501}, "history", "list should have at most 500 items"),
    ({"histroy": []}, "histroy", "there is no such field"),
    ({"user_id": "anna"}, "user_id", "a request holds a history and says nothing of whose it is; leave the field out"),
    ({"sessionId": 5}, "sessionId", "says nothing of whose it is"),
]  # fmt: skip


@pytest.mark.parametrize(("question", "field", "said"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_answered_is_refused_with_the_field_and_a_sentence(
    asking: httpx.Client, question: dict[str, Any], field: str, said: str
) -> None:
    reply = asking.post("/v1/recommend", json=question)
    problem = reply.json()
    assert (reply.status_code, reply.headers["Content-Type"]) == (422, "application/problem+json")
    assert set(problem) == {"type", "title", "status", "detail", "errors"}
    assert (problem["type"], problem["title"], problem["status"]) == ("about:blank", "Unprocessable Entity", 422)
    assert problem["errors"][0]["field"] == field
    assert said in problem["errors"][0]["reason"]
    assert problem["detail"].startswith(f"{field}: ")


def test_near_titles_come_as_items_that_can_be_asked_for(asking: httpx.Client) -> None:
    near = asking.post("/v1/recommend", json={"history": ["The harbor of meadow 0"]}).json()["errors"][0]["near"]
    assert near
    assert asking.post("/v1/recommend", json={"history": [near[0]["id"]]}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/items?q=x&user=7", "/v1/card?user_id=7", "/v1/bundle?x=1", "/v1/recommend?customer=3"])
def test_no_query_string_smuggles_anything_in(asking: httpx.Client, path: str) -> None:
    reply = asking.post(path, json={}) if "recommend" in path else asking.get(path)
    assert reply.status_code == 422
    name = path.rpartition("?")[2].rpartition("&")[2].partition("=")[0]
    assert reply.json()["errors"][0]["field"] == name


def test_nobody_rolls_back_without_a_token(asking: httpx.Client, tmp_path: Path, key: SigningKey) -> None:
    for route in ("/v1/rollback", "/v1/reload"):
        assert asking.post(route, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 403  # none was set
    write_tiny(tmp_path / "shop.bundle", key)
    with client(opened(tmp_path / "shop.bundle", key.public_key), Settings(admin_token=TOKEN)) as guarded:
        for headers in ({}, {"Authorization": "Bearer " + TOKEN[:-1]}, {"Authorization": "Basic " + TOKEN}):
            reply = guarded.post("/v1/reload", headers=headers)
            assert reply.status_code == 401
            assert reply.headers["WWW-Authenticate"].startswith("Bearer")


def test_an_administrator_reloads_and_goes_back(tmp_path: Path, key: SigningKey) -> None:
    path = tmp_path / "shop.bundle"
    first = write_tiny(path, key, seed=0)
    live = opened(path, key.public_key)
    with client(live, Settings(admin_token=TOKEN)) as asking:
        asking.headers["Authorization"] = f"Bearer {TOKEN}"
        nothing = asking.post("/v1/rollback")
        assert (nothing.status_code, nothing.json()["detail"][:35]) == (409, "there is no earlier bundle to go ba")
        assert asking.post("/v1/reload").json() == {"bundle": first.digest, "changed": False}
        second = write_tiny(path, key, seed=1)
        assert asking.post("/v1/reload").json() == {"bundle": second.digest, "changed": True}
        assert ids(asking.post("/v1/recommend", json={"history": ["i1"]}).json()) == [
            item.id for item in Engine(second).recommend(Request(history=(1,)))
        ]
        assert asking.post("/v1/rollback").json() == {"bundle": first.digest, "changed": True}
        assert asking.get("/v1/card").headers["Silorec-Bundle"] == first.digest
        path.write_bytes(b"no bundle")
        refused = asking.post("/v1/reload")
        assert (refused.status_code, refused.headers["Silorec-Bundle"]) == (409, first.digest)
        assert str(path) in refused.json()["detail"]
        assert asking.get("/v1/bundle").json()["refused"] == 1
