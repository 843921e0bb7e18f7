"""Keys on their owner's disk, as Flower and OpenSSH read them."""

from __future__ import annotations

import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from common.consortium.certificates import key_of_signing_request, make_signing_request
from common.consortium.keys import load_key_p384, node_line, own_key
from common.errors import ConsortiumError
from tests.common.consortium.conftest import Shops, needs


def test_flower_reads_a_silos_node_key_and_its_public_half(shops: Shops, tmp_path: Path) -> None:
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    home = shops.admit("north")
    arguments = Namespace(auth_supernode_private_key=str(home.node_key), auth_supernode_public_key=None)
    private, public = _try_setup_client_authentication(arguments)  # type: ignore[misc]
    assert private.curve.name == "secp384r1"
    member = shops.consortium.named("north")
    assert public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) == member.node_pem
    (tmp_path / "node.pub").write_text(member.node)
    assert try_load_public_key(tmp_path / "node.pub") == member.node_pem


@needs("ssh-keygen")
def test_openssh_reads_a_silos_node_key(shops: Shops) -> None:
    home = shops.admit("north")
    said = subprocess.run(["ssh-keygen", "-l", "-f", home.node_key], capture_output=True, text=True, check=True).stdout
    assert said.startswith("384 SHA256:")
    assert said.strip().endswith("(ECDSA)")


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    for openssh, begins in ((True, b"-----BEGIN OPENSSH PRIVATE KEY-----"), (False, b"-----BEGIN PRIVATE KEY-----")):
        path = tmp_path / f"{openssh}.key"
        first = node_line(own_key(path, openssh=openssh).public_key())
        assert path.read_bytes().startswith(begins)
        assert path.stat().st_mode & 0o777 == 0o600
        assert node_line(own_key(path).public_key()) == node_line(load_key_p384(path).public_key()) == first


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610])
def test_a_key_that_others_can_get_at_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    own_key(path)
    path.chmod(mode)
    with pytest.raises(ConsortiumError, match=f"others than its owner can read or change it .*; run: chmod 600 {path}"):
        load_key_p384(path)


def test_what_is_no_p384_key_is_refused(tmp_path: Path) -> None:
    pem, form = Encoding.PEM, PrivateFormat.PKCS8
    own = load_pem_private_key(_pem_of(tmp_path), None)
    wrong = {
        "another curve": generate_private_key(SECP256R1()).private_bytes(pem, form, NoEncryption()),
        "another curve for OpenSSH": generate_private_key(SECP256R1()).private_bytes(pem, PrivateFormat.OpenSSH, NoEncryption()),
        "encrypted": own.private_bytes(pem, form, BestAvailableEncryption(b"secret")),
        "cut off": _pem_of(tmp_path)[:-40],
        "nothing": b"",
    }
    for content in wrong.values():
        path = tmp_path / "wrong.key"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(ConsortiumError, match=r"wrong\.key: not an unencrypted P-384 private key"):
            load_key_p384(path)
    with pytest.raises(ConsortiumError, match=r"nowhere\.key: no such file"):
        load_key_p384(tmp_path / "nowhere.key")


@needs("openssl")
def test_a_signing_request_proves_that_its_sender_has_the_key(tmp_path: Path) -> None:
    key = own_key(tmp_path / "tls.key")
    request = make_signing_request(key, "north")
    said = subprocess.run(["openssl", "req", "-verify", "-noout"], input=request, capture_output=True, text=True, check=False)
    assert said.returncode == 0
    assert node_line(key_of_signing_request(request)) == node_line(key.public_key())
    body = request.splitlines()
    for text in ("", "nonsense", "\n".join([*body[:-2], body[-2][::-1], body[-1]])):
        with pytest.raises(ConsortiumError, match="the request for a TLS certificate is not one"):
            key_of_signing_request(text)


def _pem_of(folder: Path) -> bytes:
    own_key(folder / "own.key")
    return (folder / "own.key").read_bytes()
