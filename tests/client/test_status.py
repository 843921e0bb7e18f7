"""What a silo shows its operator: every answer counted, by whichever process, and nothing that somebody else made up."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from client.monitoring import registry_of
from client.status import SiloStatus
from common.consortium.home import SiloHome
from common.privacy.ledger import Ledger
from common.status.budget import Budget
from common.status.files import STALE, read_json, read_status
from tests.common.consortium.conftest import Shops
from tests.common.privacy import ledgers
from tests.common.status.exposition import check_by_promtool, samples, scraped, value

NOW = 1_780_000_000.0


def home(folder: Path) -> SiloHome:
    folder.mkdir(exist_ok=True)
    return SiloHome(folder)


def spent(home: SiloHome, clock: Any = time.time, **policy: Any) -> Ledger:
    """A ledger that was charged for a count and two rounds."""
    ledger = Ledger.create(home.ledger, ledgers.policy(**policy), ledgers.SILO, clock=clock)
    for event in (ledgers.COUNT, ledgers.steps(1), ledgers.steps(2)):
        ledger.reserve(ledgers.asks(event), ledgers.digest(str(event)))
    return ledger


def test_answers_and_refusals_are_counted(tmp_path: Path) -> None:
    status = SiloStatus(home(tmp_path), clock=lambda: NOW)
    status.note("query.count", 0, None, 1.0)
    for number in (1, 2, 2):
        status.note("train", number, None, 4.0 + number)
    status.note("train", 3, "BUDGET_EXHAUSTED", 0.5)
    seen = read_status(tmp_path, NOW)
    assert (seen["answers"], seen["refusals"]) == ({"query.count": 1, "train": 3}, {"BUDGET_EXHAUSTED": 1})
    assert (seen["rounds_answered"], seen["last_round"], seen["seconds_per_answer"]) == (3, 2, 5.5)
    assert seen["last_error"] == {"code": "BUDGET_EXHAUSTED", "action": "train", "round": 3, "time": "2026-05-28T20:26:40.000Z"}
    assert seen["last_contact"] == "2026-05-28T20:26:40.000Z"


def test_names_that_somebody_made_up_are_not_kept(tmp_path: Path) -> None:
    status = SiloStatus(home(tmp_path))
    for number in range(50):
        status.note(f"train.{number}", None, f"CODE_{number}", 0.1)
    seen = read_status(tmp_path)
    assert (seen["refusals"], list(seen["answer_seconds"])) == ({"other": 50}, ["other"])


def test_two_processes_lose_no_answer_of_each_other(tmp_path: Path) -> None:
    place = home(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from client.status import SiloStatus; from common.consortium.home import SiloHome\n"
        "for n in range(100): SiloStatus(SiloHome(Path(sys.argv[1]))).note('train', n, None, 1.0)"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2]) for _ in range(2)]
    with SiloStatus(place) as status:
        while any(other.poll() is None for other in others):
            status.beat()
    assert [other.returncode for other in others] == [0, 0]
    assert read_status(tmp_path)["answers"] == {"train": 200}


def test_a_silo_that_was_stopped_is_not_stale_and_one_that_was_killed_is(tmp_path: Path) -> None:
    with SiloStatus(home(tmp_path)):
        assert read_status(tmp_path)["state"] == "running"
        assert read_status(tmp_path, time.time() + STALE + 1)["stale"]
    later = read_status(tmp_path, time.time() + STALE + 1)
    assert (later["state"], later["stale"]) == ("stopped", False)


def test_a_silo_gives_signs_of_life_while_it_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.status.BEAT", 0.02)
    with SiloStatus(home(tmp_path)):
        first, until = read_status(tmp_path)["heartbeat"], time.monotonic() + 10
        while read_status(tmp_path)["heartbeat"] == first:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    place = home(tmp_path)
    place.status.write_bytes(b'{"format": 1, "kind"')
    SiloStatus(place).note("train", 1, None, 1.0)
    assert read_status(tmp_path)["answers"] == {"train": 1}


def test_a_disk_that_refuses_does_not_stop_the_silo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    status = SiloStatus(SiloHome(tmp_path / "nowhere" / "at all"))
    (tmp_path / "nowhere").write_text("a file in the folder's place")
    for number in range(3):
        status.note("train", number, None, 1.0)
    assert len(caplog.records) == 1


def test_the_budget_is_that_of_the_ledger(tmp_path: Path) -> None:
    place = home(tmp_path)
    ledger = spent(place, epsilon_per_run=6.0, epsilon_per_day=5.0)
    facts = Budget(place.ledger).facts()
    said = ledger.spent()
    assert facts["limits"]["epsilon"]["spent"] == facts["spent"] == said.epsilon
    assert facts["limits"]["epsilon"]["left"] == 8.0 - said.epsilon
    assert facts["limits"]["epsilon_per_run"]["spent"] == said.runs[ledgers.RUN]
    assert facts["limits"]["epsilon_per_day"]["spent"] == said.today
    assert Budget(place.ledger).facts(time.time() + 86_400)["limits"]["epsilon_per_day"]["spent"] == 0.0
    assert (facts["reservations"], facts["open"], facts["closed"]) == (3, 3, False)


def test_the_ledger_is_read_again_when_it_has_changed_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = home(tmp_path)
    ledger = spent(place)
    budget, reads = Budget(place.ledger), []
    from common.privacy import ledger as module

    real = module.read_ledger
    monkeypatch.setattr(module, "read_ledger", lambda path: (reads.append(path), real(path))[1])
    assert [budget.facts()["reservations"] for _ in range(3)] == [3, 3, 3]
    assert len(reads) == 1
    ledger.reserve(ledgers.asks(ledgers.steps(3)), ledgers.digest("3"))
    assert (budget.facts()["reservations"], len(reads)) == (4, 2)


def test_a_ledger_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert str(tmp_path) in Budget(home(tmp_path).ledger).facts()["error"]


def test_metrics_are_what_home_and_ledger_say(tmp_path: Path) -> None:
    shops = Shops(tmp_path)
    place = shops.admit("north", days=20)
    ledger = spent(place)
    with SiloStatus(place) as status:
        status.note("train", 1, None, 4.0)
        status.note("train", 2, None, 8.0)
        status.note("query.count", 2, "LEDGER_UNAVAILABLE", 0.5)
        text = scraped(registry_of(place, "north"))
    found = samples(text)
    assert value(found, "silorec_answers_total", action="train") == 2
    assert (
        value(found, "silorec_answer_seconds_count", action="train"),
        value(found, "silorec_answer_seconds_sum", action="train"),
    ) == (2, 12)
    assert value(found, "silorec_refusals_total", code="LEDGER_UNAVAILABLE") == 1
    assert value(found, "silorec_epsilon_spent", limit="epsilon") == ledger.spent().epsilon
    assert value(found, "silorec_epsilon_left", limit="epsilon") == 8.0 - ledger.spent().epsilon
    assert value(found, "silorec_silo_up") == 1
    assert (
        value(found, "silorec_expiry_timestamp_seconds", what="membership")
        == shops.consortium.named("north").valid_until.timestamp()
    )
    check_by_promtool(text)


def test_metrics_of_an_empty_home_say_what_is_missing(tmp_path: Path) -> None:
    found = samples(scraped(registry_of(home(tmp_path), "north")))
    assert value(found, "silorec_ledger_readable") == 0
    assert ("silorec_silo_up", ()) not in found


def test_nothing_but_counts_and_codes_is_in_the_file(tmp_path: Path) -> None:
    place = home(tmp_path)
    SiloStatus(place).note("train", 1, None, 4.0)
    assert set(read_json(place.status) or {}) == {
        "format", "kind", "state", "since", "last_contact", "last_round", "rounds_answered", "answers", "refusals",
        "answer_seconds", "recent_seconds", "seconds_per_answer", "last_answer", "last_error", "heartbeat",
    }  # fmt: skip
