"""``silorec gateway`` as people start and end it."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from client.gateway.server import hosts_for, listening
from common.errors import ServingError
from common.privacy.signing import SigningKey, create_key
from tests.bundles import write_tiny
from tests.client.gateway_server import command
from tests.made_up_shop import shop_bundle
from tests.test_cli import python, run


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return create_key(tmp_path_factory.mktemp("keys") / "signer.key")


@pytest.fixture
def bundle(tmp_path: Path, key: SigningKey) -> Path:
    write_tiny(tmp_path / "shop.bundle", key)
    return tmp_path / "shop.bundle"


def test_it_says_where_it_listens_takes_a_new_bundle_and_ends_quietly(tmp_path: Path, bundle: Path, key: SigningKey) -> None:
    (tmp_path / "signer.pub").write_text(key.public_key + "\n")
    options = ["--bundle", str(bundle), "--signer", str(tmp_path / "signer.pub"), "--title", "Made-up shop"]
    with command(*options, "--admin-token-file", str(tmp_path / "token"), stderr=tmp_path / "stderr") as running:
        first = running.facts["bundle"]
        assert running.facts["signer"] == key.public_key
        assert 0 < running.facts["seconds"] < 60
        with httpx.Client(base_url=running.address) as asking:
            assert "<h1>Made-up shop</h1>" in asking.get("/").text
            assert asking.post("/v1/recommend", json={"history": ["zebrafinch"]}).status_code == 422
            assert asking.post("/v1/recommend", json={"history": ["i1"]}).json()["bundle"] == first
            second = write_tiny(bundle.with_suffix(".partial"), key, seed=1)
            os.replace(bundle.with_suffix(".partial"), bundle)
            for _ in range(100):
                if asking.get("/readyz").json()["bundle"] == second.digest:
                    break
                time.sleep(0.1)
            assert asking.post("/v1/recommend", json={"history": ["i1"]}).headers["Silorec-Bundle"] == second.digest
            token = (tmp_path / "token").read_text().strip()
            assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
            reply = asking.post("/v1/rollback", headers={"Authorization": f"Bearer {token}"})
            assert reply.json() == {"bundle": first, "changed": True}
        status, seconds = running.end()
    assert (status, seconds < 10) == (0, True)
    said = (tmp_path / "stderr").read_text()
    assert [line.split(":")[0] for line in said.splitlines()] == ["WARNING common.serving"]  # the way back, and nothing else
    assert "zebrafinch" not in said


def test_a_request_in_hand_is_answered_before_it_ends(tmp_path: Path, bundle: Path, key: SigningKey) -> None:
    with command("--bundle", str(bundle), "--signer", key.public_key, stderr=tmp_path / "stderr") as running:
        host, port = running.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(
                b"POST /v1/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{"
            )
            time.sleep(0.3)
            running.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            slow.sendall(b"}")
            reply = b""
            while part := slow.recv(65536):
                reply += part
        assert reply.startswith(b"HTTP/1.1 200 ")
        assert running.process.wait(20) == 0


def test_a_model_that_protects_nobody_says_so_when_it_starts(tmp_path: Path, key: SigningKey) -> None:
    shop_bundle(tmp_path / "none.bundle", key, 20, mode="none")
    with command("--bundle", str(tmp_path / "none.bundle"), "--signer", key.public_key, stderr=tmp_path / "stderr") as running:
        assert (running.facts["mode"], running.facts["protected"]) == ("none", False)
        running.end()


REFUSED = {
    "no bundle": (["--bundle", "/nosuch.bundle", "--signer", "KEY"], "/nosuch.bundle"),
    "a stranger's": (["--bundle", "BUNDLE", "--signer", "ab" * 32], "not among the 1 trusted signers"),
    "no key": (["--bundle", "BUNDLE", "--signer", "nosuch"], "--signer nosuch: neither a public key"),
    "no such host": (["--bundle", "BUNDLE", "--signer", "KEY", "--host", "192.0.2.1"], "192.0.2.1 port 0: cannot listen there"),
    "too old": (["--bundle", "BUNDLE", "--signer", "KEY", "--not-before", "2030-01-01"], "2030-01-01T00:00:00+00:00"),
    "an open token": (["--bundle", "BUNDLE", "--signer", "KEY", "--admin-token-file", "TOKEN"], "others than its owner can read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, bundle: Path, key: SigningKey, case: str
) -> None:
    (tmp_path / "token").write_text("0123456789abcdef0123")
    (tmp_path / "token").chmod(0o644)
    words = {"BUNDLE": str(bundle), "KEY": key.public_key, "TOKEN": str(tmp_path / "token")}
    arguments, said = REFUSED[case]
    status, out, err = run(capsys, "gateway", "--port", "0", *[words.get(word, word) for word in arguments])
    assert (status, out) == (2, "")
    assert err.startswith("silorec: ")
    assert len(err.splitlines()) == 1
    assert said in err


def test_a_port_in_use_is_said(bundle: Path, key: SigningKey, capsys: pytest.CaptureFixture[str]) -> None:
    with listening("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        status, _, err = run(capsys, "gateway", "--bundle", str(bundle), "--signer", key.public_key, "--port", str(port))
    assert status == 2
    assert err == f"silorec: port {port} of 127.0.0.1 is in use; choose another one with --port\n"


def test_without_a_signer_it_does_not_start(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "gateway", "--bundle", str(bundle))
    assert status == 2
    assert "--signer" in err


@pytest.mark.parametrize("module", ["fastapi", "onnxruntime", "prometheus_client", "uvicorn"])
def test_the_extra_that_is_not_installed_is_named(bundle: Path, key: SigningKey, module: str) -> None:
    code = (
        "import sys, silorec\n"
        "class Absent:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {module!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent)\n"
        f"silorec.main(['gateway', '--bundle', {str(bundle)!r}, '--signer', {key.public_key!r}, '--port', '0'])"
    )
    done = python(code)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"silorec: {module} is not installed: this needs the extra 'serve': pip install 'silorec[serve]'\n"


def test_a_token_that_is_too_short_is_refused(
    tmp_path: Path, bundle: Path, key: SigningKey, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("short")
    (tmp_path / "token").chmod(0o600)
    options = ["--bundle", str(bundle), "--signer", key.public_key, "--admin-token-file", str(tmp_path / "token")]
    status, _, err = run(capsys, "gateway", *options)
    assert (status, "shorter than 16" in err) == (2, True)


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("127.0.0.1", {"127.0.0.1", "localhost", "[::1]", "x"}), ("0.0.0.0", {"127.0.0.1", "localhost", "[::1]", "x"}),
        ("10.1.2.3", {"127.0.0.1", "localhost", "[::1]", "x", "10.1.2.3"}), ("::", {"127.0.0.1", "localhost", "[::1]", "x"}),
        ("fe80::1", {"127.0.0.1", "localhost", "[::1]", "x", "[fe80::1]"}),
        ("shop.example", {"127.0.0.1", "localhost", "[::1]", "x", "shop.example"}),
    ],
)  # fmt: skip
def test_it_goes_by_the_address_it_listens_at_and_by_names_that_were_given(host: str, names: set[str]) -> None:
    assert set(hosts_for(host, ["x"])) == names


def test_an_unknown_host_is_said() -> None:
    with pytest.raises(ServingError, match=r"--host no\.such\.host\.invalid: this is no address"):
        listening("no.such.host.invalid", 0)


def test_the_gateway_starts_without_any_training_library(bundle: Path, key: SigningKey) -> None:
    absent = ("torch", "transformers", "peft", "opacus", "flwr", "scipy", "pandas", "onnx")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from client.gateway.app import create_app\n"
        "from client.gateway.desk import Desk\n"
        "from client.gateway.server import Server\n"
        "from common.serving import Live\n"
        f"Server(create_app(Live(Path({str(bundle)!r}), [{key.public_key!r}], prepare=Desk)))\n"
        f"print([name for name in {absent!r} if name in sys.modules])"
    )
    done = python(code)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
