"""What a person sees while a simulation runs: one line of progress, in a terminal or nowhere."""

from __future__ import annotations

import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Watch(Protocol):
    """Told what is going on; must not change it."""

    def stage(self, title: str, total: int | None = None) -> None:
        """A new stage of work begins, ``total`` steps where that is known."""

    def step(self, done: int, note: str = "") -> None:
        """``done`` steps of the stage are over."""

    def say(self, line: str) -> None:
        """A line that stays."""


class Silent:
    """Shows nothing."""

    def stage(self, title: str, total: int | None = None) -> None: ...

    def step(self, done: int, note: str = "") -> None: ...

    def say(self, line: str) -> None: ...


class Terminal:
    """A rich progress bar on standard error, with the time that is left; a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._title = ""
        self._total: int | None = None
        self._began = 0.0

    def __enter__(self) -> Terminal:
        self._progress.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._progress.stop()

    def stage(self, title: str, total: int | None = None) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._title, self._total, self._began = title, total, time.monotonic()
        self._task = self._progress.add_task(title, total=total, note="")

    def step(self, done: int, note: str = "") -> None:
        if self._task is None:
            return
        if self._total and 0 < done < self._total:
            left = (time.monotonic() - self._began) / done * (self._total - done)
            note = f"{note} · {_minutes(left)} left" if note else f"{_minutes(left)} left"
        self._progress.update(self._task, completed=done, note=note)

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, markup=False)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
