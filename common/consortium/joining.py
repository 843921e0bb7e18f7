"""A silo's side: it makes its keys, asks for admission, renews keys, and begins to use what the roster says.

Its identity key is not renewed: it signs the ledger, and a ledger has one key for life. A silo whose identity key was lost or
stolen is revoked, and joins under another name with another ledger.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from common.config import read_toml
from common.consortium.certificates import fingerprint_of, is_fingerprint_of, make_signing_request, parse_certificate
from common.consortium.home import SiloHome
from common.consortium.keys import load_key_p384, node_line, own_key, waiting
from common.consortium.letters import Invitation, Request, proof_of
from common.consortium.roster import CLOCKS_APART, Consortium, Member, day, minute
from common.consortium.templates import policy_template, settings_template
from common.durable import create_durably, sync_folder, write_durably
from common.errors import ConsortiumError
from common.privacy.signing import SigningKey, create_key, fingerprint, load_key
from common.privacy.store import make_folder


def join(
    home: SiloHome,
    invitation: Invitation,
    declared_users: int,
    now: datetime,
    *,
    authority: str | None = None,
    data: Path | None = None,
) -> Path:
    """Make a silo's folder, or complete one that was begun, and its request for admission; returns the request's path.

    Keys and settings that are there stay as they are.

    Parameters
    ----------
    declared_users:
        What this silo declares, for good: a public number, on which noise and weights are based.
    authority:
        The fingerprint that the authority told by another way; None leaves it to be compared.
    data:
        Where the data are, for ``silo.toml``.

    Raises
    ------
    ConsortiumError
        If the invitation is not that of this authority, has expired, or does not fit a folder that was begun.
    """
    _check_invitation(invitation, now, authority)
    _check_begun(home, invitation, declared_users)
    make_folder(home.folder)
    identity = _identity(home)
    _create(home.authority, invitation.authority.encode(), mode=0o644)
    _create(home.settings_file, settings_template(invitation.silo, invitation.address, data).encode())
    policy = policy_template(invitation.silo, declared_users, delta_for(declared_users), invitation.coordinator)
    _create(home.policy, policy.encode())
    request = Request(
        kind="join",
        consortium=invitation.consortium,
        silo=invitation.silo,
        key=identity.public_key,
        node=node_line(own_key(home.node_key, openssh=True).public_key()),
        tls=make_signing_request(own_key(home.tls_key), invitation.silo),
        declared_users=declared_users,
    )
    request = replace(request, proof=proof_of(invitation.token, request))
    return write_durably(home.folder / f"{invitation.silo}.request", request.write(identity))


def renew(home: SiloHome, consortium: Consortium) -> Path:
    """Make new node and TLS keys beside those in use, and a request for the roster to have them; returns the request's path.

    The silo goes on with the keys that it has until :func:`take_up` sees a roster with the new ones.
    """
    check_own(home, consortium)
    identity = load_key(home.identity_key)
    member = consortium.members[consortium.number_of(identity.public_key)]
    if member.revoked is not None:
        raise ConsortiumError(f"silo {member.name!r} was revoked on {day(member.revoked)}: its keys cannot be renewed")
    request = Request(
        kind="renew",
        consortium=consortium.name,
        silo=member.name,
        key=identity.public_key,
        node=node_line(own_key(waiting(home.node_key), openssh=True).public_key()),
        tls=make_signing_request(own_key(waiting(home.tls_key)), member.name),
        replaces=member.node,
    )
    return write_durably(home.folder / f"{member.name}.rotation", request.write(identity))


def check_own(home: SiloHome, consortium: Consortium) -> Member:
    """This silo's entry in ``consortium``, whose keys are here, in use or waiting.

    Raises
    ------
    ConsortiumError
        If its identity key is not in the roster, or the roster has a node or TLS key for it that is not here.
    """
    identity = load_key(home.identity_key).public_key
    try:
        member = consortium.members[consortium.number_of(identity)]
    except ConsortiumError:
        raise ConsortiumError(
            f"this silo's identity key ({fingerprint(identity)}) is not in version {consortium.version} of {consortium.name!r}'s "
            "roster: the authority has not admitted it"
        ) from None
    for path, public in _keys_of(home, member):
        if public not in (_public(path), _public(waiting(path))):
            raise ConsortiumError(
                f"{path}: not the key that the roster has for {member.name!r}; restore it, or make new ones with: "
                f"silorec consortium rotate {home.folder}"
            )
    return member


def take_up(home: SiloHome, consortium: Consortium) -> bool:
    """Bring the folder in line with the roster: keys that waited come into use, and the TLS certificate is the roster's.

    Whether anything changed. What a crash interrupted is done by the next call.
    """
    member = check_own(home, consortium)
    changed = False
    for path, public in _keys_of(home, member):
        if _public(path) != public:
            os.replace(waiting(path), path)
            sync_folder(path.parent)
            changed = True
    if not home.tls_certificate.exists() or home.tls_certificate.read_text() != member.certificate:
        write_durably(home.tls_certificate, member.certificate.encode())
        changed = True
    return changed


def delta_for(declared_users: int) -> float:
    """The largest power of ten that is at most a tenth of one in ``declared_users``."""
    return float(f"1e-{math.ceil(math.log10(10 * declared_users))}")


def _check_invitation(invitation: Invitation, now: datetime, authority: str | None) -> None:
    certificate = parse_certificate(invitation.authority.encode(), "the invitation")
    if authority is not None and not is_fingerprint_of(authority, certificate):
        raise ConsortiumError(
            f"the invitation is by an authority with fingerprint {fingerprint_of(certificate)}, not {authority}: do not use it"
        )
    if now >= invitation.expires:
        raise ConsortiumError(f"the invitation expired at {minute(invitation.expires)}; ask for another one")
    if now < invitation.issued - CLOCKS_APART:
        raise ConsortiumError(
            f"the invitation was made at {minute(invitation.issued)}, and this machine's clock says {minute(now)}: set the clock"
        )


def _check_begun(home: SiloHome, invitation: Invitation, declared_users: int) -> None:
    """Whether a folder that was begun is that of this invitation."""
    if home.roster.exists():
        raise ConsortiumError(f"{home.folder}: this silo has joined already; see: silorec consortium roster {home.folder}")
    if home.authority.exists() and home.authority.read_text() != invitation.authority:
        raise ConsortiumError(f"{home.authority}: this folder was begun for another authority; choose another folder")
    for path, key, wanted in (
        (home.settings_file, "name", invitation.silo),
        (home.policy, "silo", invitation.silo),
        (home.policy, "declared_users", declared_users),
    ):
        found = read_toml(path).get(key, wanted) if path.exists() else wanted
        if found != wanted:
            raise ConsortiumError(f"{path}: {key} = {found!r}, and the silo is to join with {wanted!r}; change one of the two")


def _identity(home: SiloHome) -> SigningKey:
    return load_key(home.identity_key) if home.identity_key.exists() else create_key(home.identity_key)


def _create(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write what is not there; what is there is the operator's."""
    if not path.exists():
        create_durably(path, content, mode=mode)


def _keys_of(home: SiloHome, member: Member) -> tuple[tuple[Path, str], ...]:
    """Where the keys are that the roster knows, and which it says."""
    return (home.node_key, member.node), (home.tls_key, node_line(member.tls_key))


def _public(path: Path) -> str | None:
    return node_line(load_key_p384(path).public_key()) if path.exists() else None
