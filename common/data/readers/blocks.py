"""Files as blocks of whole lines, so that a file of any size is read in bounded memory.

A block ends where a line ends and never inside a quoted field. Gzip is recognised by its first bytes and unpacked on the way.
Line numbers are those of an editor: from 1, a quoted field that spans lines counts as many.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from common.data.readers.reading import Reading
from common.errors import DataError

MAX_RECORD_BYTES = 16 << 20
# The standard library's limit of 128 KiB for one field is short of a long review; a row is bounded here anyway.
csv.field_size_limit(MAX_RECORD_BYTES)
GZIP = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Block:
    """Whole lines; ``first_line`` is the number of the first one."""

    data: bytes
    first_line: int


@dataclass(frozen=True)
class Record:
    """One row of a file before it is understood: its bytes without the line end, and where it starts.

    ``unclosed`` marks a row in which a quoted field is opened and never closed.
    """

    data: bytes
    line: int
    unclosed: bool = False


class _Truncated(Exception):
    """A gzip member ends before its end mark."""


def blocks(path: Path, reading: Reading, *, quoted: str | None = None) -> Iterator[Block]:
    """Read a plain or gzip file in blocks of whole lines.

    Parameters
    ----------
    path:
        The file.
    reading:
        Gives the block size and is told of progress.
    quoted:
        The separator of fields, if fields may be quoted with ``"`` (RFC 4180) and may then contain line ends; else None.

    Raises
    ------
    DataError
        If the file is empty, is no text, is a damaged gzip file, or holds a line of more than 16 MiB.
    """
    line, carry, started = 1, b"", False
    with _opened(path) as raw:
        pieces = _pieces(raw, path, reading)
        while True:
            try:
                piece = next(pieces, b"")
            except _Truncated:
                raise DataError("the gzip file is cut off here; fetch it again", path, line) from None
            except zlib.error as error:
                raise DataError(f"the gzip file is damaged after this line ({error}); fetch it again", path, line) from None
            if not piece:
                break
            if not started:
                piece, started = _check_start(piece, path), True
            data = carry + piece
            cut = _last_end(data, quoted)
            if cut == 0 and len(data) > MAX_RECORD_BYTES:
                what = "no end of the row that starts here (a quoted field left open?)" if quoted else "no end of this line"
                raise DataError(f"{what} within {MAX_RECORD_BYTES >> 20} MiB; is this a text file?", path, line)
            body, carry = data[:cut], data[cut:]
            if body:
                yield Block(body, line)
                line += body.count(b"\n")
    if carry:
        yield Block(carry, line)
    elif line == 1:
        raise DataError("the file is empty", path)


def split_records(block: Block, quoted: str | None) -> Iterator[Record]:
    """The rows of a block, blank lines left out. An unclosed quote costs the line on which it opens, not the rest."""
    data, line = block.data, block.first_line
    start = 0
    while start < len(data):
        rest = data[start:] if start else data
        protected, opened = _protect(rest, quoted)
        end = len(rest) if opened is None else protected.rfind(b"\n", 0, opened) + 1
        position = 0
        while position < end:
            stop = protected.find(b"\n", position, end)
            stop = end if stop < 0 else stop
            record = rest[position:stop].removesuffix(b"\r")
            if record:
                yield Record(record, line)
            line += rest.count(b"\n", position, stop + 1)
            position = stop + 1
        if opened is None:
            return
        stop = rest.find(b"\n", opened)
        stop = len(rest) if stop < 0 else stop
        yield Record(rest[end:stop].removesuffix(b"\r"), line, unclosed=True)
        line += rest.count(b"\n", end, stop + 1)
        start += stop + 1


def has_unclosed_quote(block: Block, quoted: str | None) -> bool:
    """Whether a quoted field of the block is never closed; only the last block of a file can have one."""
    return _protect(block.data, quoted)[1] is not None


def lines(path: Path, reading: Reading, *, legacy: bool = False) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file without quoting, blank ones left out.

    ``legacy`` takes a line that is not UTF-8 as Latin-1, which is what older data sets are written in; without it such a
    line is malformed.
    """
    for block in blocks(path, reading):
        for record in split_records(block, None):
            text = decode(record, path, reading, legacy=legacy)
            if text is not None:
                yield record.line, text


