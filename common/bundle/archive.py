"""Where a bundle's bytes come from: one archive file, or a folder with the same files.

The archive is a ZIP file of one fixed shape: the seven entries in a fixed order, stored and not compressed, no dates, no
comments, no extra fields, nothing before, between or behind them. Names, sizes and contents settle every other byte, so a
reader accepts exactly what :func:`archive_parts` would write, and checks it front to back without believing any length that
was not signed or limited. What makes ZIP files dangerous (bombs, paths, links, duplicate names, encrypted entries, two
directories that disagree, bytes that one reader sees and another does not) cannot be said in that shape. Any ZIP program can
still unpack it.

In a folder, links are not followed and every file is read once: what is hashed is what is parsed.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

from common.bundle.manifest import NAMES
from common.errors import BundleError

ARCHIVE_LIMIT: Final = 2**32 - 1
"""Bytes of an archive: beyond, ZIP needs a second kind of directory (ZIP64), and two kinds can disagree."""

_CHUNK: Final = 1 << 20
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_NEEDED: Final = 10  # version of ZIP to unpack: 1.0, stored entries
_MADE_BY: Final = 3 << 8 | _NEEDED  # Unix, so that the mode below counts
_TIME, _DATE = 0, 1 << 5 | 1  # 1 January 1980, 00:00: the first that ZIP can say
_MODE: Final = (stat.S_IFREG | 0o644) << 16
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_END_RECORD = struct.Struct("<4s4H2IH")


class Source(Protocol):
    """The files of a bundle, taken one after the other in the order of ``NAMES``."""

    def take(self, name: str, at_most: int) -> bytes:
        """The whole of a small file whose size nobody vouches for yet."""

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Refuse, before anything more is read, if the remaining files cannot have these sizes."""

    def take_exactly(self, name: str, size: int) -> memoryview:
        """A file of a known size, read-only."""

    def finish(self) -> None:
        """Refuse if there is more than was taken."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Source]:
    """The bundle at ``path``, an archive or a folder, as a :class:`Source`.

    Raises
    ------
    BundleError
        If there is none or it cannot be read; also whatever goes wrong while reading.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # non-blocking: a pipe would wait for ever
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                yield _Folder(descriptor)
            elif stat.S_ISREG(mode):
                with open(descriptor, "rb", buffering=0, closefd=False) as file:
                    yield _Archive(file, os.fstat(descriptor).st_size)
            else:
                raise BundleError("neither a file nor a folder")
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise BundleError("no such file") from None
    except OSError as error:
        raise BundleError(f"cannot be read ({error.strerror})") from None


class _Folder:
    def __init__(self, descriptor: int) -> None:
        self._folder = descriptor
        found = set()
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if entry.name not in NAMES:
                    raise BundleError(f"{entry.name!r} is in the folder and not part of a bundle")
                found.add(entry.name)
        if missing := [name for name in NAMES if name not in found]:
            raise BundleError(f"{missing[0]} is missing")

    def take(self, name: str, at_most: int) -> bytes:
        with self._open(name) as (file, size):
            if size > at_most:
                raise BundleError(f"{name} has {size:,} bytes, at most {at_most:,} are allowed")
            return bytes(_read(file, name, size))

    def expect(self, sizes: Mapping[str, int]) -> None:
        for name, size in sizes.items():
            with self._open(name) as (_, found):
                _check_size(name, found, size)

    def take_exactly(self, name: str, size: int) -> memoryview:
        with self._open(name) as (file, found):
            _check_size(name, found, size)
            return _read(file, name, size)

    def finish(self) -> None:
        """Nothing: the folder was compared with the list of names when it was opened."""

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[io.FileIO, int]]:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=self._folder)
        except OSError as error:
            if stat.S_ISLNK(os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_mode):
                raise BundleError(f"{name} is a link; a bundle's files are its own") from None
            raise BundleError(f"{name} cannot be read ({error.strerror})") from None
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise BundleError(f"{name} is not a file")
            with io.FileIO(descriptor, "rb", closefd=False) as file:
                yield file, facts.st_size
        finally:
            os.close(descriptor)


