"""The bundle that answers now, exchanged for a newer one while requests go on.

A request takes one reference to the engine and keeps it: it is answered by exactly one bundle, whatever happens meanwhile. A new
bundle is verified, loaded beside the old one and made to answer a few questions before it takes over; if any of that fails, the
old one goes on. The one before it is kept, so that there is a way back.

Whoever can write to the folder of bundles can put an old one there, rightly signed: a bundle whose card is older than that of the
one that answers is therefore refused unless the operator allows it. This holds while the process lives; ``not_before`` holds for
the first bundle too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Generic, Protocol, cast

import numpy as np
from typing_extensions import TypeVar

from common.bundle.contents import Bundle
from common.bundle.files import read_bundle
from common.engine import Engine, Request
from common.engine.retrieval import NOT_FINITE, SearchChoice, probes
from common.errors import BundleError, ServingError, SilorecError

SUFFIX: Final = ".bundle"
"""What a bundle's name ends with; in a folder of bundles nothing else is looked at."""

MANIFEST: Final = "MANIFEST.json"
log = logging.getLogger(__name__)

Seen = tuple[str, int, int, int, int]


class HasBundle(Protocol):
    """Whatever answers from one bundle."""

    @property
    def bundle(self) -> Bundle: ...


E = TypeVar("E", bound=HasBundle, default=Engine)
E_co = TypeVar("E_co", bound=HasBundle, default=Engine, covariant=True)


@dataclass(frozen=True)
class Refusal:
    """Why a bundle was not taken; ``at`` in seconds since 1970."""

    at: float
    reason: str


@dataclass(frozen=True)
class Status:
    """What answers, and what has happened since the start. Nothing in it comes from a request."""

    digest: str
    signer: str
    since: float
    back_to: str | None
    swaps: int
    rollbacks: int
    refused: int
    last_refusal: Refusal | None


@dataclass(frozen=True, eq=False)
class Current(Generic[E_co]):
    """An engine that answers, what :class:`Live`'s ``prepare`` made for it, and since when (seconds since 1970)."""

    engine: E_co
    prepared: Any
    since: float


