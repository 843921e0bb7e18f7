"""The command line: what a person and a script see, and with which status it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

import silorec
from common.config import Config, describe
from simulations.scenario import scenarios

HEAVY = ("torch", "flwr", "transformers", "pyarrow", "sklearn", "pandas", "scipy", "peft", "opacus", "ray", "matplotlib")
SMALL = ("--set", "federation.rounds=1", "--set", "run.device=cpu", "--set", 'evaluation.references=["popularity"]')

NOT_INSTALLED = "silorec: {} is not installed: this needs the extra 'simulate': pip install 'silorec[simulate]'"


def commands() -> Iterator[tuple[str, ...]]:
    """Every command with what leads to it."""

    def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                yield from walk(inner, (*path, name))
        else:
            yield path

    yield from walk(typer.main.get_command(silorec.command_line()), ())


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of the command in this process."""
    with pytest.raises(SystemExit) as ended:
        silorec.main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def python(code: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, in the repository's folder."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(silorec.__file__).parent
    )


@pytest.mark.parametrize("command", [*commands()], ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    status, out, err = run(capsys, *command, "--help")
    assert (status, err) == (0, "")
    assert f"Usage: silorec {' '.join(command)}" in out
    assert f"Example: silorec {' '.join(command)}" in " ".join(out.split())


def test_the_list_of_commands_is_the_designed_one() -> None:
    assert {" ".join(command) for command in commands()} >= {
        "simulate", "recommend", "bench", "fetch", "data inspect", "data formats",
    }  # fmt: skip


def test_no_help_waits_for_a_heavy_library() -> None:
    done = python(
        "import sys, silorec\n"
        f"for command in {[(), *commands()]!r}:\n"
        "    try:\n"
        "        silorec.main([*command, '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, command\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_finished_run_is_printed_and_can_be_asked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = run(
        capsys, "simulate", "smoke", *SMALL, "--silos", "2", "--seed", "5", "--name", "mine", "--out", str(tmp_path)
    )
    assert status == 0
    assert "silorec, 2 silos" in out
    assert "Popularity" in out
    assert str(tmp_path / "mine" / "report.html") in out
    assert "round 1" in err
    result = json.loads((tmp_path / "mine" / "result.json").read_text())
    assert (result["seed"], len(result["silos"])) == (5, 2)

    first = json.loads((tmp_path / "mine" / "catalogue.jsonl").read_text().splitlines()[0])
    folder = str(tmp_path / "mine")
    status, out, err = run(capsys, "recommend", folder, "--history", first["title"], "-k", "3", "--json")
    answer = json.loads(out)
    assert (status, err, answer["history"], len(answer["recommendations"])) == (0, "", [first["title"]], 3)
    status, out, _ = run(capsys, "recommend", folder, "--history", first["id"], "-k", "3")
    assert status == 0
    titles = [entry["title"] for entry in answer["recommendations"]]
    assert [line.strip() for line in out.splitlines()] == [
        f"after {first['title']}:", *(f"{place}. {title}" for place, title in enumerate(titles, start=1)),
    ]  # fmt: skip
    assert run(capsys, "recommend", folder, "--history", "no such film at all")[0] == 2


def test_json_is_all_that_goes_to_standard_output(tmp_path: Path) -> None:
    done = python(f"import silorec; silorec.main(['simulate', 'smoke', *{SMALL!r}, '--json', '--out', {str(tmp_path)!r}])")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "smoke" / "result.json").read_text())
    assert "Traceback" not in done.stderr


