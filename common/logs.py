"""What the processes of silorec log: one format for all lines of a process, for people or as JSON, on standard error.

``text`` is for a terminal. ``json`` is one object per line for whatever gathers logs: ``time`` (UTC, milliseconds), ``level``,
``logger``, ``message``, those of :data:`FIELDS` that the caller gave as ``extra``, and ``exception``. No other ``extra`` is
written, so that nothing gets into a log store by the way. Flower's logger is taken over, whenever Flower is imported.

A process passes its choice on to its children by two environment variables, see :func:`environment`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from common.errors import ConfigError

FORMAT, LEVEL = "SILOREC_LOG_FORMAT", "SILOREC_LOG_LEVEL"

FIELDS: Final = ("run", "round", "stage", "silo", "action", "code", "seconds")
"""What may be given as ``extra``; none of it speaks of a user."""

_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_TEXT: Final = "%(levelname)s %(name)s: %(message)s"
_FLOWER: Final = "flwr"


def configure(verbose: bool | None = None, format: str | None = None, *, stream: TextIO | None = None) -> None:
    """Send what this process logs to ``stream``; may be called again, and then replaces what it did before.

    Parameters
    ----------
    verbose:
        Whether to log from INFO on, else from WARNING; None takes the level of ``SILOREC_LOG_LEVEL``, WARNING where it is unset.
    format:
        ``text`` or ``json``; None takes that of ``SILOREC_LOG_FORMAT``, ``text`` where it is unset.
    stream:
        By default standard error, whatever it is when a line is written.

    Raises
    ------
    ConfigError
        If format or level is none of those there are.
    """
    level = _one_of(LEVEL, os.environ.get(LEVEL, "").upper() or "WARNING", _LEVELS)
    if verbose is not None:
        level = "INFO" if verbose else "WARNING"
    chosen = _one_of(
        FORMAT if format is None else "--log-format", format or os.environ.get(FORMAT, "").lower() or "text", ("text", "json")
    )
    handler = _Lines(stream)
    handler.setLevel(level)
    handler.setFormatter(JsonLines() if chosen == "json" else _Text(_TEXT))
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Lines)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(chosen == "json")
    _take_over_flower()


def configure_from_environment() -> None:
    """As :func:`configure`, for a process that another one of silorec started."""
    configure()


def environment() -> dict[str, str]:
    """The variables that make a child process log as this one does; empty where this one was not configured."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Lines):
            chosen = "json" if isinstance(handler.formatter, JsonLines) else "text"
            return {FORMAT: chosen, LEVEL: logging.getLevelName(handler.level)}
    return {}


class JsonLines(logging.Formatter):
    """One JSON object per record, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        line |= {field: _plain(getattr(record, field)) for field in FIELDS if getattr(record, field, None) is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


@contextlib.contextmanager
def errors_only(name: str) -> Iterator[None]:
    """Inside, logger ``name`` reports errors and nothing less; its level is put back afterwards."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _message(record)
        return super().formatMessage(record)


class _Lines(logging.StreamHandler):
    """The handler of :func:`configure`. Looks for standard error at every line, because processes of Flower exchange it."""

    def __init__(self, stream: TextIO | None) -> None:
        self._given = stream
        super().__init__(stream)

    @property
    def stream(self) -> TextIO:
        """Where the next line goes."""
        return self._given or sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None: ...


class _TakenOver(logging.Filter):
    """Lets every record of a logger pass on to the root, and to no console of its own, also one that was added later."""

    def filter(self, record: logging.LogRecord) -> bool:
        log = logging.getLogger(record.name)
        for handler in [
            one for one in log.handlers if type(one) is logging.StreamHandler or type(one).__name__ == "ConsoleHandler"
        ]:
            log.removeHandler(handler)
        return True


def _take_over_flower() -> None:
    """Flower's module of logging adds a console when it is imported, maybe only later; so it is taken away at every record."""
    log = logging.getLogger(_FLOWER)
    if not any(isinstance(one, _TakenOver) for one in log.filters):
        log.addFilter(_TakenOver())
    log.propagate = True


def _message(record: logging.LogRecord) -> str:
    """Flower indents what it says over several lines."""
    message = record.getMessage()
    return " ".join(message.split()) if record.name == _FLOWER else message


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool) else str(value)


def _one_of(where: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(f"{where} = {value!r}: must be one of {', '.join(allowed)}")
    return value
