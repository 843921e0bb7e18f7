"""``silorec serve`` as a process: it says when it is ready, takes new bundles, and ends without losing a question."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

import silorec
from client.recommending import RemoteRecommender
from client.remote import Certificates
from common.bundle.contents import Bundle
from common.privacy.signing import SigningKey
from common.proto import path_of
from common.proto import recommender_pb2 as messages
from server.serving.limits import Limits
from simulations.bench.certificates import Authority, Pair
from tests.bundles import write_tiny
from tests.server.serving.running_service import InThread, Running, question, raw_call, refusal

ROOT = Path(silorec.__file__).parent


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The command in a process of its own, ready, and what it said then."""
    command = [sys.executable, "-m", "silorec", "serve", *arguments, "--port", "0", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            assert line, running.stderr.read() if running.stderr else ""
            yield running, json.loads(line)
        finally:
            if running.poll() is None:
                running.terminate()
                running.wait(30)


def test_the_command_serves_over_tls_and_ends_on_sigterm(
    tmp_path: Path, key: SigningKey, authority: Authority, service_certificate: Pair
) -> None:
    bundle = write_tiny(tmp_path / "a.bundle", key)
    (tmp_path / "coordinator.pub").write_text(key.public_key + "\n")
    tls = (service_certificate.certificate, service_certificate.key, authority.certificate)
    north = authority.sign("north", file="served-north")
    options = [part for pair in zip(("--tls-cert", "--tls-key", "--client-ca"), map(str, tls), strict=True) for part in pair]
    named = ("--bundle", str(tmp_path / "a.bundle"), "--signer", str(tmp_path / "coordinator.pub"))
    with process(*named, *options, "--metrics-port", "0") as (running, facts):
        assert facts["tls"] is True
        assert facts["bundle"] == bundle.digest
        port = facts["address"].rpartition(":")[2]
        certificates = Certificates(north.certificate, north.key, authority.certificate)
        with RemoteRecommender(f"localhost:{port}", bundle, certificates) as remote:
            assert len(remote.recommend([1, 2, 3], 5)) == 5
            newer = write_tiny(tmp_path / "a.bundle", key, seed=9)
            deadline = time.monotonic() + 20
            metrics = f"http://127.0.0.1:{facts['metrics_port']}/metrics"
            with grpc.secure_channel(f"localhost:{port}", certificates.credentials()) as channel:
                while raw_call(channel, "GetCard")(b"", timeout=5)[2:34].hex() != newer.digest:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            page = urllib.request.urlopen(metrics, timeout=5).read().decode()
            assert 'silorec_calls_total{method="Recommend",silo="north",status="OK"} 1.0' in page
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=30)
        assert running.returncode == 0
        assert (out, err) == ("", "")


