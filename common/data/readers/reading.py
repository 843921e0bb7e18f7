"""One run of a reader: what was asked for, how far it is, and which rows could not be used.

The policy for malformed rows lives here and nowhere else. ``strict`` raises at the first one and names file and line;
``skip`` leaves it out and counts it by reason, keeping one example for each. Examples quote the offending value only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from common.data.interactions import Dropped
from common.errors import DataError

Progress = Callable[[int, int], None]
"""Called with ``(bytes read, bytes in total)``, compressed bytes where files are compressed."""

BLOCK_BYTES = 8 << 20


class Reading:
    """What a reader is given beside the path.

    Parameters
    ----------
    strict:
        Whether a malformed row is an error; else it is skipped and counted.
    columns:
        Our column names to the file's, for formats without fixed columns.
    min_value:
        Interactions with a lower value are dropped; None keeps all.
    progress:
        Told how far the reading is.
    block_bytes:
        Size of the pieces in which files are read; bounds memory, changes no result.
    ordered:
        Whether rows are put in the order of their ids and times; else they keep the order of the source.
    """

    def __init__(
        self,
        *,
        strict: bool = True,
        columns: Mapping[str, str] | None = None,
        min_value: float | None = None,
        progress: Progress | None = None,
        block_bytes: int = BLOCK_BYTES,
        ordered: bool = False,
    ) -> None:
        self.strict = strict
        self.columns: Mapping[str, str] = dict(columns or {})
        self.min_value = min_value
        self.block_bytes = block_bytes
        self.ordered = ordered
        self._progress = progress
        self._total = 0
        self._done = 0
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def refuse(self, reason: str, path: Path, line: int, detail: str = "") -> None:
        """A malformed row: raise if strict, else count it.

        Parameters
        ----------
        reason:
            The kind of fault, the same words for all rows that have it.
        path, line:
            Where, the line from 1.
        detail:
            What exactly: the offending value, what was expected.
        """
        if self.strict:
            raise DataError(f"{reason}: {detail}" if detail else reason, path, line)
        self.drop(reason, 1, f"{path.name}:{line}" + (f": {detail}" if detail else ""))

    def drop(self, reason: str, count: int, example: str) -> None:
        """Rows left out on purpose, whatever the policy: below the threshold, duplicates."""
        if count:
            self._counts[reason] += count
            self._examples.setdefault(reason, example)

    def dropped(self) -> Dropped:
        """All that was left out so far."""
        return Dropped(counts=dict(self._counts), examples=dict(self._examples))

    def expect(self, *paths: Path) -> None:
        """Announce files that will be read, so that progress knows the total."""
        self._total += sum(path.stat().st_size for path in paths)

    def advance(self, n_bytes: int) -> None:
        """Report bytes read."""
        self._done += n_bytes
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done))
