"""What the README and the docs say can be done: links lead somewhere, commands parse, settings load, named tests are there."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
import urllib.parse
from collections.abc import Iterator
from functools import lru_cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer

import silorec
from common.assets import ASSETS
from common.config import describe, load
from common.config_docs import render
from common.data.own import OwnSource
from common.errors import ErrorCode
from common.privacy.policy import policy_from_dict
from common.protocol import RELEASED
from common.secagg.roster import KeyRoster
from common.secagg.rules import Rules
from simulations.bench import benches
from simulations.scenario import scenarios

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


SHELL = re.compile(r"\s(?:\|\|?|&&?|[0-9]?>)(?:\s|$)")
"""What ends a command in a line of a shell: a pipe, a redirection, or what goes on beside it or after it."""


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in FENCED.findall(page.read_text(encoding="utf-8")) if language in languages]


def links(page: Path) -> list[str]:
    """Targets of Markdown links and images, and of ``src`` and ``href``."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.extend(v for k, v in attrs if k in ("src", "href") and v)  # type: ignore[method-assign]
    parser.feed(prose(page))
    return found


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def commands(page: Path) -> list[str]:
    """Every ``silorec …`` and ``make …`` line of a shell block, and every one in running text that has arguments."""
    lines = [line.strip().removeprefix("$ ") for code in blocks(page, "bash", "sh", "console") for line in code.splitlines()]
    inline = re.findall(r"`((?:silorec|make) [^`\n]+)`", prose(page))
    return [SHELL.split(line)[0].strip() for line in [*lines, *inline] if line.startswith(("silorec ", "make "))]


@lru_cache(maxsize=1)
def command_line() -> Any:
    """The whole command line as click sees it."""
    return typer.main.get_command(silorec.command_line())


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that a line names, and what is left for it; click's own error if there is none."""
    command, name = command_line(), "silorec"
    while hasattr(command, "commands"):
        context = command.make_context(name, list(words))
        name, command, words = command.resolve_command(context, list(words))
    return command, words


def parse(words: list[str]) -> None:
    """Parse a line without running it; click's own error if its arguments do not fit."""
    command, rest = resolve(words)
    command.make_context(command.name, list(rest))


def test_the_list_of_settings_is_the_codes() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == render(), "docs/configuration.md is stale; common/config_docs.py says how to write it again"


