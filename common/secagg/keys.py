"""Keys of one round, and the word of the silo's long-term key for them.

Each silo makes two X25519 pairs (RFC 7748) for each round: one whose exchanges give the pairwise masks, one whose exchanges
seal shares in transit (Bonawitz et al. 2017, round 0). They must be two: the private key for masks is recovered by the
coordinator when the silo drops out, and must open nothing then. The public halves travel as an :class:`Advertisement`, signed by
the silo's Ed25519 key and checked against the consortium's roster, so a coordinator that relays them cannot put keys of its own
in their place. The signature covers run and round: an old advertisement is no good in a new round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from common.errors import SecAggError
from common.privacy.signing import SigningKey, verify
from common.secagg.context import KEY_BYTES, RoundContext, silo_bytes
from common.secagg.masks import Mask, pair_mask

ADVERTISEMENT_BYTES = 4 + 2 * KEY_BYTES + 64

_FIELD = 2**255 - 19
_TRIAL = X25519PrivateKey.from_private_bytes(bytes(range(32)))  # no secret: shows which points have a small order


@dataclass(frozen=True)
class Advertisement:
    """The public keys of silo number ``silo`` in one round, with its Ed25519 signature over them, run and round.

    ``mask_key`` and ``share_key`` are X25519 public keys of 32 bytes. Made by :meth:`EphemeralKeys.advertise`; worth something
    after :func:`verify_advertisement`.

    Raises
    ------
    SecAggError
        If something has another length, or the silo's number is out of range.
    """

    silo: int
    mask_key: bytes
    share_key: bytes
    signature: bytes

    def __post_init__(self) -> None:
        silo_bytes(self.silo)
        for name, size in (("mask_key", KEY_BYTES), ("share_key", KEY_BYTES), ("signature", 64)):
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) != size:
                raise SecAggError(f"advertisement of silo {self.silo}: {name} must be {size} bytes")

    def to_bytes(self) -> bytes:
        """132 bytes: silo (4, big end first), key for masks, key for shares, signature."""
        return silo_bytes(self.silo) + self.mask_key + self.share_key + self.signature

    @classmethod
    def from_bytes(cls, data: bytes) -> Advertisement:
        """What :meth:`to_bytes` wrote.

        Raises
        ------
        SecAggError
            If it did not write this.
        """
        if len(data) != ADVERTISEMENT_BYTES:
            raise SecAggError(f"an advertisement has {ADVERTISEMENT_BYTES} bytes, not {len(data)}")
        return cls(int.from_bytes(data[:4], "big"), data[4:36], data[36:68], data[68:])


class EphemeralKeys:
    """The two private keys of one silo in one round. Shown to nobody, not copied; make new ones for each round."""

    def __init__(self, mask: X25519PrivateKey, share: X25519PrivateKey) -> None:
        self.__mask, self.__share = mask, share
        self.mask_key = mask.public_key().public_bytes_raw()
        self.share_key = share.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> EphemeralKeys:
        """Two fresh pairs from the operating system's generator."""
        return cls(X25519PrivateKey.generate(), X25519PrivateKey.generate())

    def advertise(self, signing_key: SigningKey, context: RoundContext, silo: int) -> Advertisement:
        """The public halves, signed by the silo's long-term key for this run and round."""
        signature = signing_key.sign(_statement(context, silo, self.mask_key, self.share_key))
        return Advertisement(silo, self.mask_key, self.share_key, signature)

    def mask_secret(self) -> bytes:
        """The private key for masks, 32 bytes: to be shared among the neighbours, never sent whole."""
        return self.__mask.private_bytes_raw()

    def pair_mask(self, context: RoundContext, peer: Advertisement) -> Mask:
        """The pairwise mask with ``peer``, as this silo applies it.

        Raises
        ------
        SecAggError
            If the peer's key is this silo's own, or a point of small order.
        """
        return pair_mask(_exchange(self.__mask, peer.mask_key, peer.silo), context, self.mask_key, peer.mask_key)

    def channel_key(self, context: RoundContext, peer: Advertisement, *, outgoing: bool) -> bytes:
        """The key under which shares travel to ``peer`` (``outgoing``) or come from it: 32 bytes, one for each direction.

        Raises
        ------
        SecAggError
            If the peer's key is this silo's own, or a point of small order.
        """
        if peer.share_key == self.share_key:
            raise SecAggError(f"silo {peer.silo} has this silo's own key for shares")
        ends = (self.share_key, peer.share_key) if outgoing else (peer.share_key, self.share_key)
        return context.derive(_exchange(self.__share, peer.share_key, peer.silo), "share channel", *ends)

    def to_disk(self) -> bytes:
        """Both private keys, 64 bytes, for a file that only the silo can read, until the round is over."""
        return self.__mask.private_bytes_raw() + self.__share.private_bytes_raw()

    @classmethod
    def from_disk(cls, data: bytes) -> EphemeralKeys:
        """What :meth:`to_disk` gave; :class:`SecAggError` for anything else."""
        if len(data) != 2 * KEY_BYTES:
            raise SecAggError(f"the keys of a round have {2 * KEY_BYTES} bytes, not {len(data)}")
        return cls(*(X25519PrivateKey.from_private_bytes(part) for part in (data[:KEY_BYTES], data[KEY_BYTES:])))

    def __repr__(self) -> str:
        return "EphemeralKeys()"

    def __reduce__(self) -> str:
        raise TypeError("the keys of a round are not copied to other processes")


