"""Who takes part, and by which long-term key each silo is known: the consortium's roster, a file that every silo has for itself.

A coordinator relays the silos' keys to each other; what keeps it from putting keys of its own in their place is this file. So a
silo never takes it from the coordinator. Silo number ``i`` is the ``i``-th entry, as in ``federation.declared_users``.

    format = 1

    [[silo]]
    name = "north"
    key = "6f0c…"        # Ed25519, 64 hex characters: `silorec ledger show` on the silo tells it
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli_w

from common.config import read_toml
from common.durable import write_durably
from common.errors import ConfigError
from common.privacy.signing import fingerprint, is_public_key

FORMAT = 1
ROSTER = "roster.toml"


@dataclass(frozen=True)
class KeyRoster:
    """Names and Ed25519 public keys (64 hex characters) of the silos, by number.

    ``absent`` are the numbers of silos that take no part (any more): revoked or expired. They keep their numbers, so they do not
    change the digest. :func:`write_roster` does not write them.

    Raises
    ------
    ConfigError
        If a key is none, two silos have the same name or key, the lists differ in length, or an absent silo is none of them.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    absent: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.keys) or not self.keys:
            raise ConfigError(f"a roster has a name and a key for each silo, not {len(self.names)} and {len(self.keys)}")
        for name, key in zip(self.names, self.keys, strict=True):
            if not isinstance(name, str) or not name.strip():
                raise ConfigError("a silo of the roster has no name")
            if not isinstance(key, str) or not is_public_key(key):
                raise ConfigError(f"the roster's key of {name!r} is no public key (64 lower-case hex characters)")
        for what, values in (("name", self.names), ("key", self.keys)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ConfigError(f"the roster has the {what} {twice[0]!r} more than once")
        beyond = sorted(self.absent - set(range(len(self.keys))))
        if beyond:
            raise ConfigError(f"silo {beyond[0]} is said to be absent, and the roster has {len(self.keys)} silos")

    @cached_property
    def by_silo(self) -> Mapping[int, str]:
        """Silo to key."""
        return dict(enumerate(self.keys))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the keys in order: what two sides compare to see that they have the same roster."""
        return hashlib.sha256(b"silorec-roster-1\0" + "".join(self.keys).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

    def first(self, silos: int) -> KeyRoster:
        """The roster of a run that knows ``silos`` silos: those that were admitted later take no part in it."""
        if silos >= len(self):
            return self
        return KeyRoster(self.names[:silos], self.keys[:silos], frozenset(silo for silo in self.absent if silo < silos))

    def describe(self) -> str:
        """One line a silo, with the fingerprint that people compare."""
        return "\n".join(
            f"{silo}: {name} {fingerprint(self.keys[silo])}{' (absent)' if silo in self.absent else ''}"
            for silo, name in enumerate(self.names)
        )


def read_roster(path: Path) -> KeyRoster:
    """The roster in a file.

    Raises
    ------
    ConfigError
        If it is not there, or not a roster.
    """
    tree = read_toml(path)
    silos = tree.get("silo")
    if tree.get("format") != FORMAT or not isinstance(silos, list) or not all(_is_entry(entry) for entry in silos):
        raise ConfigError(f"{path}: not a roster of format {FORMAT}: it has a [[silo]] table with name and key for each silo")
    try:
        return KeyRoster(tuple(entry["name"] for entry in silos), tuple(entry["key"] for entry in silos))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def write_roster(path: Path, roster: KeyRoster) -> Path:
    """Write ``roster`` to ``path`` for :func:`read_roster`; returns the path."""
    silos = [{"name": name, "key": key} for name, key in zip(roster.names, roster.keys, strict=True)]
    return write_durably(path, tomli_w.dumps({"format": FORMAT, "silo": silos}).encode())


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.keys() == {"name", "key"}
