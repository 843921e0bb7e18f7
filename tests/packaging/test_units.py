"""The systemd units: systemd itself takes them and finds them closed; their commands are silorec's.

Whether a service works under these restrictions has to be tried where systemd runs as the first process.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.images import ROOT

UNITS = tuple(sorted((ROOT / "packaging" / "systemd").glob("*.service")))
USERS = ROOT / "packaging" / "systemd" / "silorec.sysusers.conf"

#: Of 10; systemd calls up to 2 "OK". What is left is the network, and that PyTorch makes code as it runs.
MOST_EXPOSED = 2.0

#: Newer systemd knows these two, for back-off; that of Debian bookworm (252) says that it ignores them.
NEWER = ("RestartSteps", "RestartMaxDelaySec")

every = pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def options(path: Path, section: str = "Service") -> dict[str, str]:
    """A section; of an option that is there several times, the last."""
    parser = configparser.RawConfigParser(strict=False, delimiters="=", comment_prefixes="#", interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return dict(parser[section])


def put_in_place(path: Path, folder: Path) -> Path:
    """The unit with a command that is there: systemd looks for it."""
    command = folder / "silorec"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    placed = folder / path.name
    placed.write_text(path.read_text().replace("/opt/silorec/bin/silorec ", f"{command} "))
    assert str(command) in placed.read_text()
    return placed


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def test_there_is_a_unit_for_each_side() -> None:
    assert [path.name for path in UNITS] == ["silorec-client.service", "silorec-server.service"]


@systemd
@every
def test_systemd_takes_it(path: Path, tmp_path: Path) -> None:
    done = analyze("verify", str(put_in_place(path, tmp_path)))
    said = [line for line in done.stderr.splitlines() if path.name in line and not any(name in line for name in NEWER)]
    assert (done.returncode, said) == (0, [])


@systemd
def test_systemd_would_not_take_another(tmp_path: Path) -> None:
    placed = put_in_place(UNITS[0], tmp_path)
    placed.write_text(placed.read_text().replace("ProtectSystem=strict", "ProtectSistem=strict"))
    assert "Unknown key 'ProtectSistem'" in analyze("verify", str(placed)).stderr
    (tmp_path / "silorec").unlink()
    assert analyze("verify", str(placed)).returncode != 0


@systemd
@every
def test_systemd_finds_it_closed(path: Path, tmp_path: Path) -> None:
    placed = put_in_place(path, tmp_path)
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED * 10:.0f}", str(placed))
    assert done.returncode == 0, done.stdout
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= MOST_EXPOSED
    open_unit = tmp_path / "open.service"
    open_unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED * 10:.0f}", str(open_unit)).returncode != 0


@every
def test_its_command_is_silorecs(path: Path) -> None:
    program, *words = shlex.split(options(path)["ExecStart"])
    assert program == "/opt/silorec/bin/silorec"
    assert words[:2] == ["--log-format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "silorec", *words, "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert words[2:4] in (["server", "up"], ["client", "up"])
    assert f"silorec {words[2]} {words[3]}" in done.stdout


@every
def test_it_starts_again_with_patience_but_not_after_bad_input(path: Path) -> None:
    service, unit = options(path), options(path, "Unit")
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert int(service["RestartSec"]) < int(service["RestartMaxDelaySec"])
    assert int(unit["StartLimitBurst"]) * int(service["RestartSec"]) < int(unit["StartLimitIntervalSec"]), (
        "the limit is never met"
    )
    assert int(service["TimeoutStopSec"]) >= 30
    assert int(service["LimitNOFILE"]) >= 65536


@every
def test_it_writes_in_its_own_folder_only(path: Path) -> None:
    service = options(path)
    assert service["ProtectSystem"] == "strict"
    assert service["StateDirectory"] == "silorec"
    assert service["StateDirectoryMode"] == "0700"
    assert service["UMask"] == "0077"
    assert "ReadWritePaths" not in service
    written = [word for word in shlex.split(service["ExecStart"])[1:] if word.startswith("/")]
    assert written
    assert all(word.startswith("/var/lib/silorec/") for word in written)
    assert service["NoNewPrivileges"] == "yes"
    assert service["CapabilityBoundingSet"] == ""


@every
def test_its_user_is_made_and_is_not_root(path: Path, tmp_path: Path) -> None:
    (line,) = [line for line in USERS.read_text().splitlines() if not line.startswith("#")]
    kind, name, number, _, home, shell = shlex.split(line)
    assert (kind, name, number, home, shell) == ("u", options(path)["User"], "-", "/var/lib/silorec", "/usr/sbin/nologin")
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("systemd-sysusers is not installed")
    (tmp_path / "etc" / "sysusers.d").mkdir(parents=True)
    shutil.copy(USERS, tmp_path / "etc" / "sysusers.d" / "silorec.conf")
    done = subprocess.run(["systemd-sysusers", "--root", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^silorec:x:\d+:\d+:silorec:/var/lib/silorec:/usr/sbin/nologin$", (tmp_path / "etc" / "passwd").read_text(), re.M
    )