def recovered_pair_mask(mask_secret: bytes, context: RoundContext, owner: Advertisement, peer: Advertisement) -> Mask:
    """The pairwise mask that ``peer`` applied for a silo that dropped out, from that silo's recovered private key.

    It has the sign that it has in the vector of ``peer``: ``removal()`` of it takes it off the sum.

    Raises
    ------
    SecAggError
        If the private key is not that of ``owner.mask_key``: shares were wrong.
    """
    if len(mask_secret) != KEY_BYTES:
        raise SecAggError(f"a private key has {KEY_BYTES} bytes")
    private = X25519PrivateKey.from_private_bytes(mask_secret)
    if private.public_key().public_bytes_raw() != owner.mask_key:
        raise SecAggError(f"what was recovered is not the key for masks that silo {owner.silo} advertised")
    return pair_mask(_exchange(private, peer.mask_key, peer.silo), context, peer.mask_key, owner.mask_key)


def verify_advertisement(advertisement: Advertisement, roster_key: str, context: RoundContext, silo: int) -> None:
    """Check that silo number ``silo``, whose key in the roster is ``roster_key`` (64 hex), advertised this for this round.

    Raises
    ------
    SecAggError
        If it names another silo, was signed by another key or for another run or round, holds a point of small order or in
        a second spelling, or the same key twice.
    """
    if advertisement.silo != silo:
        raise SecAggError(f"the advertisement for silo {silo} is that of silo {advertisement.silo}")
    statement = _statement(context, silo, advertisement.mask_key, advertisement.share_key)
    if not verify(roster_key, advertisement.signature, statement):
        raise SecAggError(
            f"silo {silo} did not sign these keys for this run and round: they are forged, altered or from another round"
        )
    for key in (advertisement.mask_key, advertisement.share_key):
        if int.from_bytes(key, "little") >= _FIELD:
            raise SecAggError(f"silo {silo} advertised a key that is not in canonical form")
        _exchange(_TRIAL, key, silo)
    if advertisement.mask_key == advertisement.share_key:
        raise SecAggError(f"silo {silo} advertised one key for masks and shares; they must be two")


def verify_advertisements(
    advertisements: Iterable[Advertisement], roster: Mapping[int, str], context: RoundContext
) -> dict[int, Advertisement]:
    """Check all of a round's advertisements; by silo, in the order of their numbers.

    Parameters
    ----------
    advertisements:
        As they came, in any order.
    roster:
        Ed25519 public keys (64 hex) of the consortium's silos, by number.
    context:
        Run and round that they must be for.

    Raises
    ------
    SecAggError
        As :func:`verify_advertisement`; and if a silo is not in the roster or advertised twice, two silos of the roster have the
        same long-term key, or any two silos advertised the same key.
    """
    found: dict[int, Advertisement] = {}
    owners: dict[bytes, int] = {}
    identities: dict[str, int] = {}
    for advertisement in sorted(advertisements, key=lambda one: one.silo):
        silo = advertisement.silo
        if silo not in roster:
            raise SecAggError(f"silo {silo} is not in the roster")
        if silo in found:
            raise SecAggError(f"silo {silo} advertised twice")
        verify_advertisement(advertisement, roster[silo], context, silo)
        other = identities.setdefault(roster[silo], silo)
        if other != silo:
            raise SecAggError(f"silos {other} and {silo} have the same long-term key in the roster")
        for key in (advertisement.mask_key, advertisement.share_key):
            other = owners.setdefault(key, silo)
            if other != silo:
                raise SecAggError(f"silos {other} and {silo} advertised the same key")
        found[silo] = advertisement
    return found


def _statement(context: RoundContext, silo: int, mask_key: bytes, share_key: bytes) -> bytes:
    return context.bind("advertisement", silo_bytes(silo), mask_key, share_key)


def _exchange(private: X25519PrivateKey, public: bytes, silo: int) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # the shared secret is zero whatever the private key (RFC 7748, section 6.1)
        raise SecAggError(f"silo {silo} advertised a point of small order: everybody would know its secrets") from None
