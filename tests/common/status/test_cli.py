"""``silorec status`` and ``silorec tensorboard``, as an operator and as a script use them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from client.status import SiloStatus
from common.consortium.home import SiloHome
from common.durable import write_durably
from common.privacy.ledger import Ledger
from common.status import files
from common.status.events import stamp
from server.status import StatusFile
from tests.common.consortium.conftest import Shops
from tests.common.privacy import ledgers
from tests.common.status import story
from tests.test_cli import run as silorec


def told(folder: Path, events: Sequence[Any] = story.STORY, *more: Any) -> Path:
    """A run's folder, as a run that is going on leaves it."""
    minutes = itertools.count()
    status = StatusFile(folder, clock=lambda: time.time() + 60 * next(minutes))
    for event in (*events, *more):
        status.tell(event)
    return folder


def aged(folder: Path, seconds: float) -> Path:
    """The same, with a heartbeat of so long ago."""
    path = folder / files.STATUS
    status = json.loads(path.read_text())
    status["heartbeat"] = stamp(time.time() - seconds)
    path.write_text(json.dumps(status))
    return folder


@pytest.fixture
def shops(tmp_path: Path) -> Shops:
    made = Shops(tmp_path)
    for name in story.NAMES:
        made.admit(name)
    return made


@pytest.fixture
def silo(shops: Shops) -> SiloHome:
    """North, running, with a ledger that was charged."""
    home = shops.home("north")
    settings = 'name = "north"\ncoordinator = "federation.example.org:9092"\n[data]\npath = "shop.csv"\n'
    write_durably(home.settings_file, settings.encode())
    ledger = Ledger.create(home.ledger, ledgers.policy(), ledgers.SILO)
    ledger.reserve(ledgers.asks(ledgers.COUNT), ledgers.digest("count"))
    SiloStatus(home).note("train", 1, None, 4.0)
    SiloStatus(home).note("train", 2, "DATA_UNAVAILABLE", 0.2)
    return home


def test_a_run_is_shown_with_its_silos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = silorec(capsys, "status", str(told(tmp_path)))
    assert (status, err) == (0, "")
    assert "4 rounds finished of 5" in out
    for words in ("north", "left out for good", "BUDGET_EXHAUSTED (3)", "about 12 s left", "mode silo"):
        assert words in out


def test_a_round_that_goes_on_is_shown_with_its_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = told(tmp_path, story.STORY, story.stage(5, range(3), (0, 1)))
    assert "in round 5 of 5, train: 2 of 3 answered" in silorec(capsys, "status", str(folder))[1]


@pytest.mark.parametrize(
    ("last", "trouble"), [({"event": "failed", "reason": "two of four answered"}, "two of four answered"), (None, "not running?")]
)
def test_a_run_that_failed_or_died_is_trouble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], last: dict[str, str] | None, trouble: str
) -> None:
    folder = told(tmp_path, story.STORY, last) if last else aged(told(tmp_path), 45)
    status, out, _ = silorec(capsys, "status", str(folder))
    assert status == 1
    assert trouble in " ".join(out.split())
    status, out, _ = silorec(capsys, "status", str(folder), "--json")
    assert status == 1
    assert trouble in json.loads(out)["troubles"][0]


def test_a_run_that_finished_long_ago_is_no_trouble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = aged(told(tmp_path, story.STORY, story.ends(5, range(3)), {"event": "finished", "round": 5}), 1e6)
    status, out, _ = silorec(capsys, "status", str(folder), "--json")
    assert (status, json.loads(out)["state"]) == (0, "finished")


def test_machines_get_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(silorec(capsys, "status", str(told(tmp_path)), "--json")[1])
    assert (facts["kind"], facts["round"], facts["rounds"], facts["troubles"]) == ("run", 4, 5, [])
    assert facts["silos"][3]["last_code"] == "BUDGET_EXHAUSTED"
    assert facts["silos"][0]["budget_left"] == 7.0


def test_a_coordinator_is_shown_with_its_roster_and_its_newest_run(shops: Shops, capsys: pytest.CaptureFixture[str]) -> None:
    home = shops.coordinator
    aged(told(home.runs / "winter", story.STORY, {"event": "failed", "reason": "x"}), 1e6)
    events = [{**event, "silos": 4} if event["event"] == "run" else event for event in story.STORY]
    told(home.runs / "spring", events)
    shops.authority.revoke("south", "left")
    status, out, _ = silorec(capsys, "status", str(home.folder), "--json")
    facts = json.loads(out)
    assert (status, facts["kind"], facts["consortium"]["name"]) == (0, "coordinator", "shops")
    assert [one["name"] for one in facts["runs"]] == ["spring", "winter"]
    assert [(one["name"], one["state"]) for one in facts["runs"][0]["silos"]][:2] == [("north", "answered"), ("south", "revoked")]
    assert {one["name"]: one["standing"] for one in facts["members"]}["south"] == "revoked"
    out = silorec(capsys, "status", str(home.folder))[1]
    assert "4 rounds finished of 5" in out
    assert "winter" in out
    told(home.runs / "spring", [{"event": "failed", "reason": "two of four answered"}])
    assert silorec(capsys, "status", str(home.folder))[0] == 1