class _Archive:
    def __init__(self, file: io.FileIO, size: int) -> None:
        if size > ARCHIVE_LIMIT:
            raise BundleError(f"{size:,} bytes; a bundle's archive has at most {ARCHIVE_LIMIT:,}")
        self._file, self._size = file, size
        self._entries: list[tuple[str, int, int]] = []  # name, size, CRC-32

    def take(self, name: str, at_most: int) -> bytes:
        size, crc = self._header(name)
        if size > at_most:
            raise BundleError(f"{name} has {size:,} bytes, at most {at_most:,} are allowed")
        return bytes(self._content(name, size, crc))

    def expect(self, sizes: Mapping[str, int]) -> None:
        entries = [*((name, size) for name, size, _ in self._entries), *sizes.items()]
        wanted = _length(entries)
        if self._size != wanted:
            raise BundleError(
                f"{self._size:,} bytes, where the files of its manifest make {wanted:,}: "
                + ("it was cut off" if self._size < wanted else "there is something in it that is not part of a bundle")
            )

    def take_exactly(self, name: str, size: int) -> memoryview:
        found, crc = self._header(name)
        _check_size(name, found, size)
        return self._content(name, size, crc)

    def finish(self) -> None:
        """Nothing can lie behind the directory: :meth:`expect` has compared the archive's length."""
        tail = _directory(self._entries)
        if _read(self._file, "its directory", len(tail)) != tail:
            raise BundleError("the archive's directory is not that of its files: something was hidden, renamed or altered")

    def _header(self, name: str) -> tuple[int, int]:
        """Size and CRC-32 that the entry claims; everything else in its header is settled."""
        raw = bytes(_read(self._file, name, _LOCAL_HEADER.size))
        magic, _, flags, method, _, _, crc, size, _, name_size, _ = _LOCAL_HEADER.unpack(raw)
        if magic != _LOCAL:
            raise BundleError(f"{name} is not where it belongs; this is not a bundle, or an altered one")
        if flags & 1:
            raise BundleError(f"the entry where {name} belongs is encrypted")
        if method:
            raise BundleError(f"the entry where {name} belongs is compressed; a bundle's are not")
        called = bytes(_read(self._file, name, min(name_size, 255)))
        if called != name.encode():
            raise BundleError(f"{called.decode('utf-8', 'replace')!r} is where {name} belongs")
        if raw + called != _local_header(name, size, crc):
            raise BundleError(f"the header of {name} is not as a bundle's: it was packed by another program, or altered")
        return size, crc

    def _content(self, name: str, size: int, crc: int) -> memoryview:
        content = _read(self._file, name, size)
        if zlib.crc32(content) != crc:
            raise BundleError(f"{name} was altered: its checksum is another")
        self._entries.append((name, size, crc))
        return content


def archive_parts(contents: Mapping[str, memoryview | bytes]) -> Iterator[bytes | memoryview]:
    """The archive of ``contents`` (all of ``NAMES``), to be written one part after the other.

    Raises
    ------
    BundleError
        If it would be larger than an archive may be.
    """
    if (length := _length([(name, len(contents[name])) for name in NAMES])) > ARCHIVE_LIMIT:
        raise BundleError(f"the bundle would have {length:,} bytes; its archive can have {ARCHIVE_LIMIT:,}; leave items out")
    entries = [(name, len(contents[name]), zlib.crc32(contents[name])) for name in NAMES]
    for name, size, crc in entries:
        yield _local_header(name, size, crc)
        yield contents[name]
    yield _directory(entries)


def _read(file: io.FileIO, name: str, size: int) -> memoryview:
    content = bytearray(size)
    view, have = memoryview(content), 0
    while have < size:
        got = file.readinto(view[have : have + _CHUNK])
        if not got:
            raise BundleError(f"it ends within {name}: it was cut off, or is no bundle")
        have += got
    return view.toreadonly()


def _check_size(name: str, found: int, size: int) -> None:
    if found != size:
        raise BundleError(f"{name} has {found:,} bytes, and {size:,} by the manifest")


def _length(entries: list[tuple[str, int]]) -> int:
    return sum(30 + 46 + 2 * len(name) + size for name, size in entries) + _END_RECORD.size


def _header_fields(name: str, size: int, crc: int) -> bytes:
    """What an entry's two headers share; the name's length last, no extra field."""
    return struct.pack("<5H3I2H", _NEEDED, 0, 0, _TIME, _DATE, crc, size, size, len(name), 0)


def _local_header(name: str, size: int, crc: int) -> bytes:
    return _LOCAL + _header_fields(name, size, crc) + name.encode("ascii")


def _directory(entries: list[tuple[str, int, int]]) -> bytes:
    """The central directory and the record that ends the archive (APPNOTE.TXT 6.3.10, 4.3.12 and 4.3.16)."""
    records, offset = [], 0
    for name, size, crc in entries:
        place = struct.pack("<3H2I", 0, 0, 0, _MODE, offset)  # no comment, first disk, not text
        records.append(_CENTRAL + struct.pack("<H", _MADE_BY) + _header_fields(name, size, crc) + place + name.encode("ascii"))
        offset += len(_local_header(name, size, crc)) + size
    directory = b"".join(records)
    return directory + _END_RECORD.pack(_END, 0, 0, len(entries), len(entries), len(directory), offset, 0)
