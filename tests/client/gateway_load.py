"""Load for the gateway: processes that ask over connections that stay open, and keep what they are told to compare.

Run as a program: ``python -m tests.client.gateway_load HOST PORT REQUESTS`` reads questions, one JSON body a line, from standard
input, asks them in turn, and prints as JSON how many were answered, and every different ``(question, digest, body's SHA-256)``.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import silorec


@dataclass(frozen=True)
class Heard:
    """What one process got: how often which ``(question's number, header's digest, SHA-256 of the body)``, and what failed."""

    answers: dict[tuple[int, str, str], int]
    failed: list[str]

    @property
    def requests(self) -> int:
        return sum(self.answers.values())


def asking(address: str, questions: list[str], requests: int, processes: int) -> list[subprocess.Popen[str]]:
    """Processes that ask ``requests`` in all; they run beside the caller."""
    host, port = address.removeprefix("http://").split(":")
    started = []
    for i in range(processes):
        share = requests // processes + (i < requests % processes)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.client.gateway_load", host, port, str(share)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(silorec.__file__).parent,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write("\n".join(questions))
        process.stdin.close()
        started.append(process)
    return started


def heard(processes: list[subprocess.Popen[str]]) -> list[Heard]:
    """Wait for them, and take what they printed."""
    found = []
    for process in processes:
        assert process.stdout is not None
        told = json.loads(process.stdout.read())
        process.stdout.close()
        assert process.wait() == 0
        found.append(Heard({(i, digest, body): n for i, digest, body, n in told["answers"]}, told["failed"]))
    return found


def _ask(host: str, port: int, requests: int, questions: list[bytes]) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    answers: dict[tuple[int, str, str], int] = {}
    failed: list[str] = []
    headers = {"Content-Type": "application/json"}
    for turn in range(requests):
        number = turn % len(questions)
        try:
            connection.request("POST", "/v1/recommend", questions[number], headers)
            reply = connection.getresponse()
            body = reply.read()
        except (OSError, http.client.HTTPException) as error:
            failed.append(type(error).__name__)
            connection.close()
            continue
        if reply.status != 200:
            failed.append(str(reply.status))
            continue
        key = (number, reply.headers["Silorec-Bundle"], hashlib.sha256(body).hexdigest())
        answers[key] = answers.get(key, 0) + 1
    sys.stdout.write(json.dumps({"answers": [[*key, n] for key, n in answers.items()], "failed": failed}))


if __name__ == "__main__":
    _ask(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.stdin.buffer.read().splitlines())
