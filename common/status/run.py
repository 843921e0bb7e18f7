"""What the events of a federation come to: where a run is, what each silo did, how long rounds take and how long is left.

Nothing here reads or writes: :class:`RunSoFar` is fed with events, live or from ``events.jsonl``, and says the same either way.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final

from common.protocol import BUDGET, ENROL
from common.status.events import Event, stamp

WAITING, ANSWERED, REFUSED, NO_ANSWER = "waiting", "answered", "refused", "no answer"
LEFT_OUT, ABSENT = "left out", "absent"

#: What a silo can be: not asked yet; or what it did when it was last asked; or left out for failures; or absent, because the
#: roster does not admit it any more.
SILO_STATES: Final = (WAITING, ANSWERED, REFUSED, NO_ANSWER, LEFT_OUT, ABSENT)

#: What a run can be; it is alive in the first two.
RUN_STATES: Final = ("waiting", "round", "finished", "failed", "stopped")

RECENT: Final = 10
"""Rounds whose median says how long the next one takes."""

_MOST_FAILURES = 20


@dataclass
class Silo:
    """One silo, as the coordinator sees it. ``budget_left`` is the last that it showed, or None."""

    number: int
    name: str
    state: str = WAITING
    until_round: int | None = None
    reason: str = ""
    rounds_answered: int = 0
    rounds_missed: int = 0
    last_round: int | None = None
    last_code: str | None = None
    last_code_round: int | None = None
    budget_left: float | None = None

    def in_words(self) -> str:
        """``answered``, ``refused BUDGET_EXHAUSTED``, ``left out until round 7``."""
        return state_in_words(vars(self))


@dataclass(frozen=True)
class Round:
    """One finished round: which silos answered, which refused and why, and what the others were at its end."""

    number: int
    time: float
    seconds: float | None
    update_norm: float | None
    states: Mapping[int, str]
    refused: Mapping[int, str]

    @property
    def answered(self) -> tuple[int, ...]:
        """Numbers of the silos whose answers are in the round."""
        return tuple(silo for silo, state in self.states.items() if state == ANSWERED)


@dataclass
class RunSoFar:
    """All events so far, folded. ``names`` are the silos', in the roster's order; without them those of the events count."""

    names: Sequence[str] = ()
    run: str = ""
    config: str = ""
    mode: str = ""
    state: str = WAITING
    since: float | None = None
    reason: str = ""
    planned: int | None = None
    current: int | None = None
    stage: str | None = None
    stage_since: float | None = None
    asked: int = 0
    stage_answered: int | None = None
    round_since: float | None = None
    asked_in_round: set[int] = field(default_factory=set)
    silos: dict[int, Silo] = field(default_factory=dict)
    rounds: dict[int, Round] = field(default_factory=dict)
    failures: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=_MOST_FAILURES))
    attempts: int = 0

    def tell(self, event: Event, time: float) -> None:
        """Take in one event; one of an unknown name changes nothing."""
        match event["event"]:
            case "run":
                self._begins(event, time)
            case "stage_begins" | "stage":
                self._stage(event, time)
            case "left_out":
                self._leaves_out(event)
            case "invited":
                silo = self._silo(event["silo"])
                silo.state, silo.until_round, silo.reason = WAITING, None, ""
            case "round":
                self._round(event, time)
            case "finished" | "failed" | "stopped" as end:
                self.state, self.since, self.reason = end, time, str(event.get("reason", ""))
                self.stage = self.stage_since = self.current = self.round_since = None
                if end == "failed":
                    self.failures.append((time, self.reason))

    @property
    def last(self) -> Round | None:
        """The last finished round."""
        return self.rounds[max(self.rounds)] if self.rounds else None

    def usual_seconds(self) -> float | None:
        """Median of the last :data:`RECENT` rounds of training; of round 0, the count, while there is no other."""
        known = [one.seconds for number, one in sorted(self.rounds.items()) if one.seconds is not None and number > 0]
        count = self.rounds[0].seconds if 0 in self.rounds else None
        return statistics.median(known[-RECENT:]) if known else count

    def seconds_left(self, now: float) -> float | None:
        """An estimate: the rounds to do at the usual speed, less what the round now has taken; None where nothing is known."""
        usual = self.usual_seconds()
        if usual is None or self.planned is None or self.last is None or self.state not in ("waiting", "round"):
            return None
        begun = 0.0 if self.round_since is None else min(max(0.0, now - self.round_since), usual)
        return max(0.0, (self.planned - self.last.number) * usual - begun)

    def to_dict(self, now: float) -> dict[str, Any]:
        """Plain values for ``status.json``."""
        last = self.last
        return {
            "kind": "run",
            "run": self.run,
            "config": self.config,
            "mode": self.mode,
            "state": self.state,
            "reason": self.reason,
            "since": None if self.since is None else stamp(self.since),
            "round": None if last is None else last.number,
            "rounds": self.planned,
            "current_round": self.current,
            "stage": self.stage
            and {
                "name": self.stage,
                "since": None if self.stage_since is None else stamp(self.stage_since),
                "asked": self.asked,
                "answered": self.stage_answered,
            },
            "last_round": last
            and {
                "time": stamp(last.time),
                "seconds": last.seconds,
                "answered": len(last.answered),
                "update_norm": last.update_norm,
            },
            "seconds_per_round": self.usual_seconds(),
            "seconds_left": self.seconds_left(now),
            "attempts": self.attempts,
            "failures": [{"time": stamp(time), "reason": reason} for time, reason in self.failures],
            "silos": [vars(self.silos[number]).copy() for number in sorted(self.silos)],
        }

    def _begins(self, event: Event, time: float) -> None:
        self.run = str(event.get("name") or self.run)
        self.config, self.mode = (str(event.get(key, "")) for key in ("config", "mode"))
        self.planned, self.attempts = event.get("rounds"), self.attempts + 1
        self.state, self.since, self.reason = WAITING, time, ""
        self.stage = self.stage_since = self.current = self.round_since = None
        self.asked_in_round = set()
        to_do = event.get("from_round")
        if to_do is not None:  # what is not in the checkpoint any more did not happen
            self.rounds = {number: one for number, one in self.rounds.items() if number < to_do}
        silos = event.get("silos", ())
        names = [f"silo {number}" for number in range(silos)] if isinstance(silos, int) else [str(name) for name in silos]
        for number, name in enumerate(self.names or names):
            self._silo(number).name = name
        for silo in self.silos.values():  # a coordinator that is started again asks everybody
            silo.state, silo.until_round, silo.reason = WAITING, None, ""

    def _stage(self, event: Event, time: float) -> None:
        """One begins, or is over; only then there are ``seconds`` and answers."""
        lasted = event.get("seconds")
        began, number = time - (lasted or 0.0), event.get("round")
        if self.state != "round":
            self.state, self.since = "round", began
        if self.round_since is None:
            self.round_since = began
        self.stage, self.stage_since = str(event["stage"]), began
        self.asked, self.stage_answered = len(event["asked"]), None if lasted is None else len(event["answered"])
        if self.stage in (ENROL, BUDGET):  # no part of a round
            return
        if number is not None and (self.last is None or number > self.last.number):
            self.current = number
        self.asked_in_round |= {int(silo) for silo in event["asked"]}
        if lasted is not None:
            self._answers(event["asked"], event["answered"], event.get("refused") or {}, number)

    def _leaves_out(self, event: Event) -> None:
        silo = self._silo(event["silo"])
        silo.state, silo.reason, silo.until_round = LEFT_OUT, str(event.get("reason", "")), event.get("until_round")

    def _round(self, event: Event, time: float) -> None:
        """In round 0 of a model that needs no count nobody is asked."""
        number, refused = int(event["round"]), _by_number(event.get("refused") or {})
        answered = {int(silo) for silo in event["answered"]}
        for number_of_silo in answered | set(refused):
            self._silo(number_of_silo)
        asked = (
            (self.asked_in_round or {silo for silo, one in self.silos.items() if one.state != LEFT_OUT}) | answered | set(refused)
        )
        states = dict.fromkeys(sorted(self.silos), WAITING)
        if answered or refused:
            states = {
                silo: _outcome(silo, answered, set(refused), asked, left_out=self.silos[silo].state == LEFT_OUT)
                for silo in states
            }
            self._answers(asked, answered, refused, number)
            for silo, one in self.silos.items():
                one.rounds_answered += silo in answered
                one.rounds_missed += silo not in answered
                one.last_round = number if silo in answered else one.last_round
                one.state = ABSENT if states[silo] == ABSENT else one.state
        for silo, left in _by_number(event.get("budget_left") or {}).items():
            if left is not None:
                self._silo(silo).budget_left = left
        codes = {silo: str(code) for silo, code in refused.items()}
        self.rounds[number] = Round(number, time, event.get("seconds"), event.get("update_norm"), states, codes)
        self.state, self.since, self.asked_in_round = WAITING, time, set()
        self.stage = self.stage_since = self.current = self.round_since = None

    def _answers(self, asked: Iterable[int], answered: Iterable[int], refused: Mapping[Any, Any], number: int | None) -> None:
        """What the silos did that were asked; one that was left out for it stays so until it is invited or answers."""
        there, codes = {int(silo) for silo in answered}, _by_number(refused)
        for silo in {int(one) for one in asked} | there | set(codes):
            one = self._silo(silo)
            if silo in there:
                one.state, one.until_round, one.reason = ANSWERED, None, ""
            elif one.state != LEFT_OUT:
                one.state = REFUSED if silo in codes else NO_ANSWER
            if silo in codes:
                one.last_code, one.last_code_round = str(codes[silo]), number

    def _silo(self, number: Any) -> Silo:
        number = int(number)
        if number not in self.silos:
            self.silos[number] = Silo(number, self.names[number] if number < len(self.names) else f"silo {number}")
        return self.silos[number]


def _outcome(silo: int, answered: Set[int], refused: Set[int], asked: Set[int], *, left_out: bool) -> str:
    """Of one silo in one round."""
    if silo in answered:
        return ANSWERED
    if silo in refused:
        return REFUSED
    if silo in asked:
        return NO_ANSWER
    return LEFT_OUT if left_out else ABSENT


def state_in_words(silo: Mapping[str, Any]) -> str:
    """Of a silo in ``status.json``, for people."""
    if silo["state"] == REFUSED and silo["last_code"]:
        return f"{REFUSED} {silo['last_code']}"
    if silo["state"] == LEFT_OUT and silo["until_round"] is not None:
        return f"{LEFT_OUT} until round {silo['until_round']}"
    if silo["state"] == LEFT_OUT:
        return f"{LEFT_OUT} for good" if silo["reason"] in ("", silo["last_code"]) else f"{LEFT_OUT} for good: {silo['reason']}"
    return str(silo["state"])


def folded(events: Iterable[tuple[Event, float]], names: Sequence[str] = ()) -> RunSoFar:
    """The state after ``events``, each with its time."""
    run = RunSoFar(names)
    for event, time in events:
        run.tell(event, time)
    return run


def _by_number(mapping: Mapping[Any, Any]) -> dict[int, Any]:
    """JSON makes text of a mapping's numbers."""
    return {int(number): value for number, value in mapping.items()}
