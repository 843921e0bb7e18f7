"""What passes the gateway's door, what leaves it, and that nothing about a request stays."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.gateway import guard
from client.gateway.app import PAGE, Settings
from client.gateway.desk import Desk
from client.gateway.guard import SECURITY_HEADERS
from client.gateway.models import BODY_MOST
from common.errors import BundleError, ServingError
from common.privacy.signing import SigningKey, create_key
from common.serving import Live
from tests.bundles import write_tiny
from tests.client.gateway_server import client, gateway, opened

JSON = {"Content-Type": "application/json"}


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
    with client(live, Settings(title="Books & <more>", hosts=("127.0.0.1", "shop.example"))) as found:
        yield found


@pytest.mark.parametrize(
    ("host", "status"),
    [("shop.example", 200), ("SHOP.EXAMPLE:99", 200), ("127.0.0.1:1", 200), ("evil.example", 421), ("shop.example.evil", 421),
     ("", 421), ("[::1]", 421), ("[::1", 421), ("localhost:8080", 421), ("é", 421)],
)  # fmt: skip
def test_only_its_own_names_are_answered_to(asking: httpx.Client, host: str, status: int) -> None:
    header = host.encode()
    for method, path in (("GET", "/"), ("GET", "/v1/card"), ("POST", "/v1/recommend"), ("GET", "/metrics"), ("GET", "/nowhere")):
        reply = asking.request(method, path, headers={b"Host": header})  # type: ignore[dict-item]
        assert (reply.status_code == 421) == (status == 421), path
    for path in ("/healthz", "/readyz"):
        assert asking.get(path, headers={b"Host": header}).status_code == 200  # type: ignore[dict-item]


def test_every_answer_keeps_browsers_to_this_page(asking: httpx.Client) -> None:
    replies = [
        asking.get("/"), asking.get("/page.js"), asking.get("/v1/card"), asking.get("/nowhere"), asking.put("/v1/card"),
        asking.post("/v1/recommend", content=b"{", headers=JSON), asking.get("/metrics"),
        asking.get("/v1/card", headers={"Host": "evil.example"}),
    ]  # fmt: skip
    for reply in replies:
        for name, value in SECURITY_HEADERS.items():
            assert reply.headers.get_list(name) == [value], (reply.url, name)
        assert "server" not in reply.headers
        assert "set-cookie" not in reply.headers


def test_no_other_origin_is_let_in(asking: httpx.Client) -> None:
    for method in ("OPTIONS", "POST", "GET"):
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        reply = asking.request(method, "/v1/recommend", headers=headers)
        assert not [name for name in reply.headers if name.startswith("access-control")]
    plain = asking.post(
        "/v1/recommend", content=b"{}", headers={"Content-Type": "text/plain"}
    )  # what a form may send without asking
    assert plain.status_code == 415


def test_the_page_holds_no_script_or_style_of_its_own_and_all_it_names_is_here(asking: httpx.Client) -> None:
    found: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append((tag, dict(attrs)))  # type: ignore[method-assign]
    page = asking.get("/").text
    parser.feed(page)
    assert "<title>Books &amp; &lt;more&gt;</title>" in page
    assert not [
        tag for tag, attrs in found if tag == "style" or "style" in attrs or [name for name in attrs if name.startswith("on")]
    ]
    assert all(attrs.get("src") for tag, attrs in found if tag == "script")
    named = [
        value for _, attrs in found for name, value in attrs.items() if name in ("src", "href") and not value.startswith("#")
    ]
    named += re.findall(r'from "\./([^"]+)"', "".join(path.read_text() for path in PAGE.glob("*.js")))
    assert len(named) >= 8
    for name in named:
        assert re.fullmatch(r"[a-z]+\.(js|css|svg|json)", name), name
        assert asking.get(f"/{name}").status_code == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422), (b"{", 400), (b"\xff{}", 400), (b"[]", 422), (b"null", 422), (b"[" * 100_000, 400),
        (b'{"k":' + b"9" * 5000 + b"}", 400), (b'{"k":NaN}', 422),
        (b'{"diversity":Infinity}', 422), (b'{"diversity":1e999}', 422), (rb'{"history":["\ud800"]}', 422),
        (rb'{"\ud800":1}', 422), (b'{"history":["\\u0000"]}', 422), (b'{"k":1e400}', 422), (b'{"boost":{"i1":NaN}}', 422),
        (b'{"k":1,"k":2}', 200), (b"\xef\xbb\xbf{}", 200), (b'{"history":["' + b"x" * 501 + b'"]}', 422),
    ],
)  # fmt: skip
def test_odd_bodies_are_answered_with_a_problem(asking: httpx.Client, content: bytes, status: int) -> None:
    reply = asking.post("/v1/recommend", content=content, headers=JSON)
    assert reply.status_code == status
    if status != 200:
        assert reply.headers["Content-Type"] == "application/problem+json"
        assert reply.json()["detail"]


def test_large_bodies_are_refused_whether_they_say_so_or_not(asking: httpx.Client) -> None:
    large = b'{"history":["' + b"x" * BODY_MOST + b'"]}'
    assert asking.post("/v1/recommend", content=large, headers=JSON).status_code == 413
    chunks = (large[i : i + 65536] for i in range(0, len(large), 65536))
    assert asking.post("/v1/recommend", content=chunks, headers=JSON).status_code == 413
    assert asking.post("/v1/recommend", content=iter([b"{", b"}"]), headers=JSON).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    with gateway(live) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            slow.sendall(
                b"POST /v1/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
            )
            reply = b""
            while part := slow.recv(4096):
                reply += part
    assert reply.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/docs", 404), ("DELETE", "/v1/card", 405)]
)
def test_wrong_addresses_and_methods_are_problems_too(asking: httpx.Client, method: str, path: str, status: int) -> None:
    reply = asking.request(method, path)
    assert (reply.status_code, reply.headers["Content-Type"]) == (status, "application/problem+json")
    assert "/openapi.json" in reply.json()["detail"]


def test_who_comes_when_the_queue_is_full_is_told_to_come_again(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on, card = threading.Event(), threading.Event(), Desk.card

    def slow(desk: Desk) -> Any:
        entered.set()
        assert go_on.wait(20)
        return card(desk)

    monkeypatch.setattr(Desk, "card", slow)
    with gateway(live, Settings(threads=1, waiting=0)) as address, httpx.Client(base_url=address, timeout=30) as asking:
        replies: list[httpx.Response] = []
        first = threading.Thread(target=lambda: replies.append(httpx.get(f"{address}/v1/card", timeout=30)))
        first.start()
        assert entered.wait(10)
        refused = asking.post("/v1/recommend", json={})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert asking.get("/healthz").status_code == 200
        assert "silorec_requests_in_hand 1.0" in asking.get("/metrics").text
        go_on.set()
        first.join()
        assert replies[0].status_code == 200
        assert asking.post("/v1/recommend", json={}).status_code == 200
        assert "silorec_requests_in_hand 0.0" in asking.get("/metrics").text


def test_a_fault_is_logged_by_kind_and_place_and_not_by_its_words(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def faulty(*_: object) -> None:
        raise KeyError("The harbour of harbour 0")

    monkeypatch.setattr(Desk, "recommend", faulty)
    with caplog.at_level(logging.DEBUG), client(live) as asking:
        reply = asking.post("/v1/recommend", json={"history": ["i0"]})
        assert (reply.status_code, reply.json()["title"]) == (500, "Internal Server Error")
        assert 'silorec_requests_total{method="POST",route="/v1/recommend",status="500"} 1.0' in asking.get("/metrics").text
    assert "KeyError at " in caplog.text
    assert "harbour" not in caplog.text.replace("test_gateway_guard", "")
    assert "harbour" not in reply.text


MARK = "zebrafinch"


def marked_requests(asking: httpx.Client, texts: list[str]) -> None:
    """One request of every kind that can carry a text."""
    history = {"history": texts}
    asking.post("/v1/recommend", json=history)
    asking.post("/v1/recommend", json={"history": ["i1"], "deny": texts})
    asking.post("/v1/recommend/batch", json={"requests": [history, {}]})
    asking.get("/v1/items", params={"q": texts[0]})
    asking.post("/v1/items/search", json={"q": texts[0]})
    asking.post("/v1/recommend", json={texts[0]: 1})
    asking.post("/v1/recommend", content=texts[0].encode(), headers=JSON)
    asking.get(f"/{texts[0]}")
    asking.get("/v1/card", headers={"User-Agent": texts[0], "Cookie": texts[0], "Referer": texts[0]})
    asking.request(texts[0].replace(" ", "").upper(), "/v1/card")


def samples(page: str) -> set[str]:
    """Names and labels, without values."""
    return {line.rpartition(" ")[0] for line in page.splitlines() if line and not line.startswith("#")}


def test_nothing_of_a_request_is_in_the_metrics_or_the_log(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    titles = list(live.engine.bundle.catalogue.titles[3:9])
    pages = []
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("httpx").setLevel(logging.WARNING)  # the client's own
        logging.getLogger("httpcore").setLevel(logging.WARNING)
        for texts in ([f"{MARK} one", f"{MARK} two", f"{MARK} three"], titles, ["i5"]):
            with client(live) as asking:
                marked_requests(asking, texts)
                pages.append(asking.get("/metrics").text)
    said = "\n".join(pages) + caplog.text
    for text in (MARK, MARK.upper(), "127.0.0.1", *titles, '"i5"'):
        assert text not in said, text
    assert MARK not in json.dumps(live.status.__dict__, default=str)


def test_metrics_tell_as_much_of_one_history_as_of_any_other(live: Live) -> None:
    pages = []
    for history in (["i1"], [f"i{i}" for i in range(40)]):
        with client(live) as asking:
            for _ in range(3):
                assert asking.post("/v1/recommend", json={"history": history}).status_code == 200
            pages.append(asking.get("/metrics").text)
    assert samples(pages[0]) == samples(pages[1])
    for page in pages:
        counts = [line for line in page.splitlines() if line.startswith("silorec_requests_total")]
        assert counts == ['silorec_requests_total{method="POST",route="/v1/recommend",status="200"} 3.0']


def test_metrics_name_the_bundle_that_answers_and_count_what_happened_to_others(tmp_path: Path, key: SigningKey) -> None:
    path = tmp_path / "shop.bundle"
    write_tiny(path, key, seed=0)
    live = opened(path, key.public_key)
    with client(live) as asking:
        second = write_tiny(path, key, seed=1)
        assert live.look()
        path.write_bytes(b"nothing")
        assert not live.look()
        page = asking.get("/metrics").text
        facts = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if not line.startswith("#")
        }
        info = [name for name in facts if name.startswith("silorec_bundle_info")]
        assert len(info) == 1
        assert f'digest="{second.digest}"' in info[0]
        assert (facts["silorec_bundle_swaps_total"], facts["silorec_bundle_refused_total"]) == (1, 1)
        assert (facts["silorec_bundle_items"], facts["silorec_bundle_rollbacks_total"]) == (40, 0)


def test_a_bundle_that_suddenly_cannot_answer_is_a_503(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise BundleError("the bundle's model gave a query that is not finite; take another bundle")

    monkeypatch.setattr(live.engine, "recommend_many", broken, raising=False)
    with client(live) as asking:
        reply = asking.post("/v1/recommend", json={"history": ["i1"]})
    assert reply.status_code == 503
    assert reply.json()["detail"].endswith("; take another bundle")


@pytest.mark.parametrize("settings", [{"threads": 0}, {"waiting": -1}, {"admin_token": "short"}])
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ServingError):
        Settings(**settings)