class Live(Generic[E]):
    """The current engine, and the only way to change it.

    Parameters
    ----------
    path:
        A bundle, or a folder in which the newest ``*.bundle`` counts.
    trusted:
        Ed25519 public keys (hex); a bundle signed by anybody else is refused.
    open_engine:
        Makes what answers from a verified bundle, and raises :class:`BundleError` if that one cannot answer; None is
        :func:`warmed`, an :class:`~common.engine.Engine` in this process.
    allow_older:
        Take a bundle whose card is older than the current one's, too.
    not_before:
        Refuse every bundle whose card is older than this.
    prepare:
        Called with a new engine before it takes over, to build what goes with it (:attr:`Current.prepared`); if it raises, the
        bundle is refused.

    Raises
    ------
    BundleError
        If the first bundle is refused.
    """

    def __init__(
        self,
        path: Path,
        trusted: Collection[str],
        *,
        open_engine: Callable[[Bundle], E] | None = None,
        allow_older: bool = False,
        not_before: datetime | None = None,
        prepare: Callable[[E], Any] | None = None,
    ) -> None:
        self.path, self.trusted = path, frozenset(trusted)
        self.allow_older, self.not_before = allow_older, not_before
        self._open = open_engine or cast("Callable[[Bundle], E]", warmed)
        self._prepare = prepare
        self._changing = threading.Lock()
        self._seen: Seen | None = None
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self._swaps = self._rollbacks = self._refused = 0
        self._last_refusal: Refusal | None = None
        self._withdrawn: set[str] = set()
        self._previous: Current[E] | None = None
        self._seen = _look(path)
        place = newest(path)
        first = read_bundle(place, self.trusted)
        self._check_age(first, None, place)
        self._current = self._load(first, place)

    @property
    def current(self) -> Current[E]:
        """What answers now. Read it once for a request, and use that to its end."""
        return self._current

    @property
    def engine(self) -> E:
        """The engine of :attr:`current`."""
        return self._current.engine

    @contextmanager
    def use(self) -> Iterator[E]:
        """One engine for the whole of a request."""
        yield self._current.engine

    @property
    def status(self) -> Status:
        current, previous = self._current, self._previous
        bundle = current.engine.bundle
        return Status(
            digest=bundle.digest,
            signer=bundle.signer,
            since=current.since,
            back_to=None if previous is None else previous.engine.bundle.digest,
            swaps=self._swaps,
            rollbacks=self._rollbacks,
            refused=self._refused,
            last_refusal=self._last_refusal,
        )

    def swap(self, path: Path | None = None, *, unless_withdrawn: bool = False) -> bool:
        """Verify, load and warm the bundle at ``path`` (by default what counts at :attr:`path`), then let it answer.

        False if it is the bundle that answers already or, with ``unless_withdrawn``, one that was rolled back from.

        Raises
        ------
        SilorecError
            If it is refused; the old one goes on, and :attr:`status` has the reason.
        """
        place = self.path if path is None else path
        with self._changing:
            current, started = self._current, time.perf_counter()
            try:
                place = newest(place)
                bundle = read_bundle(place, self.trusted)
                if bundle.digest == current.engine.bundle.digest or (unless_withdrawn and bundle.digest in self._withdrawn):
                    return False
                self._check_age(bundle, current.engine.bundle, place)
                opened = self._load(bundle, place)
            except SilorecError as error:
                self._refuse(str(error))
                raise
            except Exception as error:
                self._refuse(f"{place}: it could not be loaded ({type(error).__name__})")
                raise
            self._previous, self._current = current, opened
            self._swaps += 1
            self._withdrawn.discard(bundle.digest)
            log.info("%s: bundle %.12s answers (%.2f s)", place, bundle.digest, time.perf_counter() - started)
            return True

    def rollback(self) -> str:
        """Let the last good bundle answer again; its digest. What was left is not taken again unless :meth:`swap` is called.

        Raises
        ------
        ServingError
            If there is none to go back to.
        """
        with self._changing:
            if self._previous is None:
                raise ServingError("there is no earlier bundle to go back to; publish one that is good")
            left, back = self._current, self._previous
            self._withdrawn.add(left.engine.bundle.digest)
            self._previous, self._current = None, replace(back, since=time.time())
            self._rollbacks += 1
            log.warning("rolled back from bundle %.12s to %.12s", left.engine.bundle.digest, back.engine.bundle.digest)
            return back.engine.bundle.digest

    def look(self) -> bool:
        """Whether something new lay at :attr:`path` and was taken. What is refused there is reported once, until it changes."""
        seen = _look(self.path)
        if seen == self._seen:
            return False
        self._seen = seen  # taken before reading: a change while it is read is seen the next time
        try:
            return self.swap(unless_withdrawn=True)
        except SilorecError:
            return False
        except Exception:
            log.exception("%s: the bundle could not be loaded", self.path)
            return False

    def watch(self, every: float = 1.0) -> None:
        """Look at :attr:`path` every so many seconds, in one thread, until :meth:`close`."""
        if self._watcher is not None:
            raise RuntimeError("it is watched already")

        def watching() -> None:
            while not self._stop.wait(every):
                self.look()

        self._watcher = threading.Thread(target=watching, name="bundle-watcher", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """Stop watching. The engine goes on answering whoever has it."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None

    def _refuse(self, reason: str) -> None:
        self._refused += 1
        self._last_refusal = Refusal(time.time(), reason)
        log.error("bundle refused, the old one goes on: %s", reason)

    def _load(self, bundle: Bundle, path: Path) -> Current[E]:
        try:
            engine = self._open(bundle)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from None
        prepared = None if self._prepare is None else self._prepare(engine)
        return Current(engine, prepared, time.time())

    def _check_age(self, bundle: Bundle, replaces: Bundle | None, path: Path) -> None:
        created = created_at(bundle, path)
        if self.not_before is not None and created < self.not_before:
            raise BundleError(f"{path}: made {bundle.card.created}, but none is taken from before {self.not_before.isoformat()}")
        if replaces is not None and not self.allow_older and created < created_at(replaces, path):
            raise BundleError(
                f"{path}: made {bundle.card.created}, before the bundle that answers ({replaces.card.created}); "
                "an older one is taken only where that is allowed"
            )


def newest(path: Path) -> Path:
    """``path`` itself, if it is a bundle; in a folder of bundles the one that was changed last.

    Raises
    ------
    BundleError
        If there is none.
    """
    if not path.is_dir() or (path / MANIFEST).exists():
        return path
    found = [(state, place) for place in path.glob(f"*{SUFFIX}") if (state := _state(place)) is not None]
    if not found:
        raise BundleError(f"{path}: there is no *{SUFFIX} in this folder")
    return max(found)[1]


def warmed(bundle: Bundle, search: SearchChoice = "auto", index_folder: Path | None = None) -> Engine:
    """An engine that has answered: nobody waits for its first answer, and one that cannot answer is not used.

    Raises
    ------
    BundleError
        If the bundle cannot be run, or a query or a score is not finite.
    """
    engine = Engine(bundle, search=search, index_folder=index_folder)
    n = len(bundle.items)
    for history in probes(n):
        answer = engine.recommend(Request(history=history, k=min(n, 10), exclude_seen=False, explain=True))
        if not answer or not np.isfinite([recommended.score for recommended in answer]).all():
            raise BundleError(NOT_FINITE)
    return engine


def created_at(bundle: Bundle, path: Path | None = None) -> datetime:
    """When the bundle was made, by its card.

    Raises
    ------
    BundleError
        If the card does not say so in ISO 8601.
    """
    try:
        created = datetime.fromisoformat(bundle.card.created)
    except ValueError:
        where = "" if path is None else f"{path}: "
        raise BundleError(f"{where}card.json: created: {bundle.card.created!r} is not a time in ISO 8601") from None
    return created if created.tzinfo is not None else created.replace(tzinfo=UTC)


def _state(path: Path) -> tuple[int, int, int, int] | None:
    """What differs when a bundle was replaced: times in nanoseconds, size, inode. None if there is nothing."""
    try:
        found = (path / MANIFEST if path.is_dir() else path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _look(path: Path) -> Seen | None:
    """Which bundle counts at ``path``, and its state; None where there is none."""
    try:
        place = newest(path)
    except (BundleError, OSError):
        return None
    state = _state(place)
    return None if state is None else (str(place), *state)
