"""The one shape of archive that is read, and those that are not. Python's ``zipfile`` makes and reads them independently."""

from __future__ import annotations

import io
import re
import stat
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from common.bundle.archive import ARCHIVE_LIMIT, archive_parts
from common.bundle.files import read_bundle
from common.bundle.manifest import MANIFEST, MODEL, NAMES, SIGNATURE
from common.errors import BundleError
from common.privacy.signing import SigningKey

FIRST_DATE = (1980, 1, 1, 0, 0, 0)


def packed(entries: list[tuple[zipfile.ZipInfo | str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, content in entries:
            file.writestr(name if isinstance(name, zipfile.ZipInfo) else entry(name, method=method), content)
    return out.getvalue()


def entry(name: str, mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, FIRST_DATE)
    info.external_attr, info.compress_type, info.create_system = mode << 16, method, 3
    return info


def in_order(contents: dict[str, bytes]) -> list[tuple[zipfile.ZipInfo | str, bytes]]:
    return [(name, contents[name]) for name in NAMES]


def refused(path: Path, content: bytes, key: SigningKey) -> str:
    path.write_bytes(content)
    with pytest.raises(BundleError) as error:
        read_bundle(path, {key.public_key})
    return str(error.value).removeprefix(f"{path}: ")


def test_any_zip_program_can_unpack_a_bundle(archive: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(archive) as file:
        assert file.testzip() is None
        assert tuple(file.namelist()) == NAMES
        assert {name: file.read(name) for name in NAMES} == contents
        for info in file.infolist():
            assert (info.compress_type, info.date_time, info.extra, info.comment, info.flag_bits) == (0, FIRST_DATE, b"", b"", 0)
            assert info.external_attr >> 16 == stat.S_IFREG | 0o644


def test_an_archive_of_the_right_files_by_another_program_is_told_apart(
    contents: dict[str, bytes], key: SigningKey, tmp_path: Path
) -> None:
    """It would be harmless; accepting one form only is what makes the others impossible."""
    path = tmp_path / "x.bundle"
    assert "packed by another program" in refused(path, packed(in_order(contents)), key)


def test_zip_bombs_and_other_compression_are_refused_unread(contents: dict[str, bytes], key: SigningKey, tmp_path: Path) -> None:
    bomb = packed([(name, b"\0" * 50_000_000 if name == MODEL else contents[name]) for name in NAMES], zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        assert "compressed" in refused(tmp_path / "bomb", bomb, key)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "name",
    ["../MANIFEST.json", "/etc/passwd", "a/MANIFEST.json", "MANIFEST.JSON", "C:\\x", "MANIFEST.json\0", "\x1b[31m"],
    ids=repr,
)
def test_paths_that_leave_the_folder_are_refused(name: str, contents: dict[str, bytes], key: SigningKey, tmp_path: Path) -> None:
    info = entry("x")
    info.filename = name  # as it is: ZipInfo would mend it
    said = refused(tmp_path / "x", packed([(info, contents[MANIFEST]), *in_order(contents)]), key)
    assert "MANIFEST.json" in said
    assert said.isprintable()
    behind = packed([*in_order(contents), (info, b"x")])
    refused(tmp_path / "x", behind, key)


def test_duplicate_link_encrypted_and_surplus_entries_are_refused(
    contents: dict[str, bytes], archive: Path, key: SigningKey, tmp_path: Path
) -> None:
    whole, path = archive.read_bytes(), tmp_path / "x"
    directory = whole.index(b"PK\x01\x02")
    link = bytearray(whole)
    struct.pack_into("<I", link, directory + 38, (stat.S_IFLNK | 0o777) << 16)
    assert "directory is not that of its files" in refused(path, bytes(link), key)
    encrypted = bytearray(whole)
    encrypted[6] |= 1
    assert "encrypted" in refused(path, bytes(encrypted), key)
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = packed([*in_order(contents), (MODEL, b"another")])
    refused(path, twice, key)
    # The same, in our own shape: an eighth entry, well-formed in every way.
    for extra in ("extra.bin", MODEL, MANIFEST):
        assert "something in it that is not part of a bundle" in refused(path, with_entry(whole, extra, b"x"), key)


def with_entry(whole: bytes, name: str, content: bytes) -> bytes:
    """The archive with one entry more, as ``zipfile`` appends it."""
    out = io.BytesIO(whole)
    with zipfile.ZipFile(out, "a") as file:
        file._didModify = True  # type: ignore[attr-defined]
        if name in NAMES:
            with pytest.warns(UserWarning, match="Duplicate"):
                file.writestr(entry(name), content)
        else:
            file.writestr(entry(name), content)
    return out.getvalue()


def test_a_hundred_thousand_entries_cost_nothing(contents: dict[str, bytes], key: SigningKey, tmp_path: Path) -> None:
    one = packed([("f0", b"")])
    directory, end = one.index(b"PK\x01\x02"), one.index(b"PK\x05\x06")
    many = one[:directory] * 100_000 + one[directory:end] * 100_000 + one[end:]
    before = time.process_time()
    assert "'f0' is where MANIFEST.json belongs" in refused(tmp_path / "many", many, key)
    assert time.process_time() - before < 0.5


def test_names_that_differ_between_an_entry_and_the_directory_are_refused(archive: Path, key: SigningKey, tmp_path: Path) -> None:
    """Readers that go by the directory and readers that go front to back would see different files."""
    whole = archive.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for place in (m.start() for m in re.finditer(rb"model\.onnx", whole)):
        changed = bytearray(whole)
        changed[place : place + 10] = b"Model.onnx"
        said = refused(tmp_path / "x", bytes(changed), key)
        if place < directory:
            assert said
        else:
            assert "directory is not that of its files" in said


def test_bytes_hidden_before_between_and_behind_are_refused(archive: Path, key: SigningKey, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for place in (0, whole.index(b"PK\x03\x04", 4), directory, len(whole)):
        refused(tmp_path / "x", whole[:place] + b"hidden" + whole[place:], key)
    comment = whole[:-2] + struct.pack("<H", 6) + b"hidden"
    assert zipfile.ZipFile(io.BytesIO(comment)).comment == b"hidden"
    refused(tmp_path / "x", comment, key)
    # Two whole bundles, one behind the other: zipfile reads the second, a front-to-back reader the first.
    refused(tmp_path / "x", whole + whole, key)


def test_a_checksum_that_is_wrong_in_both_places_is_refused(archive: Path, key: SigningKey, tmp_path: Path) -> None:
    """The contents are the signed ones, but other ZIP programs would call the file damaged."""
    whole = archive.read_bytes()
    with zipfile.ZipFile(archive) as file:
        checksum = struct.pack("<I", file.getinfo(MODEL).CRC)
    assert whole.count(checksum) == 2
    assert "model.onnx was altered" in refused(tmp_path / "x", whole.replace(checksum, b"\1\2\3\4"), key)


def test_huge_declared_sizes_are_refused_without_memory_for_them(archive: Path, key: SigningKey, tmp_path: Path) -> None:
    for place in (18, 22):  # compressed and plain size of the first entry
        changed = bytearray(archive.read_bytes())
        struct.pack_into("<I", changed, place, 0xFFFFFFF0)
        refused(tmp_path / "x", bytes(changed), key)
    both = bytearray(archive.read_bytes())
    struct.pack_into("<II", both, 18, 0xFFFFFFF0, 0xFFFFFFF0)
    tracemalloc.start()
    try:
        assert "at most 4,096 are allowed" in refused(tmp_path / "x", bytes(both), key)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_archive_larger_than_zip_can_say_is_neither_read_nor_written(key: SigningKey, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(ARCHIVE_LIMIT + 1)
    with pytest.raises(BundleError, match="has at most 4,294,967,295"):
        read_bundle(path, {key.public_key})

    class Large(bytes):
        def __len__(self) -> int:
            return ARCHIVE_LIMIT

    with pytest.raises(BundleError, match="leave items out"):
        next(archive_parts({name: Large() for name in NAMES}))


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
def test_what_is_read_before_the_signature_is_small(
    name: str, contents: dict[str, bytes], key: SigningKey, tmp_path: Path
) -> None:
    made: Callable[[bytes], bytes] = lambda more: b"".join(archive_parts({**contents, name: contents[name] + more}))  # noqa: E731
    assert "are allowed" in refused(tmp_path / "x", made(b" " * 5000), key)