def rows(path: Path, reading: Reading, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Numbered rows of a file with quoted fields, as lists of fields. For files of items; interactions take the fast way."""
    for block in blocks(path, reading, quoted=separator):
        for record in split_records(block, separator):
            fields = split_quoted(record, separator, path, reading)
            if fields is not None:
                yield record.line, fields


def decode(record: Record, path: Path, reading: Reading, *, legacy: bool = False) -> str | None:
    """A row's text, or None where it was refused for not being UTF-8."""
    try:
        return record.data.decode("utf-8")
    except UnicodeDecodeError as error:
        if legacy:
            return record.data.decode("latin-1")
        byte = record.data[error.start]
        reading.refuse("not UTF-8", path, record.line, f"byte 0x{byte:02x} at position {error.start + 1}; save the file as UTF-8")
        return None


def split_quoted(record: Record, separator: str, path: Path, reading: Reading) -> list[str] | None:
    """A row's fields by the rules of RFC 4180, or None where the row was refused."""
    if record.unclosed:
        reading.refuse("a quoted field is opened and never closed", path, record.line)
        return None
    text = decode(record, path, reading)
    if text is None:
        return None
    if '"' not in text and "\r" not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator))
    except csv.Error as error:
        reading.refuse("not a row of CSV", path, record.line, str(error).split(" - ")[0])
        return None


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror or error}", path) from None


def _pieces(raw: BinaryIO, path: Path, reading: Reading) -> Iterator[bytes]:
    """The file's bytes, unpacked, in pieces of at most the block size."""
    size, at = reading.block_bytes, 0
    head = raw.read(len(GZIP))
    raw.seek(0)
    compressed = head == GZIP
    if path.suffix == ".gz" and not compressed and head:
        raise DataError("the name ends in .gz, but this is not a gzip file", path)
    unpack = zlib.decompressobj(wbits=31)
    inside = False
    while piece := raw.read(size):
        if not compressed:
            yield piece
        while compressed and piece:
            if not inside:
                piece = piece.lstrip(b"\0")  # padding after a member is allowed
                if not piece:
                    break
                unpack, inside = zlib.decompressobj(wbits=31), True
            out = unpack.decompress(piece, size)
            if out:
                yield out
            inside = not unpack.eof
            piece = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
        reading.advance(raw.tell() - at)
        at = raw.tell()
    if inside:
        tail = unpack.flush()
        if tail:
            yield tail
        if not unpack.eof:
            raise _Truncated


def _check_start(piece: bytes, path: Path) -> bytes:
    if piece[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("the file is UTF-16; save it as UTF-8", path, 1)
    if piece[:4] == b"PK\x03\x04":
        raise DataError("this is a zip archive; unpack it and give the folder", path)
    return piece.removeprefix(UTF8_BOM)


def _last_end(data: bytes, quoted: str | None) -> int:
    """Position after the last line end that ends a row; 0 if there is none."""
    return _protect(data, quoted)[0].rfind(b"\n") + 1


def _protect(data: bytes, quoted: str | None) -> tuple[bytes, int | None]:
    """The data with line ends inside quoted fields blanked out (same length), and where an unclosed quote opens."""
    if quoted is None or b'"' not in data:
        return data, None
    opened: list[int] = []

    def blank(match: re.Match[bytes]) -> bytes:
        if not match[1]:
            opened.append(match.start())
        return match[0].replace(b"\n", b" ")

    return _quoted_field(quoted).sub(blank, data), opened[0] if opened else None


@lru_cache
def _quoted_field(separator: str) -> re.Pattern[bytes]:
    """A quoted field from its opening quote; group 1 is empty where the data end before it closes."""
    before = re.escape(separator.encode())
    return re.compile(rb"(?<![^\n" + before + rb'])"(?:[^"]|"")*+("|\Z)')