def test_lists_of_scenarios_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "simulate", "--list")
    assert status == 0
    assert [line.split(":")[0] for line in out.splitlines()] == list(scenarios())
    assert json.loads(run(capsys, "simulate", "--list", "--json")[1]) == scenarios()
    status, out, _ = run(capsys, "simulate", "--settings")
    assert status == 0
    assert f"privacy.epsilon = {Config().privacy.epsilon}  (float)" in out
    rows = json.loads(run(capsys, "simulate", "--settings", "--json")[1])
    assert [(row["key"], row["type"], row["default"], row["description"]) for row in rows] == describe()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "smoke", "--set", "privacy.epsilom=4"], "unknown setting 'privacy.epsilom'; did you mean 'epsilon'?"),
        (["simulate", "smoke", "--set", "privacy.epsilon=-4"], "privacy.epsilon = -4: input should be greater than 0"),
        (["simulate", "smoke", "--set", "privacy.epsilon"], "expected key=value"),
        (["simulate", "smoke", "--silos", "0"], "partition.silos = 0"),
        (["simulate", "smoke", "--name", "../x"], "name = '../x'"),
        (["simulate", "nosuch"], "no scenario 'nosuch'; there are "),
        (["simulate", "nosuch.toml"], "nosuch.toml: no such file"),
        (["simulate", "smoke", "--set", "data.source=/nosuch"], "data.source = '/nosuch'"),
        (["recommend", "/nosuch", "--history", "x"], "/nosuch: config.toml is missing"),
        (["data", "inspect", "/nosuch"], "/nosuch"),
        (["fetch"], "say what to fetch"),
        (["bench", "nosuch"], "nosuch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("silorec: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in err
    assert err.strip().endswith(lines[0])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [["nosuch"], ["simulate", "--nosuch"], ["recommend", "x"], ["simulate", "--grid", "x"]])
def test_bad_usage_is_status_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert "Usage: silorec" in err


def test_a_goal_that_is_missed_is_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import simulations.bench as bench

    goal = bench.Goal("figure", least=2.0)
    for value, status in ((2.5, 0), (1.5, 1)):
        report = bench.Report("made-up", (bench.Figure("figure", value),), (goal,))
        monkeypatch.setattr(bench, "run_bench", lambda *_, report=report, **__: report)
        assert run(capsys, "bench", "made-up", "--out", str(tmp_path))[0] == status


def test_ctrl_c_is_a_sentence_and_status_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.run.simulate", interrupted)
    status, out, err = run(capsys, "simulate", "smoke", "--json")
    assert (status, out, err) == (130, "", "silorec: interrupted\n")


def test_an_extra_that_is_not_installed_is_named(tmp_path: Path) -> None:
    done = python(
        "import sys, silorec\n"
        "class Absent:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent)\n"
        f"silorec.main(['simulate', 'smoke', '--out', {str(tmp_path)!r}])"
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == NOT_INSTALLED.format("torch")
    assert "Traceback" not in done.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("module", ["flwr", "opacus", "dp_accounting", "implicit", "sklearn"])
def test_so_is_one_that_is_only_missed_on_the_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    def misses(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("simulations.run.simulate", misses)
    assert run(capsys, "simulate", "smoke", "--json") == (2, "", NOT_INSTALLED.format(module) + "\n")


def test_a_module_of_our_own_that_is_missing_is_a_bug_and_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simulations.scenario", None)
    with pytest.raises(ModuleNotFoundError, match=r"simulations.scenario"):
        silorec.main(["simulate", "--list"])


def test_python_users_import_three_names_late() -> None:
    done = python(
        "import sys, silorec; assert 'simulations' not in sys.modules\n"
        "from silorec import audit, simulate, recommend\n"
        "print(simulate.__module__, recommend.__module__, audit.__module__)\n"
        "try:\n    silorec.nosuch\nexcept AttributeError as error:\n    print(error)"
    )
    assert done.stdout.splitlines() == [
        "simulations.run simulations.recommend common.privacy.audit.verify",
        "module 'silorec' has no attribute 'nosuch'",
    ]


def test_an_interrupted_simulation_that_kept_a_round_says_so_and_exits_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text('{"status": "interrupted"}')
    monkeypatch.setattr("simulations.run.simulate", lambda *_, **__: tmp_path)
    assert run(capsys, "simulate", "smoke", "--json") == (130, '{"status": "interrupted"}\n', "silorec: interrupted\n")
