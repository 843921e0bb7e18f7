"""What processes log: one format for all lines, whoever writes them, and nothing by the way."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from common import logs
from common.errors import ConfigError

ROOT = Path(logs.__file__).parents[1]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_is_one_object_with_the_fields_that_are_known() -> None:
    out = io.StringIO()
    logs.configure(False, "json", stream=out)
    extra = {"round": 3, "silo": 1, "stage": "train", "code": "INTERNAL", "user": "u17"}
    logging.getLogger("silorec.server").warning("%d of %d\nanswered", 2, 4, extra=extra)
    (line,) = lines(out.getvalue())
    assert abs(datetime.fromisoformat(line.pop("time")).timestamp() - datetime.now().timestamp()) < 60
    assert line == {
        "level": "WARNING", "logger": "silorec.server", "message": "2 of 4\nanswered",
        "round": 3, "stage": "train", "silo": 1, "code": "INTERNAL",
    }  # fmt: skip


def test_an_exception_is_a_field() -> None:
    out = io.StringIO()
    logs.configure(False, "json", stream=out)
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger("a").exception("it broke")
    (line,) = lines(out.getvalue())
    assert line["message"] == "it broke"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("KeyError: 'x'")


def test_warnings_of_python_are_lines_too() -> None:
    out = io.StringIO()
    logs.configure(False, "json", stream=out)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", UserWarning, stacklevel=1)
    assert lines(out.getvalue())[0]["logger"] == "py.warnings"


@pytest.mark.parametrize(("verbose", "seen"), [(False, ["w"]), (True, ["i", "w"])])
def test_how_much_is_logged(verbose: bool, seen: list[str]) -> None:
    out = io.StringIO()
    logs.configure(verbose, "text", stream=out)
    log = logging.getLogger("silorec.levels")
    log.debug("d")
    log.info("i")
    log.warning("w")
    assert [line.split(": ")[1] for line in out.getvalue().splitlines()] == seen


def test_configuring_again_replaces_what_was_there() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure(False, "json", stream=first)
    logs.configure(False, "text", stream=second)
    logging.getLogger("a").warning("once")
    assert (first.getvalue(), second.getvalue()) == ("", "WARNING a: once\n")


def test_a_child_logs_as_its_parent_does(monkeypatch: pytest.MonkeyPatch) -> None:
    logs.configure(True, "json", stream=io.StringIO())
    passed_on = logs.environment()
    assert passed_on == {"SILOREC_LOG_FORMAT": "json", "SILOREC_LOG_LEVEL": "INFO"}
    code = "import logging, common.logs as logs; logs.configure_from_environment(); logging.getLogger('child').info('here')"
    child = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | passed_on, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [(line["logger"], line["message"]) for line in lines(child.stderr)] == [("child", "here")]


@pytest.mark.parametrize("first", [True, False], ids=["flower first", "flower later"])
def test_flower_logs_as_we_do_and_once(first: bool) -> None:
    come = ["import flwr.common.logger as flower", "logs.configure(False, 'json')"]
    code = "; ".join(
        [
            "import logging, common.logs as logs",
            *(come if first else reversed(come)),
            r"flower.log(logging.WARNING, 'DEPRECATED: %s\n\t\tread on', 'x')",
            "flower.log(logging.INFO, 'chatter')",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert [(line["logger"], line["message"]) for line in lines(done.stderr)] == [("flwr", "DEPRECATED: x read on")]


def test_the_command_line_takes_the_format_and_so_does_the_environment() -> None:
    code = "import logging, silorec\ntry: silorec.main({arguments})\nexcept SystemExit: logging.getLogger('x').warning('y')"
    for arguments, variables, expected in (
        (["--log-format", "json", "data", "formats"], {}, '"message": "y"}'),
        (["data", "formats"], {"SILOREC_LOG_FORMAT": "json"}, '"message": "y"}'),
        (["--log-format", "text", "data", "formats"], {"SILOREC_LOG_FORMAT": "json"}, "WARNING x: y"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments=arguments)],
            env=os.environ | variables, cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr.strip().endswith(expected)


@pytest.mark.parametrize(("name", "value"), [("SILOREC_LOG_FORMAT", "xml"), ("SILOREC_LOG_LEVEL", "loud")])
def test_a_setting_that_there_is_not_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        logs.configure()
    monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match="--log-format"):
        logs.configure(False, "yaml")
