"""The gate in front of the SuperLink: a real roster, real keys, and whatever lies behind it counts its visitors."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from common.consortium.home import CoordinatorHome, SiloHome
from common.consortium.keys import load_key_p384
from common.protocol import PROTOCOL_VERSION
from server.gate import KEY_HEADER, Gate, RosterOnDisk
from simulations.trial.consortium import Federation, federation
from simulations.trial.hosts import Host

ELSEWHERE, HERE = "10.77.0.9", "127.0.0.1"


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    hosts = {name: Host(name, HERE) for name in ("coordinator", "north", "south")}
    with federation(
        tmp_path_factory.mktemp("gate"), hosts, ["north", "south"], policy={"modes": ["none"], "delta": 1e-4}
    ) as found:
        yield found


class Behind:
    """Stands for the SuperLink."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def ask(
    gate: Gate, path: str, *, caller: str = ELSEWHERE, key: bytes | None = None, header: bytes | None = None
) -> httpx.Response:
    sent = header if key is None else base64.b64encode(key)
    headers = {} if sent is None else {FLEET_HTTP_PUBLIC_KEY_HEADER.encode(): sent}

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app=gate, client=(caller, 4000))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="https://coordinator") as client:
            return await client.post(path, headers=headers)

    return anyio.run(asked)


def node_key(home: SiloHome) -> bytes:
    return public_key_to_bytes(load_key_p384(home.node_key).public_key())


def gate_of(place: CoordinatorHome, now: datetime | None = None) -> tuple[Gate, Behind]:
    behind = Behind()
    clock = (lambda: now) if now else (lambda: datetime.now(UTC))
    return Gate(behind, roster=RosterOnDisk(place, clock)), behind


def test_flower_sends_its_key_under_the_name_that_the_gate_reads() -> None:
    assert KEY_HEADER.decode() == FLEET_HTTP_PUBLIC_KEY_HEADER.lower()


def test_a_silo_of_the_roster_gets_through_to_the_fleet_interface(trial: Federation) -> None:
    gate, behind = gate_of(trial.coordinator)
    assert ask(gate, "/v1/fleet/pull-messages", key=node_key(trial.silo("north"))).status_code == 204
    assert behind.seen == ["/v1/fleet/pull-messages"]


@pytest.mark.parametrize("header", [None, b"", b"%%%", base64.b64encode(b"no key"), b"\xff\xfe"])
def test_who_shows_no_key_does_not(trial: Federation, header: bytes | None) -> None:
    gate, behind = gate_of(trial.coordinator)
    refused = ask(gate, "/v1/fleet/pull-messages", header=header)
    assert refused.status_code == 401
    assert behind.seen == []


def test_a_foreign_key_is_refused_with_a_sentence(trial: Federation) -> None:
    gate, behind = gate_of(trial.coordinator)
    refused = ask(gate, "/v1/fleet/activate-node", key=public_key_to_bytes(generate_private_key(SECP384R1()).public_key()))
    assert refused.status_code == 401
    assert refused.json()["detail"] == "this node's key is not in the roster of trial: the silo has to be admitted first"
    assert behind.seen == []


def test_a_silo_that_has_expired_is_refused_with_a_sentence(trial: Federation) -> None:
    later = datetime.now(UTC) + timedelta(days=364, hours=23)
    gate, _ = gate_of(trial.coordinator, later)
    assert ask(gate, "/v1/fleet/pull-messages", key=node_key(trial.silo("north"))).status_code == 204
    gate, behind = gate_of(trial.coordinator, later + timedelta(days=2))
    refused = ask(gate, "/v1/fleet/pull-messages", key=node_key(trial.silo("north")))
    assert refused.status_code == 401
    assert "valid until" in refused.json()["detail"]
    assert behind.seen == []


def test_a_silo_is_refused_from_the_moment_in_which_the_roster_says_that_it_is_revoked(trial: Federation) -> None:
    gate, behind = gate_of(trial.coordinator)
    key = node_key(trial.silo("south"))
    assert ask(gate, "/v1/fleet/pull-messages", key=key).status_code == 204
    done = trial.command("coordinator", "consortium", "revoke", str(trial.authority), "south", "--reason", "left")
    assert done.returncode == 0, done.stderr
    refused = ask(gate, "/v1/fleet/pull-messages", key=key)
    assert refused.status_code == 401
    assert "silo 'south' was revoked on" in refused.json()["detail"]
    assert ask(gate, "/v1/fleet/pull-messages", key=node_key(trial.silo("north"))).status_code == 204
    assert len(behind.seen) == 2


def test_a_roster_that_is_damaged_later_leaves_the_last_one_in_force(trial: Federation) -> None:
    gate, _ = gate_of(trial.coordinator)
    key = node_key(trial.silo("north"))
    assert ask(gate, "/v1/fleet/pull-messages", key=key).status_code == 204
    whole = trial.coordinator.roster.read_bytes()
    try:
        trial.coordinator.roster.write_bytes(whole[:-40])
        assert ask(gate, "/v1/fleet/pull-messages", key=key).status_code == 204
    finally:
        trial.coordinator.roster.write_bytes(whole)


@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/openapi.json", "/", "/v1/fleet"]
)
def test_orders_are_taken_from_this_machine_alone(trial: Federation, path: str) -> None:
    gate, behind = gate_of(trial.coordinator)
    for caller in (ELSEWHERE, "::ffff:10.77.0.9", "fe80::1", "0.0.0.0", ""):
        assert ask(gate, path, caller=caller, key=node_key(trial.silo("north"))).status_code == 403, caller
    assert behind.seen == []
    for caller in (HERE, "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert ask(gate, path, caller=caller).status_code == 204, caller


def test_everybody_may_ask_for_versions_time_and_the_signed_roster(trial: Federation) -> None:
    gate, behind = gate_of(trial.coordinator)
    said = ask(gate, "/silorec/hello").json()
    assert said["consortium"] == "trial"
    assert said["protocol"] == PROTOCOL_VERSION
    assert abs(said["time"] - datetime.now(UTC).timestamp()) < 5
    assert ask(gate, "/silorec/roster").json() == {"roster": trial.coordinator.roster.read_text()}
    assert ask(gate, "/health").status_code == 204
    assert behind.seen == ["/health"]


def test_what_the_gate_answers_is_json_of_the_kind_that_flower_reads(trial: Federation) -> None:
    from flwr.supercore.error import FlowerError

    gate, _ = gate_of(trial.coordinator)
    refused = ask(gate, "/v1/fleet/activate-node")
    error = FlowerError.from_json(refused.text)
    assert error is not None
    assert "is not in the roster" in error.message
    assert json.loads(refused.text)["code"] == 401


def test_other_protocols_than_http_are_not_let_through(trial: Federation) -> None:
    gate, behind = gate_of(trial.coordinator)

    async def knock() -> None:
        await gate({"type": "websocket", "path": "/v1/fleet/x", "client": (HERE, 1), "headers": []}, None, None)  # type: ignore[arg-type]

    anyio.run(knock)
    assert behind.seen == []