def test_every_setting_has_one_line_with_its_default() -> None:
    lines = [line for line in render().splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert [row[0].strip("`") for row in rows] == [key for key, *_ in describe()]
    assert all(len(row) == 4 for row in rows)
    assert rows[[key for key, *_ in describe()].index("privacy.epsilon")][1:3] == ["number > 0", "`8.0`"]
    unset = {row[0].strip("`") for row in rows if row[2] == "unset"}
    assert unset == {key for key, _, default, _ in describe() if default == "null"}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        target, _, anchor = urllib.parse.unquote(link).partition("#")
        if urllib.parse.urlsplit(link).scheme:
            assert link.startswith("https://")
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.is_relative_to(ROOT), link
        assert file.exists(), f"{page.name}: {link} does not exist"
        assert not anchor or anchor in anchors(file), f"{page.name}: {link}: no such heading"


@pages
def test_commands_parse(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert set(words[1:]) <= targets, line
            continue
        try:
            if resolve(words[1:])[1]:  # a bare `silorec recommend` in a sentence is only a name
                parse(words[1:])
        except Exception as error:
            pytest.fail(f"{page.name}: {line}: {error}")


def test_the_readme_shows_every_command() -> None:
    shown = {tuple(shlex.split(line, comments=True)[1:3]) for page in PAGES for line in commands(page)}
    named = {words[0] for words in shown} | {" ".join(words) for words in shown}
    for name, command in command_line().commands.items():
        for full in [f"{name} {inner}" for inner in getattr(command, "commands", {})] or [name]:
            assert full in named, f"no page shows silorec {full}"


@pages
def test_scenarios_benchmarks_and_assets_are_called_by_their_names(page: Path) -> None:
    known = {"simulate": set(scenarios()), "bench": set(benches()), "fetch": set(ASSETS)}
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[0] == "silorec" and words[1] in known and len(words) > 2 and not words[2].startswith("-"):
            assert words[2] in known[words[1]] or words[2].endswith(".toml") or words[2].isupper(), f"{page.name}: {line}"


@pytest.mark.parametrize("line", ["simulate --no-such-option", "no-such-command", "recommend", "data inspect"])
def test_commands_that_do_not_parse_are_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing"):
        parse(line.split())


@pages
def test_settings_that_are_shown_are_allowed(page: Path) -> None:
    for code in blocks(page, "toml"):
        if code.startswith("# roster.toml"):
            KeyRoster(*zip(*((silo["name"], silo["key"]) for silo in tomllib.loads(code)["silo"]), strict=True))
        elif code.startswith("# silo.toml, its part on data"):
            OwnSource(**tomllib.loads(code)["data"])
        elif code.startswith("# policy.toml"):
            policy_from_dict(tomllib.loads(code))
        else:
            load(tomllib.loads(code))
    keys = {key for key, *_ in describe()}
    sections = {key.rpartition(".")[0] for key in keys}
    for line in commands(page):
        words = shlex.split(line, comments=True)
        load(overrides=[value for option, value in pairwise(words) if option == "--set"])
    for name in re.findall(r"`((?:run|data|partition|model|privacy|training|federation|evaluation)\.[a-z_.0-9]+)`", prose(page)):
        if page.name != "results.md" or name in keys:
            assert name in keys | sections, f"{page.name}: there is no setting {name}"


def imports(code: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


@pages
def test_python_that_is_shown_compiles_and_imports(page: Path) -> None:
    for code in blocks(page, "python"):
        for module, name in imports(code):
            assert hasattr(importlib.import_module(module), name), f"{page.name}: from {module} import {name}"


@pages
def test_named_files_and_tests_are_there(page: Path) -> None:
    text = prose(page)
    for name in re.findall(r"`((?:common|client|server|simulations|tests|docs)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), f"{page.name}: {name} does not exist"
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{page.name}: {file} has no {test}"


def test_the_privacy_page_lists_all_that_leaves_a_silo() -> None:
    text = prose(ROOT / "docs" / "privacy.md")
    rows = {row[0]: row[1] for row in re.findall(r"^\| `([\w.]+)` \| ([^|]*) \|", text, re.MULTILINE)}
    assert set(rows) == set(RELEASED)
    for action, fields in RELEASED.items():
        assert set(re.findall(r"`(\w+)`", rows[action])) == set(fields)
    assert set(re.findall(r"`([A-Z_]{5,})`", text)) - {"RELEASED"} == {code.name for code in ErrorCode}


@pytest.mark.parametrize("name", ["architecture", "deployment", "secure-sum"])
def test_a_picture_is_well_formed_and_asks_nobody(name: str) -> None:
    picture = (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(picture)
    inside = set(root.iter())
    assert {element.tag.rpartition("}")[2] for element in inside}.isdisjoint({"script", "image", "foreignObject"})
    assert re.findall(r"https?://[^\"' )]+", picture) == ["http://www.w3.org/2000/svg"]
    assert "prefers-color-scheme: dark" in picture
    assert float(root.attrib["width"]) <= 800


def test_the_numbers_of_silos_that_a_secure_sum_takes_are_the_codes() -> None:
    text = (ROOT / "docs" / "secure-aggregation.md").read_text(encoding="utf-8")
    table = text.split("| shares that recover a secret | signatures of a quorum |")[1].split("\n\n")[0]
    rows = [[int(cell.replace(",", "")) for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]
    assert len(rows) >= 5
    for silos, *shown in rows:
        rules = Rules(silos)
        plan = rules.plan(silos)
        assert shown == [plan.degree, rules.least, plan.threshold, plan.quorum], silos
