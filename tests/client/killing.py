"""A silo that is killed again and again while it answers: ``python -m tests.client.killing FOLDER SEED LIVES``.

One process plays the other side. It forks the silo, gives it SIGKILL at a planned place or after a random time, and keeps what
came through the pipe before: that is what has left the silo. Then it looks at the ledger as an auditor would, and starts the
next life with the first question that was not answered. It prints a JSON line for each life.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import client.dp_steps
import client.releases
from client.place import KEY, LEDGER, Place
from client.silo import Silo
from common.config import Config
from common.model.resident import resident
from common.privacy.accountant import epsilon
from common.privacy.events import Event
from common.privacy.filter import epsilon_at, rdp_at
from common.privacy.ledger import Ledger
from common.privacy.policy import Policy
from common.privacy.signing import create_key
from common.protocol import COUNT, TRAIN, AdapterRequest, Request, answer_digest, config_hash, question_digest
from tests import tiny

ROUNDS = 400
#: Where a life may end by plan: around each step of a release, and around the release itself.
PLACES = ("reserve", "reserved", "computed", "kept", "committed", "released", "in the middle of computing")


def settings() -> Config:
    return tiny.config(privacy__mode="silo", federation__rounds=ROUNDS, training__local_steps=1)


def questions(config: Config) -> list[tuple[str, Request]]:
    """What the coordinator asks, one after the other; each round's adapter is another."""
    home, this = resident(config), config_hash(config)
    train = [
        AdapterRequest(
            config_hash=this,
            round=number,
            manifest_hash=home.manifest.hash,
            vector=(home.start + np.float32(1e-4 * number)).astype(np.float32),
        )
        for number in range(1, ROUNDS + 1)
    ]
    return [(COUNT, Request(config_hash=this)), *((TRAIN, request) for request in train)]


def live(config: Config, folder: Path, start: int, pipe: int, end: str | None, after: int) -> None:
    """Answer from question ``start`` on; die at the ``after``-th time that the place ``end`` is reached."""
    left = [after]

    def reached(place: str) -> None:
        if place == end:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str, before: str | None, behind: str | None) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if before:
                reached(before)
            result = real(*args, **kwargs)
            if behind:
                reached(behind)
            return result

        setattr(owner, name, watched)

    around(Ledger, "reserve", "reserve", "reserved")
    around(client.releases, "write_kept", "computed", "kept")
    around(Ledger, "commit", None, "committed")
    around(client.dp_steps, "per_user_gradients", "in the middle of computing", None)
    silo = Silo(config, Place(0, folder, simulated=True))
    for number, (action, request) in enumerate(questions(config)[start:], start=start):
        fields = silo.count(request) if action == COUNT else silo.train(request)  # type: ignore[arg-type]
        os.write(pipe, json.dumps({"number": number, "answer": answer_digest(action, fields)}).encode() + b"\n")
        reached("released")


def kill_and_listen(child: int, pipe: int, seconds: float | None) -> list[dict[str, Any]]:
    """What the silo said until it died."""
    until = None if seconds is None else time.monotonic() + seconds
    said = b""
    while True:
        wait = None if until is None else max(0.0, until - time.monotonic())
        ready, _, _ = select.select([pipe], [], [], wait)
        if not ready:
            os.kill(child, signal.SIGKILL)
            until = None
            continue
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            break
        said += chunk
    os.waitpid(child, 0)
    return [json.loads(line) for line in said.splitlines() if line.endswith(b"}")]


def look(
    folder: Path, held: dict[int, str], asked: list[tuple[str, Request]], events: list[Event], delta: float
) -> dict[str, Any]:
    """The auditor's look at the ledger: what it counts against what the other side holds."""
    from common.privacy.ledger import read_ledger

    chain = read_ledger(folder / LEDGER)
    policy = chain.policy
    order = policy.order or 2.0
    charged = [what.released for _, what in chain.reservations]
    released = [events[number] for number in held]
    committed = {
        (what.question, chain.commitments[entry.seq].what.answer)
        for entry, what in chain.reservations
        if entry.seq in chain.commitments
    }
    return {
        "charged": epsilon_at(sum(rdp_at(e, order) for e in charged), order, delta),
        "released": epsilon_at(sum(rdp_at(e, order) for e in released), order, delta),
        "charged_rdp": epsilon(charged, delta),
        "released_rdp": epsilon(released, delta),
        "reservations": len(charged),
        "held": len(held),
        "all_committed": all((question_digest(*asked[n]), answer) in committed for n, answer in held.items()),
        "findings": [str(finding) for finding in chain.findings],
    }


def main(folder: Path, seed: int, lives: int) -> None:
    rng = random.Random(seed)
    config = settings()
    asked = questions(config)
    plan = Silo(config, Place(0, folder, simulated=True)).plan
    events = plan.all_events()
    policy = Policy(silo="silo-0", epsilon=3 * config.privacy.epsilon, delta=plan.delta, coordinators=("any",))
    folder.mkdir(parents=True, exist_ok=True)
    Ledger.create(folder / LEDGER, policy, create_key(folder / KEY))
    held: dict[int, str] = {}
    for life in range(lives):
        end = PLACES[life % len(PLACES)] if life % 2 == 0 else None
        seconds = None if end else rng.uniform(0.0, 0.6)
        start = next(n for n in range(len(asked)) if n not in held)
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receive)
            try:
                live(config, folder, start, send, end, rng.randint(1, 3))
            finally:
                os._exit(1)
        os.close(send)
        said = kill_and_listen(child, receive, seconds)
        os.close(receive)
        repeated = [s["number"] for s in said if held.get(s["number"], s["answer"]) != s["answer"]]
        held |= {s["number"]: s["answer"] for s in said}
        if not (folder / LEDGER).exists():
            raise SystemExit("the ledger is gone")
        line = {"life": life, "end": end or f"after {seconds:.3f} s", "told": len(said), "repeated": repeated}
        print(json.dumps(line | look(folder, held, asked, events, plan.delta)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