def test_a_silo_is_shown_with_its_budget(silo: SiloHome, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = silorec(capsys, "status", str(silo.folder))
    assert status == 0
    assert "last refusal: DATA_UNAVAILABLE (train in round 2" in " ".join(out.split())
    facts = json.loads(silorec(capsys, "status", str(silo.folder), "--json")[1])
    assert (facts["name"], facts["rounds_answered"], facts["kind"]) == ("north", 1, "silo")
    spent = Ledger.open(silo.ledger, ledgers.SILO).spent().epsilon
    assert facts["budget"]["limits"]["epsilon"] == {"limit": 8.0, "spent": spent, "left": 8.0 - spent}
    assert {one["what"] for one in facts["expiries"]} == {"authority", "roster", "silo north"}


@pytest.mark.parametrize("damage", ["killed", "never started", "no ledger", "revoked"])
def test_what_is_wrong_with_a_silo_is_trouble(
    shops: Shops, silo: SiloHome, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    if damage == "killed":
        aged(silo.folder, 60)
    elif damage == "never started":
        silo.status.unlink()
    elif damage == "no ledger":
        silo.ledger.unlink()
    else:
        shops.authority.revoke("north", "left the consortium")
        shops.hand_out("north")
    status, out, _ = silorec(capsys, "status", str(silo.folder), "--json")
    (trouble,) = json.loads(out)["troubles"]
    assert status == 1
    assert {
        "killed": "not running?", "never started": "never started", "no ledger": "ledger", "revoked": "left the consortium",
    }[damage] in trouble  # fmt: skip


def test_what_expires_soon_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Shops(tmp_path, days=20)
    status, out, _ = silorec(capsys, "status", str(made.coordinator.folder), "--json")
    assert (status, json.loads(out)["troubles"]) == (0, [])
    assert len([line for line in json.loads(out)["warnings"] if "expires in" in line]) == 2


def test_a_simulation_is_shown_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"round": 3, "seconds": 2.0, "loss": 5.5, "epsilon": 1.25, "validation": {"ndcg@10": 0.0713, "users": 9}}
    (tmp_path / "rounds.jsonl").write_text(json.dumps(record) + "\n")
    status, out, _ = silorec(capsys, "status", str(tmp_path))
    assert status == 0
    assert "3 rounds finished" in out
    assert "ndcg@10 0.0713" in out


@pytest.mark.parametrize("content", ["nothing", "no folder", "damaged"])
def test_a_folder_that_is_none_of_ours_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    if content == "damaged":
        (tmp_path / files.STATUS).write_text("{")
    status, out, err = silorec(capsys, "status", str(tmp_path / "x" if content == "no folder" else tmp_path))
    assert (status, out) == (2, "")
    assert err.startswith("silorec: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("last", "expected"), [({"event": "finished", "round": 4}, 0), ({"event": "failed", "reason": "x"}, 1)])
def test_watching_ends_with_control_c(tmp_path: Path, last: dict[str, Any], expected: int) -> None:
    folder = told(tmp_path)
    command = [sys.executable, "-m", "silorec", "status", str(folder), "--watch", "--json"]
    watching = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever started the tests may have it ignored
    )
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["state"] == "waiting"
    told(folder, [last])
    until = time.monotonic() + 20
    while json.loads(watching.stdout.readline())["state"] == "waiting":
        assert time.monotonic() < until
    watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == expected


def test_a_page_shows_who_took_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = ["<b>north</b>", *story.NAMES[1:]]
    events = [{**event, "silos": odd} if event["event"] == "run" else event for event in story.STORY]
    assert silorec(capsys, "status", str(told(tmp_path / "run", events)), "--html", str(tmp_path / "page.html"))[0] == 0
    page = (tmp_path / "page.html").read_text()
    answered, refused = page.count('class="cell answered"'), page.count('class="cell refused"')
    assert (answered, refused) == (4 + 4 + 3 + 2 + 3, 1)
    assert "<title>west, round 3: BUDGET_EXHAUSTED</title>" in page
    assert "<b>north" not in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_page_is_made_of_a_run_only(shops: Shops, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = silorec(capsys, "status", str(shops.coordinator.folder), "--html", str(tmp_path / "page.html"))
    assert status == 2
    assert "coordinator" in err


def test_tensorboard_says_where_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = silorec(capsys, "tensorboard", str(told(tmp_path)), "--json")
    assert (status, json.loads(out)["folder"]) == (0, str(tmp_path / "tensorboard"))
    assert f"tensorboard --logdir {tmp_path / 'tensorboard'}" in silorec(capsys, "tensorboard", str(tmp_path))[1]
