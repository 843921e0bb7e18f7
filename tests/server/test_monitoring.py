"""A coordinator's metrics: what Prometheus reads is what the events say."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest

from client.monitoring import registry_of as registry_of_silo
from client.status import SiloStatus
from common.errors import ConfigError
from common.privacy.ledger import Ledger
from common.status.prometheus import serve_metrics
from server.monitoring import registry_of
from server.status import StatusFile
from tests.common.consortium.conftest import Shops
from tests.common.privacy import ledgers
from tests.common.status import story
from tests.common.status.exposition import check_by_promtool, samples, scraped, value


def test_metrics_are_what_the_events_say(tmp_path: Path) -> None:
    story.write(tmp_path, apart=5.0)
    found = samples(scraped(registry_of(lambda: tmp_path)))
    assert value(found, "silorec_rounds_total") == 5
    assert (value(found, "silorec_round"), value(found, "silorec_rounds_planned")) == (4, 5)
    assert value(found, "silorec_round_seconds_count") == 5
    assert value(found, "silorec_round_seconds_sum") == 3 + 10 + 20 + 12 + 11
    assert value(found, "silorec_round_seconds_bucket", le="10.0") == 2
    assert value(found, "silorec_stage_seconds_count", stage="train") == 4
    assert value(found, "silorec_stage_seconds_sum", stage="query.count") == 2.0
    assert value(found, "silorec_refusals_total", code="BUDGET_EXHAUSTED") == 1
    assert value(found, "silorec_refusals_total", code="INTERNAL") == 0
    assert value(found, "silorec_silos_left_out_total") == 2
    assert (value(found, "silorec_silos", state="answered"), value(found, "silorec_silos", state="left out")) == (3, 1)
    assert value(found, "silorec_run_state", state="waiting") == 1
    assert value(found, "silorec_last_round_timestamp_seconds") == story.BEGIN + 5 * (len(story.STORY) - 1)
    assert value(found, "silorec_run_info", name="spring", mode="silo", config="c" * 16) == 1


def test_metrics_follow_a_run_that_goes_on_and_a_process_that_dies(tmp_path: Path) -> None:
    registry = registry_of(lambda: tmp_path / "run")
    assert value(samples(scraped(registry)), "silorec_rounds_total") == 0
    with StatusFile(tmp_path / "run") as status:
        for event in story.STORY:
            status.tell(event)
        (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"x")
        status.tell(story.ends(5, range(3)))
        found = samples(scraped(registry))
    assert value(found, "silorec_rounds_total") == 6
    assert abs(value(found, "silorec_heartbeat_timestamp_seconds") - time.time()) < 30
    assert abs(value(found, "silorec_checkpoint_timestamp_seconds") - time.time()) < 30
    with StatusFile(tmp_path / "run") as status:
        status.tell(story.begins(to_do=6))
        status.tell({"event": "finished", "round": 5})
    found = samples(scraped(registry))
    assert (value(found, "silorec_rounds_total"), value(found, "silorec_run_starts_total")) == (6, 2)
    assert value(found, "silorec_run_state", state="finished") == 1


def test_counters_go_on_with_the_next_run(tmp_path: Path) -> None:
    runs = [story.write(tmp_path / "one"), story.write(tmp_path / "two")]
    registry = registry_of(lambda: runs[0])
    scraped(registry)
    runs.pop(0)
    found = samples(scraped(registry))
    assert (value(found, "silorec_rounds_total"), value(found, "silorec_round")) == (10, 4)


def test_stages_and_codes_are_few_whatever_they_are_called(tmp_path: Path) -> None:
    odd = [story.stage(1, range(4), (0,), {"1": f"CODE_{i}"}, name=f"Stage {i} <b>") for i in range(50)]
    many = [story.stage(1, range(4), (0,), name=f"round {i}") for i in range(50)] + [
        story.stage(1, range(4), (0,), name="s" + "x" * i) for i in range(30)
    ]
    story.write(tmp_path, [*odd, *many])
    found = samples(scraped(registry_of(lambda: tmp_path)))
    stages = {dict(labels)["stage"] for name, labels in found if name == "silorec_stage_seconds_count"}
    assert len(stages) <= 21
    assert value(found, "silorec_stage_seconds_count", stage="round") == 50
    assert value(found, "silorec_refusals_total", code="other") == 50


def test_prometheus_own_tool_has_nothing_to_say(tmp_path: Path) -> None:
    with StatusFile(tmp_path / "run") as status:
        for event in story.STORY:
            status.tell(event)
        check_by_promtool(scraped(registry_of(lambda: tmp_path / "run")))


def test_certificates_are_told_with_their_ends(tmp_path: Path) -> None:
    shops = Shops(tmp_path)
    shops.admit("north", days=20)
    found = samples(scraped(registry_of(lambda: tmp_path / "run", shops.coordinator)))
    until = shops.consortium.named("north").valid_until.timestamp()
    assert value(found, "silorec_expiry_timestamp_seconds", what="silo north") == until
    assert {"authority", "certificate", "roster"} < {dict(labels).get("what") for _, labels in found}


def test_a_port_that_is_taken_is_said_and_a_free_one_is_on_loopback(tmp_path: Path) -> None:
    registry = registry_of(lambda: tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=r"metrics_port"):
        serve_metrics(taken.getsockname()[1], registry)
    port, close = serve_metrics(0, registry)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=2):
        pass
    close()


def test_the_page_lists_every_metric_there_is(tmp_path: Path) -> None:
    shops = Shops(tmp_path)
    home = shops.admit("north")
    Ledger.create(home.ledger, ledgers.policy(), ledgers.SILO)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"x")
    with StatusFile(tmp_path / "run") as status, SiloStatus(home) as silo:
        silo.note("train", 1, None, 1.0)
        for event in story.STORY:
            status.tell(event)
        ours = scraped(registry_of(lambda: tmp_path / "run", shops.coordinator)), scraped(registry_of_silo(home, "north"))
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    tables = page.split("### Of the coordinator")[1].split("### Of a silo")
    for text, table in zip(ours, tables, strict=True):
        there = set(re.findall(r"^# TYPE (silorec_\w+)", text, re.MULTILINE))
        rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
        assert there == {name for row in rows for name in re.findall(r"`(\w+)`", row)}
