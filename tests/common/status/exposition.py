"""Metrics as a Prometheus server reads them: through HTTP, with prometheus_client's own parser, and judged by promtool."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from common.status.prometheus import serve_metrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(registry: CollectorRegistry) -> str:
    port, close = serve_metrics(0, registry)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return str(answer.read().decode())
    finally:
        close()


def samples(text: str) -> Samples:
    """By name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, /, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def check_by_promtool(text: str) -> None:
    """Prometheus' own lint of names, units and types; skips where promtool is not installed (Debian: prometheus)."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