def test_calls_under_way_are_answered_and_health_changes_before_the_end(
    bundle_file: Path, bundle: Bundle, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    leave, entered = threading.Event(), threading.Event()
    with Running(bundle_file, key.public_key, open_engine=InThread) as running:
        top = running.live.engine.top

        def held(*arguments: Any) -> Any:
            entered.set()
            assert leave.wait(20)
            return top(*arguments)

        monkeypatch.setattr(running.live.engine, "top", held)
        raw = question(bundle.catalogue_fingerprint, (1,))
        with grpc.insecure_channel(running.target) as channel, ThreadPoolExecutor(24) as pool:
            states = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
            assert next(states).status == health_pb2.HealthCheckResponse.SERVING
            asked = [pool.submit(raw_call(channel), raw, timeout=20) for _ in range(20)]
            assert entered.wait(10)
            until = time.monotonic() + 10
            while running.metric("silorec_calls_under_way") < 20:
                assert time.monotonic() < until
                time.sleep(0.01)
            running.ask_to_stop()
            assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
            time.sleep(0.3)
            with grpc.insecure_channel(running.target, options=(("grpc.use_local_subchannel_pool", 1),)) as late:
                assert refusal(lambda: raw_call(late)(raw, timeout=5))[0] is grpc.StatusCode.UNAVAILABLE
            leave.set()
            answers = [messages.RecommendResponse.FromString(future.result(20)) for future in asked]
            assert {(answer.bundle.hex(), answer.positions[0]) for answer in answers} == {
                (bundle.digest, answers[0].positions[0])
            }
            began = time.monotonic()
            running.stop()
            assert time.monotonic() - began < 5.0  # nothing waits for the whole of the grace


def test_a_caller_without_a_deadline_gets_the_services(
    bundle_file: Path, bundle: Bundle, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = threading.Event()
    limits = Limits(deadline=1.0, waiting=64, under_way=70, under_way_of_one=68)
    with (
        Running(bundle_file, key.public_key, limits=limits, open_engine=InThread) as running,
        grpc.insecure_channel(running.target) as channel,
    ):
        top = running.live.engine.top
        monkeypatch.setattr(running.live.engine, "top", lambda *arguments: (leave.wait(20), top(*arguments))[1])
        raw = question(bundle.catalogue_fingerprint, (1,))
        for timeout in (None, 60.0, 0.1):
            began = time.monotonic()
            code, _ = refusal(lambda timeout=timeout: raw_call(channel)(raw, timeout=timeout))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert time.monotonic() - began < 3.0
        with ThreadPoolExecutor(80) as pool:  # and whoever is too much is told so at once
            told = [*pool.map(lambda _: refusal(lambda: raw_call(channel)(raw, timeout=10)), range(80))]
        codes = [code.name for code, _ in told]
        assert set(codes) == {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
        leave.set()
        time.sleep(0.2)
        assert raw_call(channel)(raw, timeout=10)


def test_few_streams_at_once(bundle_file: Path, key: SigningKey) -> None:
    limits = Limits(downloads=3, downloads_of_one=3, download_deadline=0.5)
    with Running(bundle_file, key.public_key, limits=limits) as running, grpc.insecure_channel(running.target) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        open_streams = [watch(b"", timeout=20) for _ in range(3)]
        for stream in open_streams:
            next(stream)
        assert refusal(lambda: next(watch(b"", timeout=5)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal(lambda: next(channel.unary_stream(path_of("GetBundle"))(b"", timeout=5)))[0].name == "RESOURCE_EXHAUSTED"
        assert refusal(lambda: next(open_streams[0]))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        time.sleep(0.2)
        assert next(watch(b"", timeout=5))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --tls-cert, --tls-key and --client-ca together, or --insecure"),
        (["--insecure", "--host", "0.0.0.0"], "0.0.0.0: without TLS it is served to this machine only"),
        (["--insecure", "--tls-cert", "x"], "or --insecure to serve this machine alone"),
        (["--insecure", "--deny", "x"], "--allow and --deny are about certificates"),
        (["--tls-cert", "x", "--tls-key", "y"], "together"),
        (["--tls-cert", "none.pem", "--tls-key", "none.key", "--client-ca", "none.ca"], "none.pem: cannot be read"),
        (["--insecure", "--burst", "5"], "burst = 5"),
        (["--insecure", "--bundle", "none.bundle"], "none.bundle: no such file"),
        (["--insecure", "--signer", "00" * 32], "not among the 1 trusted signers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_one_sentence(
    capsys: pytest.CaptureFixture[str], bundle_file: Path, key: SigningKey, arguments: list[str], said: str
) -> None:
    given = list(arguments)
    for option, value in (("--bundle", str(bundle_file)), ("--signer", key.public_key)):
        if option not in given:
            given += [option, value]
    with pytest.raises(SystemExit) as ended:
        silorec.main(["serve", *given])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("silorec: ")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_port_that_is_taken_is_one_sentence(capsys: pytest.CaptureFixture[str], bundle_file: Path, key: SigningKey) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        served = ["serve", "--bundle", str(bundle_file), "--signer", key.public_key, "--insecure"]
        for options in (["--port", port], ["--port", "0", "--metrics-port", port]):
            with pytest.raises(SystemExit) as ended:
                silorec.main([*served, *options])
            err = capsys.readouterr().err
            assert ended.value.code == 2
            assert "cannot be listened at" in err
