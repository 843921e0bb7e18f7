"""The compose file: valid by the Compose Specification, and each of its services without rights that it does not need."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.images import ROOT, last

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

PATH = ROOT / "packaging" / "compose.yaml"


def text() -> str:
    """The file with every variable at its default, as an engine puts them in first."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", PATH.read_text())


def services(kind: str = "") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text())["services"]
    return {name: service for name, service in found.items() if kind in service["image"]}


def validate(content: str) -> None:
    """By the Compose Specification; merges are done before, as an engine does."""
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    compose_spec.PyCompose.from_json(json.dumps(yaml.safe_load(content))).validate()


def test_it_keeps_to_the_compose_specification() -> None:
    validate(text())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("read_only: true", "read_onyl: true"),
        ("restart: on-failure", "restart: sometimes"),
        ('["9092:9092"]', '["x:9092"]'),
        ("networks: [federation]", "networks: [federatio]"),
    ],
)
def test_what_does_not_keep_to_it_is_noticed(right: str, wrong: str) -> None:
    assert right in text()
    with pytest.raises(ValueError, match=r"\w"):
        validate(text().replace(right, wrong))


def test_there_are_a_coordinator_and_three_silos_that_use_it() -> None:
    assert list(services("silorec-server")) == ["coordinator"]
    assert list(services("silorec-client")) == ["north", "east", "south"]
    for silo in services("silorec-client").values():
        assert silo["depends_on"] == ["coordinator"]
        assert set(silo["networks"]) & set(services()["coordinator"]["networks"])
        assert "ports" not in silo


@pytest.mark.parametrize("name", ["coordinator", "north", "east", "south"])
def test_a_service_has_no_right_that_it_does_not_need(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "pid", "ipc", "devices", "env_file", "environment"} & set(service)
    assert service["restart"] == "on-failure"
    assert service["init"] is True
    assert service["pids_limit"] > 0
    assert service["mem_limit"]


@pytest.mark.parametrize("name", ["coordinator", "north", "east", "south"])
def test_its_images_come_from_the_recipes_here(name: str) -> None:
    service = services()[name]
    built = (PATH.parent / service["build"]["context"]).resolve()
    assert built == ROOT
    recipe: Path = built / service["build"]["dockerfile"]
    assert service["user"] == last(recipe, "USER").value
    (volume,) = last(recipe, "VOLUME").words()
    mounted = dict(reversed(one.split(":")[:2]) for one in service["volumes"])
    assert mounted[volume] == name
    assert name in yaml.safe_load(text())["volumes"]


def test_a_silos_data_are_mounted_read_only_and_are_its_own() -> None:
    places = [one for silo in services("silorec-client").values() for one in silo["volumes"] if not one.endswith("/home/silorec")]
    assert len(set(places)) == 3
    assert all(one.endswith(":/data:ro") for one in places)
    assert len(set(re.findall(r"\$\{(\w+):-", PATH.read_text()))) == 3


def test_the_port_is_the_one_that_the_coordinator_listens_at() -> None:
    from common.consortium.home import CoordinatorSettings

    port = CoordinatorSettings(name="shops").listen.rpartition(":")[2]
    assert services()["coordinator"]["ports"] == [f"{port}:{port}"]
    assert last(ROOT / "packaging" / "docker" / "server.Dockerfile", "EXPOSE").value == port
