"""What a silo remembers of its secure sums: it outlives the process, holds no secret longer than needed, and is never guessed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import stat
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.secagg import FileMemory, Participant, RamMemory
from common.errors import SecAggError
from common.privacy.signing import create_key, load_key
from common.secagg.messages import pack_survivors
from common.secagg.roster import KeyRoster, read_roster, write_roster
from common.secagg.rules import Rules
from common.secagg.sealing import SharePair
from tests.secure_silos import STAGES, Attempt, Consortium

N = 6


@pytest.fixture
def silos(tmp_path: Path) -> Consortium:
    return Consortium(N, tmp_path, disk=True)


def file_of(silos: Consortium, silo: int = 0) -> Path:
    memory = silos.memories[silo]
    assert isinstance(memory, FileMemory)
    return memory.path


def written(folder: Path) -> bytes:
    """Everything in the silos' files, those with a dot included."""
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def stages_of(attempt: Attempt, silo: int = 0) -> dict[str, Callable[[Participant], bytes | None]]:
    """The coordinator's question to ``silo`` in each stage, as far as it knows it by now; a masked vector is not looked at."""
    return {
        "advertise": lambda one: one.advertise(attempt.round_id),
        "share": lambda one: one.share(attempt.round_id, attempt.advertisements),
        "mask": lambda one: one.mask(attempt.round_id, attempt.boxes[silo], np.zeros(5, np.uint32)),
        "sign": lambda one: one.sign(attempt.round_id, attempt.survivors),
        "reveal": lambda one: one.reveal(attempt.round_id, attempt.signatures),
    }


def test_a_silo_that_is_started_anew_between_any_two_stages_goes_on_and_says_the_same(silos: Consortium) -> None:
    """Every stage is asked twice, as if the first answer were lost; and each time by another object over the same file."""
    attempt, said = Attempt(silos), []
    for stage in STAGES:
        ask = stages_of(attempt)[stage]
        if stage == "mask":
            with pytest.raises(OSError, match="crash before the vector was kept"):
                silos.participant(0).mask(attempt.round_id, attempt.boxes[0], np.zeros(5, np.uint32), _crash)
        else:
            first = ask(silos.participant(0))
            assert ask(silos.participant(0)) == first
            said.append((ask, first))
        summed = getattr(attempt, stage)()
        for earlier, before in said:
            assert earlier(silos.participant(0)) == before
    np.testing.assert_array_equal(summed, attempt.expected())


def _crash() -> None:
    raise OSError("crash before the vector was kept")


@pytest.mark.parametrize("kind", ["disk", "RAM"])
def test_a_change_is_kept_as_a_whole_or_not_at_all(kind: str, tmp_path: Path) -> None:
    memory = FileMemory(tmp_path / "folder" / "0.json") if kind == "disk" else RamMemory()
    with memory.opened() as state:
        assert state == {}
        state["list"] = [1]
    with contextlib.suppress(OSError), memory.opened() as state:
        state["list"].append(2)
        state["more"] = True
        _crash()
    with memory.opened() as state:
        assert state == {"list": [1]}


