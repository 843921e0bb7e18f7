"""Sealing to silos' keys, against the RFCs' vectors and against a second implementation of the same text."""

from __future__ import annotations

import hmac
import io
import os
import pickle
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from common.bundle import sealing
from common.bundle.recipients import RecipientKey, create_recipient_key, load_recipient_key, public_path, recipient
from common.bundle.sealing import CHUNK, MAGIC, MAX_RECIPIENTS, is_sealed, open_file, seal, seal_file, unseal
from common.errors import BundleError
from common.privacy.signing import create_key

NORTH, SOUTH = (X25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (7, 8))
HEADER = len(MAGIC) + 2


def public(private: X25519PrivateKey) -> bytes:
    return private.public_key().public_bytes_raw()


def sealed_to(contents: bytes, *to: X25519PrivateKey) -> bytes:
    return b"".join(seal(io.BytesIO(contents), [public(one) for one in to]))


def opened_by(sealed: bytes, private: X25519PrivateKey) -> bytes:
    return b"".join(unseal(io.BytesIO(sealed), RecipientKey(private)))


# A second implementation: HKDF by HMAC as RFC 5869 writes it, X25519 by the ladder of RFC 7748.


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    out = block = b""
    while len(out) < length:
        block = hmac.digest(extracted, block + info + bytes([len(out) // 32 + 1]), "sha256")
        out += block
    return out[:length]


def x25519(scalar: bytes, point: bytes) -> bytes:
    p = 2**255 - 19
    k = (int.from_bytes(scalar, "little") & ~7 & ~(1 << 255)) | 1 << 254
    x1 = int.from_bytes(point, "little") & ~(1 << 255)
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % p, x1 * (da - cb) ** 2 % p
        x2, z2 = aa * bb % p, e * (aa + 121665 * e) % p
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


def opened_by_hand(sealed: bytes, scalar: bytes) -> bytes:
    """The format as :mod:`common.bundle.sealing` describes it, read without it."""
    ours = x25519(scalar, (9).to_bytes(32, "little"))
    count = int.from_bytes(sealed[17:19], "big")
    for i in range(count):
        stanza = sealed[19 + 80 * i : 99 + 80 * i]
        wrapping = hkdf(x25519(scalar, stanza[:32]), stanza[:32] + ours, b"silorec-sealed-1 wrap")
        try:
            file_key = ChaCha20Poly1305(wrapping).decrypt(bytes(12), stanza[32:], None)
        except Exception:
            continue
        end = 19 + 80 * count
        assert hmac.digest(hkdf(file_key, b"", b"silorec-sealed-1 header"), sealed[:end], "sha256") == sealed[end : end + 32]
        cipher = ChaCha20Poly1305(hkdf(file_key, b"", b"silorec-sealed-1 contents"))
        body, size = sealed[end + 32 :], 65536 + 16
        blocks = [body[at : at + size] for at in range(0, len(body), size)]
        last = len(blocks) - 1
        return b"".join(
            cipher.decrypt(n.to_bytes(11, "big") + (b"\1" if n == last else b"\0"), block, None) for n, block in enumerate(blocks)
        )
    raise AssertionError("not for this key")


def test_the_parts_agree_with_the_rfcs() -> None:
    def h(text: str) -> bytes:
        return bytes.fromhex(text)

    # RFC 7748, section 5.2, first vector and first iteration
    scalar = h("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = h("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    out = h("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
    assert x25519(scalar, point) == out
    assert RecipientKey(X25519PrivateKey.from_private_bytes(scalar)).exchange(point) == out
    nine = (9).to_bytes(32, "little")
    once = h("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079")
    assert x25519(nine, nine) == RecipientKey(X25519PrivateKey.from_private_bytes(nine)).exchange(nine) == once
    # RFC 5869, appendix A.1 and A.3
    first = h("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    third = h("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")
    for salt, info, wanted in ((bytes(range(13)), bytes(range(0xF0, 0xFA)), first), (b"", b"", third)):
        assert hkdf(b"\x0b" * 22, salt, info, 42) == wanted
        assert HKDF(SHA256(), 42, salt, info).derive(b"\x0b" * 22) == wanted
    # RFC 8439, section 2.8.2
    key, nonce = bytes(range(0x80, 0xA0)), h("070000004041424344454647")
    text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
    box = ChaCha20Poly1305(key).encrypt(nonce, text, h("50515253c0c1c2c3c4c5c6c7"))
    assert box[:16] == h("d31a8d34648e60db7b86afbc53ef7ec2")
    assert box[-16:] == h("1ae10b594f09e26a7e902ecbd0600691")


@pytest.mark.parametrize("size", [1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5])
def test_what_is_sealed_opens_for_each_recipient_by_either_implementation(size: int) -> None:
    contents = bytes(i * 7 % 251 for i in range(size))
    sealed = sealed_to(contents, NORTH, SOUTH)
    for private in (NORTH, SOUTH):
        assert opened_by(sealed, private) == contents
        assert opened_by_hand(sealed, private.private_bytes_raw()) == contents
    assert len(sealed) == HEADER + 2 * 80 + 32 + size + -(-size // CHUNK) * 16
    with pytest.raises(BundleError, match="not sealed to x25519"):
        opened_by(sealed, X25519PrivateKey.generate())


def test_the_same_contents_never_look_the_same_and_recipients_are_not_named() -> None:
    first, second = sealed_to(b"contents", NORTH), sealed_to(b"contents", NORTH)
    assert first[HEADER:] != second[HEADER:]
    for sealed in (first, second):
        assert public(NORTH) not in sealed
        assert b"contents" not in sealed


def test_every_bit_of_every_byte_counts() -> None:
    sealed = sealed_to(b"some contents", NORTH, SOUTH)
    for place in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[place] ^= 1 << bit
            for private in (NORTH, SOUTH):
                with pytest.raises(BundleError):
                    opened_by(bytes(changed), private)


@pytest.fixture(scope="module")
def long() -> bytes:
    return sealed_to(os.urandom(3 * CHUNK + 100), NORTH)


def test_chunks_that_are_missing_moved_doubled_or_appended_are_found(long: bytes) -> None:
    start, size = HEADER + 80 + 32, CHUNK + 16
    head, chunks = long[:start], [long[at : at + size] for at in range(start, len(long), size)]
    assert len(chunks) == 4
    other = sealed_to(os.urandom(CHUNK), NORTH)[start:]
    for order in (
        chunks[:3], chunks[:2], chunks[1:], [], [chunks[1], chunks[0], *chunks[2:]], [chunks[0], *chunks], [*chunks, chunks[3]],
        [*chunks, b"\0"], [*chunks[:3], chunks[3][:-1]], [*chunks[:3], chunks[3][:10]], [*chunks[:3], b""], [*chunks[:3], other],
        [*chunks[:3], chunks[3] + bytes(16)],
    ):  # fmt: skip
        with pytest.raises(BundleError, match=r"chunk|nothing"):
            opened_by(head + b"".join(order), NORTH)
    assert len(opened_by(head + b"".join(chunks), NORTH)) == 3 * CHUNK + 100


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_no_splice_opens_to_anything_else(data: st.DataObject, long: bytes) -> None:
    start = data.draw(st.integers(0, len(long)))
    cut, put = data.draw(st.integers(0, 200) | st.just(CHUNK + 16)), data.draw(st.binary(max_size=100))
    changed = long[:start] + put + long[start + cut :]
    if changed == long:
        return
    with pytest.raises(BundleError):
        opened_by(changed, NORTH)


@given(content=st.binary(max_size=400), whole=st.booleans())
def test_no_bytes_make_opening_fail_otherwise(content: bytes, whole: bool) -> None:
    with pytest.raises(BundleError):
        opened_by(MAGIC + b"\0\1" + content if whole else content, NORTH)


def test_a_header_with_wraps_for_a_key_of_small_order_is_refused() -> None:
    sealed = sealed_to(b"x", NORTH)
    for point in (bytes(32), (1).to_bytes(32, "little")):
        with pytest.raises(BundleError, match="not sealed to"):
            opened_by(sealed[:HEADER] + point + sealed[HEADER + 32 :], NORTH)
        with pytest.raises(BundleError, match="small order"):
            b"".join(seal(io.BytesIO(b"x"), [point]))


def test_another_file_key_under_the_same_wrap_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds one recipient's place cannot give two recipients two contents: the header's code ties the file to one key."""
    keys = iter((b"a" * 32, b"b" * 32))
    monkeypatch.setattr(os, "urandom", lambda _: next(keys))
    first, second = sealed_to(b"for north", NORTH), sealed_to(b"for south", SOUTH)
    mixed = MAGIC + b"\0\2" + first[HEADER : HEADER + 80] + second[HEADER : HEADER + 80] + first[HEADER + 80 :]
    for private in (NORTH, SOUTH):
        with pytest.raises(BundleError, match="header was altered"):
            opened_by(mixed, private)


def test_nobody_nothing_and_too_many_are_refused() -> None:
    for contents, to, said in (
        (b"x", [], "0 recipients"),
        (b"x", [i.to_bytes(32, "big") for i in range(9, MAX_RECIPIENTS + 10)], "1025 recipients"),
        (b"", [public(NORTH)], "nothing to seal"),
    ):
        with pytest.raises(BundleError, match=said):
            b"".join(seal(io.BytesIO(contents), to))


# Files


def test_files_are_sealed_and_opened_and_only_the_owner_reads_what_was_sealed(tmp_path: Path) -> None:
    plain, sealed, back = (tmp_path / name for name in ("a", "a.sealed", "back"))
    plain.write_bytes(os.urandom(200_000))
    seal_file(plain, sealed, [public(NORTH)])
    assert is_sealed(sealed)
    assert not is_sealed(plain)
    assert not is_sealed(tmp_path / "nothing")
    open_file(sealed, back, RecipientKey(NORTH))
    assert back.read_bytes() == plain.read_bytes()
    assert stat.S_IMODE(back.stat().st_mode) == 0o600


def test_nothing_is_left_of_what_does_not_hold_to_its_end(tmp_path: Path, long: bytes) -> None:
    (tmp_path / "cut.sealed").write_bytes(long[:-1])
    with pytest.raises(BundleError, match=r"cut\.sealed: chunk 3"):
        open_file(tmp_path / "cut.sealed", tmp_path / "out", RecipientKey(NORTH))
    assert [one.name for one in tmp_path.iterdir()] == ["cut.sealed"]
    for read in (
        lambda: seal_file(tmp_path / "no", tmp_path / "x", [public(NORTH)]),
        lambda: open_file(tmp_path, tmp_path / "x", RecipientKey(NORTH)),
    ):
        with pytest.raises(BundleError, match="cannot be read"):
            read()


# Keys


def test_a_pair_is_made_kept_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "north.key"
    made = create_recipient_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_path(path).read_text() == made.public_key + "\n"
    assert (
        load_recipient_key(path).public_bytes
        == made.public_bytes
        == recipient(made.public_key)
        == recipient(str(public_path(path)))
    )
    with pytest.raises(BundleError, match="a key is never overwritten"):
        create_recipient_key(path)
    assert load_recipient_key(path).public_bytes == made.public_bytes
    assert [*tmp_path.glob(".*")] == []


def test_a_private_key_is_not_shown_or_copied() -> None:
    key = RecipientKey(NORTH)
    assert NORTH.private_bytes_raw().hex() not in repr(key) + str(vars(key))
    with pytest.raises(TypeError, match="not copied"):
        pickle.dumps(key)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_key_that_others_can_get_at_is_refused(tmp_path: Path, mode: int) -> None:
    create_recipient_key(tmp_path / "k")
    (tmp_path / "k").chmod(mode)
    with pytest.raises(BundleError, match=rf"mode {mode:04o}.*chmod 600"):
        load_recipient_key(tmp_path / "k")


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    create_key(tmp_path / "signing.key")
    (tmp_path / "junk").write_bytes(b"junk")
    encrypted = tmp_path / "encrypted"
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption

    encrypted.write_bytes(NORTH.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    for path in (tmp_path / "junk", encrypted):
        path.chmod(0o600)
    for name in ("signing.key", "junk", "encrypted"):
        with pytest.raises(BundleError, match="not an unencrypted X25519"):
            load_recipient_key(tmp_path / name)
    with pytest.raises(BundleError, match="cannot be read"):
        load_recipient_key(tmp_path / "none")
    good = NORTH.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "junk").write_bytes(good)
    assert load_recipient_key(tmp_path / "junk").public_bytes == public(NORTH)


def test_what_is_no_public_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "signer.pub").write_text("ab" * 32 + "\n")
    for text, said in (
        ("ab" * 32, "is neither a recipient's key"),
        (str(tmp_path / "signer.pub"), "not the public key of a recipient"),
        ("x25519:" + "00" * 32, "small order"),
        ("x25519:" + "AB" * 32, "neither"),
        ("\0", "neither"),
    ):
        with pytest.raises(BundleError, match=said):
            recipient(text)


def test_a_wrap_is_derived_for_one_purpose_only() -> None:
    secret = bytes(32)
    assert len({sealing._derived(secret, what) for what in (b"wrap", b"header", b"contents")}) == 3
