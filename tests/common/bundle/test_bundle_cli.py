"""``silorec bundle``: what a person and a script see, and with which status it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import silorec
from common.bundle.contents import Bundle
from common.bundle.files import read_bundle
from common.bundle.manifest import SIGNED
from common.privacy.signing import SigningKey, fingerprint
from tests.common.bundle.conftest import Resign

OTHER = "ab" * 32


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Status, standard output and standard error of ``silorec bundle`` with these arguments."""
    with pytest.raises(SystemExit) as ended:
        silorec.main(["bundle", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return int(ended.value.code or 0), out, err


def test_a_bundle_that_holds(capsys: pytest.CaptureFixture[str], archive: Path, key: SigningKey, tmp_path: Path) -> None:
    digest = read_bundle(archive, {key.public_key}).digest
    status, out, err = run(capsys, "verify", archive, "--signer", key.public_key)
    assert (status, err) == (0, "")
    assert "holds; tiny, 12 items" in out
    assert digest in out
    assert fingerprint(key.public_key) in out
    keys = tmp_path / "signers"
    keys.write_text(f"# the coordinator\n{OTHER}\n{key.public_key}  # since May\n")
    status, out, _ = run(capsys, "verify", archive, "--signer", keys, "--json")
    facts = json.loads(out)
    assert (status, facts["holds"], facts["digest"], facts["items"], facts["wrong"]) == (0, True, digest, 12, "")


def test_one_that_does_not_is_status_1_with_the_reason(
    capsys: pytest.CaptureFixture[str], archive: Path, key: SigningKey, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.bundle"
    cut.write_bytes(archive.read_bytes()[:-1])
    for arguments, said in (
        ((archive, "--signer", OTHER), "who is not among the 1 trusted signers"),
        ((cut, "--signer", key.public_key), "it was cut off"),
        ((archive, "--signer", key.public_key, "--max-items", 11), "at most 11"),
        ((tmp_path, "--signer", key.public_key), "not part of a bundle"),
    ):
        status, out, err = run(capsys, "verify", *arguments)
        assert (status, out) == (1, "")
        assert err.startswith(f"silorec: {arguments[0]}: ")
        assert said in err
        status, out, _ = run(capsys, "verify", *arguments, "--json")
        assert status == 1
        assert json.loads(out)["holds"] is False
        assert said in json.loads(out)["wrong"]


def test_bad_input_is_status_2_in_one_sentence(
    capsys: pytest.CaptureFixture[str], archive: Path, key: SigningKey, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    nowhere = tmp_path / "nothing.bundle"
    for arguments, said in (
        (("verify", nowhere, "--signer", OTHER), "nothing.bundle: no such file"),
        (("show", nowhere), "nothing.bundle: no such file"),
        (("verify", archive, "--signer", "AB" * 32), "neither a public key"),
        (("verify", archive, "--signer", tmp_path / "empty"), "the file must hold public keys"),
        (("verify", archive, "--signer", archive), "the file must hold public keys"),
        (("seal", archive, "--to", OTHER), "neither a recipient's key"),
        (("seal", nowhere, "--to", "x25519:" + "09" + "00" * 31), "no such file"),
        (("seal", tmp_path / "empty", "--to", "x25519:" + "09" + "00" * 31), "ends within MANIFEST.json"),
        (("open", nowhere, "--key", nowhere, "--signer", OTHER), "the key cannot be read"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (2, "")
        assert said in err
        assert len(err.splitlines()) == 1
    assert run(capsys, "verify", archive)[0] == 2  # no signer is a mistake, not a default


def test_show_prints_the_card(capsys: pytest.CaptureFixture[str], archive: Path, tiny: Bundle, key: SigningKey) -> None:
    status, out, err = run(capsys, "show", archive, "--signer", key.public_key)
    assert (status, err) == (0, "")
    text = " ".join(out.split())
    for said in ("epsilon 8.00 at delta 1e-05", "nobody beside the silo itself", "Apache-2.0", "0.07 to 0.09", "NOT VERIFIED"):
        assert (said in text) == (said != "NOT VERIFIED")
    status, out, _ = run(capsys, "show", archive, "--signer", key.public_key, "--json")
    assert status == 0
    assert json.loads(out)["card"] == tiny.card.model_dump(mode="json")


def test_show_of_a_bundle_that_nobody_vouches_for_shows_claims_and_says_so(
    capsys: pytest.CaptureFixture[str], archive: Path, key: SigningKey
) -> None:
    for arguments in ((), ("--signer", OTHER)):
        status, out, err = run(capsys, "show", archive, *arguments)
        assert status == 1
        assert out.startswith("NOT VERIFIED")
        assert "NOT VERIFIED" in err
        assert all(name in out for name in SIGNED)
        assert "epsilon" not in out  # the card was not opened
        status, out, _ = run(capsys, "show", archive, *arguments, "--json")
        facts = json.loads(out)
        assert (status, facts["verified"], facts["signer"]) == (1, False, key.public_key)
        assert "card" not in facts


def test_show_of_an_altered_bundle_shows_no_card(
    capsys: pytest.CaptureFixture[str], archive: Path, key: SigningKey, tmp_path: Path
) -> None:
    altered = tmp_path / "altered.bundle"
    altered.write_bytes(archive.read_bytes().replace(b"epsilon 8.00", b"epsilon 0.01"))
    status, out, err = run(capsys, "show", altered, "--signer", key.public_key)
    assert status == 1
    assert "epsilon" not in out
    assert "NOT VERIFIED" in err
    altered.write_bytes(b"PK")
    status, out, err = run(capsys, "show", altered)
    assert (status, out) == (1, "")
    assert "NOT VERIFIED" in err


def test_texts_of_a_card_are_not_read_as_markup(
    capsys: pytest.CaptureFixture[str], tiny: Bundle, key: SigningKey, tmp_path: Path
) -> None:
    from common.bundle.files import write_bundle

    card = tiny.card.model_copy(update={"name": "[red]tiny[/red]", "notes": ("[bold]note[/]",)})
    path = tmp_path / "x.bundle"
    write_bundle(path, card=card, catalogue=tiny.catalogue, items=tiny.items, model=tiny.model, key=key)
    _, out, _ = run(capsys, "show", path, "--signer", key.public_key)
    assert "[red]tiny[/red]" in out
    assert "[bold]note[/]" in out


def test_sealed_for_two_opened_by_each_and_by_nobody_else(
    capsys: pytest.CaptureFixture[str], archive: Path, key: SigningKey, tmp_path: Path
) -> None:
    for name in ("north", "south", "west"):
        status, out, _ = run(capsys, "key", tmp_path / f"{name}.key")
        assert status == 0
        assert "x25519:" in out
    sealed = tmp_path / "shop.bundle.sealed"
    north, south = tmp_path / "north.key.pub", (tmp_path / "south.key.pub").read_text().strip()
    status, out, _ = run(capsys, "seal", archive, "--to", north, "--to", south, "--out", sealed, "--json")
    assert (status, json.loads(out)["recipients"]) == (0, 2)
    status, _, err = run(capsys, "verify", sealed, "--signer", key.public_key)
    assert status == 1
    assert "is sealed; open it first" in err
    status, out, _ = run(capsys, "open", sealed, "--key", tmp_path / "north.key", "--signer", key.public_key)
    assert status == 0
    assert (tmp_path / "shop.bundle").read_bytes() == archive.read_bytes()
    status, _, err = run(capsys, "open", sealed, "--key", tmp_path / "south.key", "--signer", key.public_key)
    assert status == 2
    assert "there is a file already" in err
    second = tmp_path / "second.bundle"
    status, out, _ = run(
        capsys, "open", sealed, "--key", tmp_path / "south.key", "--signer", key.public_key, "--out", second, "--json"
    )
    assert (status, json.loads(out)["bundle"]) == (0, str(second))
    assert second.read_bytes() == archive.read_bytes()
    status, _, err = run(
        capsys, "open", sealed, "--key", tmp_path / "west.key", "--signer", key.public_key, "--out", tmp_path / "x"
    )
    assert status == 1
    assert "not sealed to x25519:" in err
    assert not (tmp_path / "x").exists()


def test_what_is_sealed_by_another_signer_is_opened_by_nobody(
    capsys: pytest.CaptureFixture[str], archive: Path, tmp_path: Path
) -> None:
    """Anybody can seal to a public key; nothing is written until the signature inside holds."""
    run(capsys, "key", tmp_path / "north.key")
    sealed = tmp_path / "x.sealed"
    assert run(capsys, "seal", archive, "--to", tmp_path / "north.key.pub", "--out", sealed)[0] == 0
    before = sorted(os.listdir(tmp_path))
    status, out, err = run(capsys, "open", sealed, "--key", tmp_path / "north.key", "--signer", OTHER)
    assert (status, out) == (1, "")
    assert f"what is sealed in {sealed}: signed by" in err
    assert err.rstrip().endswith("nothing was written")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_folder_is_not_sealed_but_is_verified(
    capsys: pytest.CaptureFixture[str], contents: dict[str, bytes], key: SigningKey, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    assert run(capsys, "verify", folder, "--signer", key.public_key)[0] == 0
    status, _, err = run(capsys, "seal", folder, "--to", "x25519:" + "09" + "00" * 31)
    assert status == 2
    assert "a folder is not sealed" in err


def test_a_bundle_of_signed_nonsense_does_not_hold(capsys: pytest.CaptureFixture[str], resigned: Resign, key: SigningKey) -> None:
    status, _, err = run(capsys, "verify", resigned({"model.onnx": b"nonsense"}), "--signer", key.public_key)
    assert status == 1
    assert "model.onnx is not an ONNX model" in err