@pytest.mark.parametrize("stage", STAGES)
def test_an_answer_does_not_leave_before_it_is_on_the_disk(
    stage: str, silos: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Attempt(silos).until(stage)
    before = silos.state(0)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("common.durable.os.replace", full)
        with pytest.raises(OSError, match="No space left"):
            stages_of(attempt)[stage](silos.participant(0))
    assert silos.state(0) == before
    attempt.finish(stage)


def test_only_its_owner_can_read_the_file(silos: Consortium) -> None:
    usual = os.umask(0)
    try:
        attempt = Attempt(silos)
        for stage in STAGES:
            getattr(attempt, stage)()
            assert stat.S_IMODE(file_of(silos).stat().st_mode) == 0o600
    finally:
        os.umask(usual)


def test_secrets_leave_the_disk_as_the_stages_pass(silos: Consortium, tmp_path: Path) -> None:
    """After masking neither private key nor seed is in any of the silo's files, after revealing no share that was not told."""
    attempt = Attempt(silos)
    attempt.advertise()
    attempt.share()
    states = [silos.state(silo)["open"] for silo in range(N)]
    private = {silo: (one["keys"][:64], one["keys"][64:], one["seed"]) for silo, one in enumerate(states)}
    assert len({secret for three in private.values() for secret in three}) == 3 * N

    def found(secrets: tuple[str, ...]) -> int:
        on_disk = written(tmp_path)
        return sum(secret.encode() in on_disk or bytes.fromhex(secret) in on_disk for secret in secrets)

    assert all(found(three) == 3 for three in private.values())
    attempt.mask({5})
    assert {silo: found(three) for silo, three in private.items()} == dict.fromkeys(range(5), 0) | {5: 3}

    attempt.sign()
    held = [
        (int(owner), SharePair.from_bytes(bytes.fromhex(pair)))
        for holder in range(5)
        for owner, pair in silos.state(holder)["open"]["held"].items()
    ]
    assert len(held) == 5 * N
    assert all(found((pair.to_bytes().hex(),)) for _, pair in held)
    attempt.reveal()
    for owner, pair in held:
        told, other = (pair.mask_secret, pair.seed) if owner == 5 else (pair.seed, pair.mask_secret)
        assert found((told.to_bytes().hex(),)) == 1
        assert found((other.to_bytes()[4:].hex(),)) == 0


def spoilt(content: bytes) -> list[bytes]:
    """Damaged copies of a file: cut off, empty, with a byte that is another one, or other JSON that means nothing."""
    cut = [content[:length] for length in (0, 1, 64, 65, 66, 67, len(content) // 2, len(content) - 1)]
    places = [*range(0, len(content), 97), 64, len(content) - 1]
    changed = [content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] for place in places]
    return [*cut, *changed, content + b" ", content + content, b"{}", b"[]", b"null", b'{"open": 1}', bytes(100), b"\xff" * 100]


@pytest.mark.parametrize("stage", [*STAGES, "end"])
def test_a_damaged_file_is_an_error_at_every_stage_and_nothing_is_revealed(stage: str, silos: Consortium) -> None:
    """Also a byte that leaves it well-formed: a silo that guessed could take one set of survivors for another."""
    Attempt(silos).until("mask")
    attempt = Attempt(silos)
    for earlier in STAGES if stage == "end" else STAGES[: STAGES.index(stage)]:
        getattr(attempt, earlier)()
    path, asked = file_of(silos), stages_of(attempt)["reveal" if stage == "end" else stage]
    good = path.read_bytes()
    for bad in spoilt(good):
        path.write_bytes(bad)
        with pytest.raises(SecAggError, match=r"0\.json: damaged, and without it the silo cannot know what it has revealed"):
            asked(silos.participant(0))
        assert path.read_bytes() == bad
    path.write_bytes(good)
    if stage == "end":
        assert asked(silos.participant(0)) == attempt.revealed[0]
    else:
        attempt.finish(stage)


def test_a_file_that_is_gone_starts_anew_with_other_keys_and_reveals_nothing_of_before(silos: Consortium) -> None:
    attempt = Attempt(silos).until("reveal")
    file_of(silos).unlink()
    with pytest.raises(SecAggError, match="no round of this name is open here"):
        silos.participant(0).reveal(attempt.round_id, attempt.signatures)
    assert silos.participant(0).advertise(attempt.round_id) != attempt.ads[0].to_bytes()


# With real processes. Keys and roster are on the disk for them.


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, Attempt]:
    """A folder with a roster, the key of silo 0 and its memory, all silos having masked; and the attempt."""
    silos = Consortium(N, tmp_path / "silos", disk=True)
    key = create_key(tmp_path / "key.pem")
    silos.keys = (key, *silos.keys[1:])
    silos.roster = KeyRoster(silos.roster.names, tuple(one.public_key for one in silos.keys))
    write_roster(tmp_path / "roster.toml", silos.roster)
    (tmp_path / "run").write_text(silos.run)
    return tmp_path, Attempt(silos).until("sign")


def silo_of(folder: Path, memory: Path) -> Participant:
    roster, run = read_roster(folder / "roster.toml"), (folder / "run").read_text()
    return Participant(0, run, Rules(N), roster, load_key(folder / "key.pem"), FileMemory(memory))


def sign_many(folder: Path, round_id: bytes, survivors: bytes, copies: int, start: Barrier, out: Path) -> None:
    """Sign ``survivors`` over each copy of the silo's memory, at the same time as the other process; note where it did."""
    signed = []
    for copy in range(copies):
        silo = silo_of(folder, folder / f"copy-{copy}.json")
        start.wait(60)
        with contextlib.suppress(SecAggError):  # the other process was first
            silo.sign(round_id, survivors)
            signed.append(copy)
    out.write_text(" ".join(map(str, signed)))


def test_of_two_processes_that_are_asked_for_different_survivors_at_once_one_signs(prepared: tuple[Path, Attempt]) -> None:
    folder, attempt = prepared
    copies, spawn = 12, multiprocessing.get_context("spawn")
    for copy in range(copies):
        shutil.copy(folder / "silos" / "0.json", folder / f"copy-{copy}.json")
    start = spawn.Barrier(2)
    sets = [pack_survivors(range(5)), pack_survivors((0, 1, 2, 3, 5))]
    outs = [folder / "one", folder / "other"]
    processes = [
        spawn.Process(target=sign_many, args=(folder, attempt.round_id, survivors, copies, start, out))
        for survivors, out in zip(sets, outs, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert sorted(int(copy) for out in outs for copy in out.read_text().split()) == list(range(copies))


def die_while_writing(folder: Path, round_id: bytes) -> None:
    """A new round, and a kill when its keys are on the disk but not yet in their place."""
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    silo_of(folder, folder / "silos" / "0.json").advertise(round_id)


def test_a_kill_while_it_writes_leaves_the_old_state_and_no_secrets_beside_it(prepared: tuple[Path, Attempt]) -> None:
    folder, attempt = prepared
    before = (folder / "silos" / "0.json").read_bytes()
    process = multiprocessing.get_context("spawn").Process(target=die_while_writing, args=(folder, bytes(32)))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (folder / "silos" / "0.json").read_bytes() == before
    left = list((folder / "silos").glob(".0.json.*.partial"))
    assert [b'"keys"' in path.read_bytes() for path in left] == [True]
    attempt.finish("sign")
    assert not list((folder / "silos").glob(".0.json.*.partial"))
