"""Shares: enough of them give the secret, fewer say nothing, and wrong ones are errors."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from fractions import Fraction
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import SecAggError
from common.secagg.shamir import SHARE_BYTES, P, Share, combine, evaluate, split, weights_at_zero


def slow_secret(points: list[tuple[int, int]], prime: int) -> int:
    """Lagrange at zero by fractions, put into the field at the very end."""
    total = 0
    for i, (x, y) in enumerate(points):
        weight = Fraction(1)
        for j, (other, _) in enumerate(points):
            if i != j:
                weight *= Fraction(other, other - x)
        total += y * weight.numerator * pow(weight.denominator, prime - 2, prime)
    return total % prime


def test_the_field_is_a_field() -> None:
    """Lucas and Lehmer: 2^p - 1 is prime, for a prime p > 2, if and only if s(p-2) = 0, s(0) = 4, s(i+1) = s(i)² - 2."""
    assert P == 2**521 - 1
    assert all(521 % d for d in range(2, 23))
    s = 4
    for _ in range(519):
        s = (s * s - 2) % P
    assert s == 0


@settings(max_examples=60, deadline=None)
@given(
    secret=st.binary(min_size=32, max_size=32),
    silos=st.lists(st.integers(0, 2**16 - 1), min_size=2, max_size=40, unique=True),
    data=st.data(),
)
def test_any_threshold_shares_give_the_secret(secret: bytes, silos: list[int], data: st.DataObject) -> None:
    threshold = data.draw(st.integers(2, len(silos)))
    shares = split(secret, silos, threshold)
    assert [share.silo for share in shares] == silos
    some = data.draw(st.permutations(shares))[: data.draw(st.integers(threshold, len(silos)))]
    assert combine(some, threshold) == secret
    points = [(share.silo + 1, share.value) for share in some[:threshold]]
    assert (
        slow_secret(points, P).to_bytes(64, "big")
        == secret + hashlib.sha256(b"silorec-secagg-shared-secret-1\0" + secret).digest()
    )


def test_the_extreme_secrets_survive() -> None:
    for secret in (bytes(32), b"\xff" * 32, bytes(31) + b"\x01"):
        assert combine(split(secret, range(5), 3)[2:], 3) == secret


@pytest.mark.parametrize(("prime", "threshold", "places"), [(5, 2, 4), (7, 3, 5), (5, 3, 4)])
def test_fewer_shares_than_the_threshold_say_nothing_exactly(prime: int, threshold: int, places: int) -> None:
    """Counted out: for every secret and every set of one share too few, each value turns up equally often."""
    for secret in range(prime):
        polynomials = [(secret, *rest) for rest in product(range(prime), repeat=threshold - 1)]
        for held in combinations(range(1, places + 1), threshold - 1):
            seen = Counter(tuple(evaluate(p, x, prime) for x in held) for p in polynomials)
            assert len(seen) == prime ** (threshold - 1)
            assert set(seen.values()) == {1}


@pytest.mark.parametrize("prime", [7, 101, P])
def test_the_weights_are_those_of_lagrange(prime: int) -> None:
    for places in ((1, 2), (1, 3, 4), (6, 2, 5, 1)):
        for i, weight in enumerate(weights_at_zero(places, prime)):
            assert weight == slow_secret([(x, int(i == j)) for j, x in enumerate(places)], prime)


def test_shares_are_uniform_whatever_the_secret() -> None:
    """Top four bits of one share of 2,000 sharings of zero; chi-square with 15 degrees beyond 62 is a false alarm in 10^7."""
    counts = Counter(split(bytes(32), (0, 1, 2), 3)[0].value >> 517 for _ in range(2000))
    assert sum((counts[cell] - 125) ** 2 / 125 for cell in range(16)) < 62


def test_every_sharing_is_new() -> None:
    secret = bytes(32)
    assert len({split(secret, (0, 1), 2)[0].value for _ in range(50)}) == 50


def test_one_share_too_few_is_refused_and_does_not_combine_under_a_lower_threshold() -> None:
    shares = split(secrets.token_bytes(32), range(7), 5)
    with pytest.raises(SecAggError, match="4 shares do not give a secret"):
        combine(shares[:4], 5)
    with pytest.raises(SecAggError, match="one of them is wrong"):
        combine(shares[:4], 4)  # a false alarm in 2^256
    with pytest.raises(SecAggError):
        combine(shares, 1)
    with pytest.raises(SecAggError):
        combine([], 2)


def test_wrong_mixed_or_moved_shares_are_errors() -> None:
    """Each is found but for one chance in 2^256. The weights of places 1, 2, 3 are 3, -3, 1: a small lie stays a small one."""
    one, other = (split(secrets.token_bytes(32), range(5), 3) for _ in range(2))
    wrong = [
        [Share(one[0].silo, one[0].value ^ 1), *one[1:3]],
        [Share(one[0].silo, (one[0].value + (1 << 256)) % P), *one[1:3]],
        [Share(one[2].silo, (one[2].value - (1 << 300)) % P), *one[:2]],
        [other[0], *one[1:3]],
        [Share(one[3].silo, one[0].value), *one[1:3]],  # the right value under another silo's number
    ]
    for shares in wrong:
        with pytest.raises(SecAggError, match="one of them is wrong"):
            combine(shares, 3)


def test_a_silo_with_two_shares_is_an_error() -> None:
    shares = split(bytes(32), range(5), 3)
    with pytest.raises(SecAggError, match=r"\[1\] have more than one"):
        combine([*shares[:3], shares[1]], 3)
    with pytest.raises(SecAggError, match=r"\[4\] have more than one"):
        split(bytes(32), (1, 4, 4), 2)


@pytest.mark.parametrize(
    ("secret", "silos", "threshold"),
    [(bytes(31), (0, 1), 2), (bytes(33), (0, 1), 2), (bytes(32), (0, 1), 1), (bytes(32), (0, 1), 3), (bytes(32), (-1, 1), 2)],
)
def test_what_cannot_be_shared_is_refused(secret: bytes, silos: tuple[int, ...], threshold: int) -> None:
    with pytest.raises(SecAggError):
        split(secret, silos, threshold)


def test_a_share_has_one_form_of_fixed_size() -> None:
    for share in (*split(secrets.token_bytes(32), (0, 65535), 2), Share(3, 0), Share(3, P - 1)):
        data = share.to_bytes()
        assert len(data) == SHARE_BYTES == 70
        assert Share.from_bytes(data) == share
    for data in (bytes(69), bytes(71), bytes(4) + P.to_bytes(66, "big"), bytes(4) + b"\xff" * 66, b"\xff" * 4 + bytes(66)):
        with pytest.raises(SecAggError):
            Share.from_bytes(data)


def test_a_share_does_not_show_its_value() -> None:
    assert repr(Share(3, 12345)) == "Share(silo=3)"
