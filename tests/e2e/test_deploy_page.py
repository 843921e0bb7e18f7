"""docs/deploy.md, word for word: the commands of its blocks in their order, in an empty home folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"


def commands() -> str:
    """What the page has in blocks of bash, as one script that ends at the first command that fails."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT", *blocks])


def test_the_page_has_commands_for_every_step() -> None:
    script = commands()
    for step in (
        "consortium init",
        "consortium join",
        "ledger init",
        "consortium admit",
        "doctor",
        "client up",
        "server up",
        "audit verify",
    ):
        assert f"silorec {step}" in script


@pytest.mark.slow
def test_the_page_followed_literally_ends_with_a_bundle_and_an_audit_that_holds(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
    kept = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_")) or key.endswith("_proxy")}
    done = subprocess.run(
        ["bash", "-c", commands()],
        env={**kept, "HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1"},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    logs = "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-2000:]}" for log in work.rglob("*.log"))
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}\n{logs}"
    assert (work / "shops/coordinator/runs/first/first.bundle").exists()
    assert not list(home.glob("*.key"))
