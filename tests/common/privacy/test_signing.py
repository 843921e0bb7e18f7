"""Keys stay in their file, files that others can read are not used, and a signature is of one key and one message."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from common.errors import LedgerError
from common.privacy.signing import SigningKey, create_key, fingerprint, is_public_key, load_key, verify

# RFC 8032, section 7.1: secret key, public key, message, signature of TEST 1, 2 and 3.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_signatures_are_those_of_rfc_8032(secret: str, public: str, message: str, signature: str) -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)))
    assert key.public_key == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert verify(public, bytes.fromhex(signature), bytes.fromhex(message))


def test_a_signature_is_of_one_key_and_one_message(tmp_path: Path) -> None:
    key, other = create_key(tmp_path / "one"), create_key(tmp_path / "two")
    signature = key.sign(b"message")
    assert verify(key.public_key, signature, b"message")
    assert not verify(other.public_key, signature, b"message")
    assert not verify(key.public_key, signature, b"massage")
    for bit in range(512):
        altered = bytearray(signature)
        altered[bit // 8] ^= 1 << bit % 8
        assert not verify(key.public_key, bytes(altered), b"message")
    for malformed in (b"", signature[:-1], signature + b"\0"):
        assert not verify(key.public_key, malformed, b"message")


@pytest.mark.parametrize("public", ["", "00", "A" * 64, "g" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", " " + "a" * 63])
def test_a_public_key_has_one_form(public: str) -> None:
    assert not is_public_key(public)
    assert not verify(public, bytes(64), b"")


def test_a_created_key_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    made = create_key(tmp_path / "key")
    loaded = load_key(tmp_path / "key")
    assert loaded.public_key == made.public_key
    assert loaded.sign(b"x") == made.sign(b"x")
    assert (tmp_path / "key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")  # PKCS8
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_two_keys_are_never_the_same(tmp_path: Path) -> None:
    assert len({create_key(tmp_path / str(i)).public_key for i in range(50)}) == 50


def test_only_the_owner_can_read_a_key_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create_key(tmp_path / "key")
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601, 0o644, 0o777])
def test_a_key_that_others_can_get_at_is_refused(tmp_path: Path, mode: int) -> None:
    create_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(LedgerError, match=f"others than its owner .*chmod 600 {tmp_path / 'key'}"):
        load_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o600)
    load_key(tmp_path / "key")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    create_key(tmp_path / "key")
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(LedgerError, match="never overwritten"):
        create_key(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LedgerError, match="never overwritten"):
        create_key(tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "link"]


def test_of_many_who_create_the_same_key_one_does(tmp_path: Path) -> None:
    made: list[str] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        with contextlib.suppress(LedgerError):
            made.append(create_key(tmp_path / "key").public_key)

    racers = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert made == [load_key(tmp_path / "key").public_key]


def test_a_key_is_on_the_disk_before_its_name_and_both_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append("folder" if place == str(tmp_path) else f"file of {os.fstat(descriptor).st_size > 0}")
        assert (tmp_path / "key").exists() == (place == str(tmp_path))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    create_key(tmp_path / "key")
    assert synced == ["file of True", "folder"]


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be written"):
        create_key(tmp_path / "missing" / "key")
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be written"):
        create_key(tmp_path / "file" / "key")


def other_keys() -> dict[str, bytes]:
    pem, pkcs8, open_ = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    mine = Ed25519PrivateKey.generate()
    return {
        "empty": b"",
        "text": b"not a key",
        "cut": mine.private_bytes(pem, pkcs8, open_)[:60],
        "encrypted": mine.private_bytes(pem, pkcs8, BestAvailableEncryption(b"word")),
        "public": mine.public_key().public_bytes(pem, PublicFormat.SubjectPublicKeyInfo),
        "x25519": x25519.X25519PrivateKey.generate().private_bytes(pem, pkcs8, open_),
        "rsa": rsa.generate_private_key(65537, 2048).private_bytes(pem, pkcs8, open_),
    }


def test_what_is_no_ed25519_key_is_refused(tmp_path: Path) -> None:
    for name, content in other_keys().items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
        with pytest.raises(LedgerError, match="not an unencrypted Ed25519 private key"):
            load_key(tmp_path / name)
    with pytest.raises(LedgerError, match="there is no key"):
        load_key(tmp_path / "missing")
    with pytest.raises(LedgerError, match="cannot be read"):
        load_key(tmp_path)


def test_a_key_does_not_show_its_secret(tmp_path: Path) -> None:
    key = create_key(tmp_path / "key")
    assert repr(key) == f"SigningKey({fingerprint(key.public_key)})"
    with pytest.raises(TypeError, match="not copied"):
        pickle.dumps(key)


def test_a_fingerprint_is_half_of_a_sha_256(tmp_path: Path) -> None:
    public = create_key(tmp_path / "key").public_key
    assert fingerprint(public).replace("-", "") == hashlib.sha256(bytes.fromhex(public)).hexdigest()[:32]
    assert [len(group) for group in fingerprint(public).split("-")] == [4] * 8
