"""A run's figures over rounds as TensorBoard scalars, live or after the fact.

The same tags come from a deployed run's events and from a simulated run's ``rounds.jsonl``: ``seconds``, ``answered``,
``update_norm``, ``epsilon``, ``loss``, ``validation/<metric>``, ``stage_seconds/<stage>``, ``refused``, ``budget_left/<silo>``.
A simulation's loss and metrics are measured on all users' data and not protected; a deployment has none.

The event files are written with the ``tensorboard`` package's own record writer and messages, in the calling thread. Their names
do not carry the host's name, as TensorBoard's usual ones do.
"""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from common.durable import write_durably
from common.errors import DataError
from common.status.events import EVENTS, Event, read_events

FOLDER: Final = "tensorboard"
ROUNDS: Final = "rounds.jsonl"

_PREFIX, _SUFFIX = "events.out.tfevents.", ".silorec"
_VERSION = "brain.Event:2"
_METRICS = ("ndcg", "hr", "mrr", "auc", "coverage", "novelty", "diversity")


@dataclass(frozen=True)
class Scalar:
    """One point: ``tag`` in ``round``, at ``time`` (seconds since 1970)."""

    tag: str
    round: int
    value: float
    time: float


class TensorBoardWriter:
    """Fed with a federation's events, writes scalars as they come; a context manager.

    Parameters
    ----------
    folder:
        For ``tensorboard --logdir``; made if it is not there. Every writer begins a file of its own in it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._scalars = _FromEvents()
        self.path = folder / f"{_PREFIX}{time.time():017.6f}.{os.getpid()}{_SUFFIX}"
        self._file = open(self.path, "xb")  # noqa: SIM115  closed by close()
        _write(self._file, [], first=True)

    def tell(self, event: Event) -> None:
        """Take in an event; the scalars of a round are on the disk when it returns."""
        scalars = self._scalars.of(event, time.time())
        if scalars:
            _write(self._file, scalars)
            self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def export(run: Path, out: Path | None = None) -> tuple[Path, int]:
    """Write all scalars of a run, in the place of what was written there before.

    Parameters
    ----------
    run:
        Folder of a simulated or a deployed run.
    out:
        Where to, by default ``run/tensorboard``.

    Returns
    -------
    The folder, and how many scalars are in it.

    Raises
    ------
    DataError
        If the folder holds no run, or nothing was finished in it.
    """
    scalars = list(scalars_of(run))
    if not scalars:
        raise DataError(f"no round was finished in this folder: neither {ROUNDS} nor {EVENTS} tells of one", run)
    folder = out or run / FOLDER
    content = io.BytesIO()
    _write(content, scalars, first=True)
    for old in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        old.unlink()
    write_durably(folder / f"{_PREFIX}{scalars[0].time:017.6f}{_SUFFIX}", content.getvalue())
    return folder, len(scalars)


def scalars_of(run: Path) -> Iterator[Scalar]:
    """All scalars in a run's folder, a simulated run's from its rounds, a deployed one's from its events."""
    if (run / ROUNDS).exists():
        yield from _of_rounds(run / ROUNDS)
        return
    taken = _FromEvents()
    for event, when in read_events(run / EVENTS):
        yield from taken.of(event, when)


class _FromEvents:
    def __init__(self) -> None:
        self._names: list[str] = []

    def of(self, event: Event, when: float) -> list[Scalar]:
        match event["event"]:
            case "run" if isinstance(event.get("silos"), list | tuple):
                self._names = [str(name) for name in event["silos"]]
            case "stage":
                return _points(
                    event["round"], when, {f"stage_seconds/{str(event['stage']).rstrip('0123456789 ')}": event["seconds"]}
                )
            case "round":
                values = {
                    "seconds": event.get("seconds"),
                    "answered": len(event["answered"]),
                    "refused": len(event.get("refused") or ()),
                }
                values["update_norm"] = event.get("update_norm")
                for silo, left in (event.get("budget_left") or {}).items():
                    values[f"budget_left/{self._name(int(silo))}"] = left
                return _points(event["round"], when, values)
        return []

    def _name(self, silo: int) -> str:
        return self._names[silo] if silo < len(self._names) else f"silo {silo}"


def _of_rounds(path: Path) -> Iterator[Scalar]:
    """``rounds.jsonl`` has no times: the last round ended when the file was written, the others by their seconds before."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    lasted = [record.get("seconds") or 0.0 for record in records]
    end = path.stat().st_mtime - sum(lasted)
    for record, seconds in zip(records, lasted, strict=True):
        end += seconds
        values = {key: record.get(key) for key in ("seconds", "answered", "update_norm", "epsilon", "loss")}
        for part in ("validation", "test"):
            for key, value in (record.get(part) or {}).items():
                if key.partition("@")[0] in _METRICS:
                    values[f"{part}/{key}"] = value
        yield from _points(record["round"], end, values)


def _points(number: int, when: float, values: Mapping[str, Any]) -> list[Scalar]:
    """Those that are known and finite."""
    known = ((tag, value) for tag, value in values.items() if isinstance(value, int | float) and math.isfinite(value))
    return [Scalar(tag, number, float(value), when) for tag, value in known]


def _write(file: IO[bytes], scalars: Iterable[Scalar], *, first: bool = False) -> None:
    from tensorboard.compat.proto.event_pb2 import Event as Written
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.summary.writer.record_writer import RecordWriter

    records = RecordWriter(file)
    if first:
        records.write(Written(wall_time=time.time(), file_version=_VERSION).SerializeToString())
    about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    for one in scalars:
        value = Summary.Value(tag=one.tag, simple_value=one.value, metadata=about)
        records.write(Written(wall_time=one.time, step=one.round, summary=Summary(value=[value])).SerializeToString())
