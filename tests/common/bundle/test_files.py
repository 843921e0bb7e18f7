"""A bundle comes back as it was written, or not at all."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import silorec
from common.bundle import files
from common.bundle.archive import archive_parts
from common.bundle.contents import Bundle, ItemTable
from common.bundle.files import read_bundle, read_manifest, verify_bundle, write_bundle
from common.bundle.manifest import (
    CARD_JSON,
    CARD_MD,
    CATALOGUE,
    ITEMS,
    MANIFEST,
    MODEL,
    NAMES,
    SIGNATURE,
    SIGNED,
    FileFacts,
    Manifest,
    sign,
    signer_of,
)
from common.errors import BundleError
from common.privacy.signing import SigningKey, create_key, fingerprint
from tests.bundles import tiny_card, tiny_catalogue, tiny_model
from tests.common.bundle.conftest import Resign


def same(one: Bundle, other: Bundle) -> bool:
    return (
        (one.card, one.model, one.catalogue.fingerprint, one.catalogue.name, one.items.text_dim)
        == (other.card, other.model, other.catalogue.fingerprint, other.catalogue.name, other.items.text_dim)
        and one.catalogue.categories == other.catalogue.categories
        and dict(one.catalogue.fields) == dict(other.catalogue.fields)
        and all(np.array_equal(getattr(one.items, n), getattr(other.items, n)) for n in ("vectors", "scales", "biases"))
    )


def unpacked(contents: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def test_what_is_written_comes_back(archive: Path, tiny: Bundle, key: SigningKey) -> None:
    opened = read_bundle(archive, {key.public_key})
    assert same(opened, tiny)
    assert opened.signer == key.public_key
    assert not opened.items.vectors.flags.writeable


def test_so_does_what_was_unpacked_to_a_folder(
    archive: Path, contents: dict[str, bytes], key: SigningKey, tmp_path: Path
) -> None:
    folder = unpacked(contents, tmp_path / "folder")
    opened = read_bundle(folder, {key.public_key})
    assert same(opened, read_bundle(archive, {key.public_key}))
    assert opened.digest == read_bundle(archive, {key.public_key}).digest


def test_the_same_contents_and_key_give_the_same_bytes(archive: Path, tiny: Bundle, key: SigningKey, tmp_path: Path) -> None:
    again = tmp_path / "again.bundle"
    digest = write_bundle(again, card=tiny.card, catalogue=tiny.catalogue, items=tiny.items, model=tiny.model, key=key)
    assert again.read_bytes() == archive.read_bytes()
    assert digest == read_manifest(archive)[0].digest


def test_verifying_names_the_files_and_reads_the_same(archive: Path, contents: dict[str, bytes], key: SigningKey) -> None:
    verified = verify_bundle(archive, {key.public_key})
    assert verified.digest == read_bundle(archive, {key.public_key}).digest
    assert {name: facts.size for name, facts in verified.files.items()} == {name: len(contents[name]) for name in SIGNED}


def test_python_users_open_it_with_the_signers_key(archive: Path, tiny: Bundle, key: SigningKey) -> None:
    assert same(silorec.load_bundle(str(archive), key.public_key), tiny)
    assert same(silorec.load_bundle(archive, ["00" * 32, key.public_key]), tiny)


def test_a_writer_that_fails_leaves_the_old_bundle(
    archive: Path, tiny: Bundle, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shop.bundle"
    path.write_bytes(archive.read_bytes())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"shop\.bundle: cannot be written \(No space left on device\)"):
        write_bundle(path, card=tiny.card, catalogue=tiny.catalogue, items=tiny.items, model=tiny.model, key=key)
    assert path.read_bytes() == archive.read_bytes()
    assert [one.name for one in tmp_path.iterdir()] == ["shop.bundle"]


def test_nothing_is_signed_that_would_be_refused(tiny: Bundle, key: SigningKey, tmp_path: Path) -> None:
    path = tmp_path / "x.bundle"
    with pytest.raises(BundleError, match="12 item vectors for a catalogue of 11"):
        write_bundle(path, card=tiny.card, catalogue=tiny_catalogue(11), items=tiny.items, model=tiny.model, key=key)
    with pytest.raises(BundleError, match="not an ONNX model"):
        write_bundle(path, card=tiny.card, catalogue=tiny.catalogue, items=tiny.items, model=b"no model", key=key)
    with pytest.raises(BundleError, match="vectors of 6 columns"):
        write_bundle(path, card=tiny.card, catalogue=tiny.catalogue, items=tiny.items, model=tiny_model(8, 4), key=key)
    assert not [*tmp_path.iterdir()]


# Who signed


def test_a_signer_who_is_not_trusted_is_refused_by_fingerprint(archive: Path, key: SigningKey, tmp_path: Path) -> None:
    other = create_key(tmp_path / "other.key")
    with pytest.raises(BundleError, match=f"signed by {fingerprint(key.public_key)}, who is not among the 1 trusted"):
        read_bundle(archive, {other.public_key})
    assert read_bundle(archive, None).signer == key.public_key


@pytest.mark.parametrize("trusted", [set(), "a" * 64, {"a" * 63}, {"A" * 64}], ids=repr)
def test_trust_in_nobody_or_in_what_is_no_key_is_refused(archive: Path, trusted: object) -> None:
    with pytest.raises(BundleError, match="public key"):
        read_bundle(archive, trusted)  # type: ignore[arg-type]


def test_another_signature_over_the_same_manifest_does_not_count(
    contents: dict[str, bytes], key: SigningKey, resigned: Resign, tmp_path: Path
) -> None:
    other = create_key(tmp_path / "other.key")
    theirs = sign(contents[MANIFEST], other)
    as_ours = key.public_key.encode() + theirs[64:]
    for forged, said in ((theirs, "not among the 1 trusted"), (as_ours, "the signature does not fit")):
        with pytest.raises(BundleError, match=said):
            read_bundle(resigned({SIGNATURE: forged}), {key.public_key})


def test_a_signature_made_for_something_else_does_not_count(contents: dict[str, bytes], key: SigningKey) -> None:
    bare = f"{key.public_key}\n{key.sign(contents[MANIFEST]).hex()}\n".encode()
    with pytest.raises(BundleError, match="the signature does not fit"):
        signer_of(contents[MANIFEST], bare)
    assert signer_of(contents[MANIFEST], contents[SIGNATURE]) == key.public_key


# Every byte counts


def test_every_single_byte_counts(archive: Path, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any byte changed anywhere in the archive: refused, and before anything was parsed."""

    def parsed(*_: object) -> None:
        raise AssertionError("parsed before it was verified")

    monkeypatch.setattr(files, "_parse", parsed)
    whole, path = archive.read_bytes(), tmp_path / "changed.bundle"
    path.write_bytes(whole)
    with path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(whole):
            os.pwrite(file.fileno(), bytes([byte ^ (1 << place % 8)]), place)
            with pytest.raises(BundleError):
                read_bundle(path, {key.public_key})
            os.pwrite(file.fileno(), bytes([byte]), place)
    with pytest.raises(AssertionError, match="parsed"):
        read_bundle(path, {key.public_key})


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_nothing_can_be_cut_off_or_put_in(data: st.DataObject, archive: Path, key: SigningKey, tmp_path_factory: object) -> None:
    whole = archive.read_bytes()
    start = data.draw(st.integers(0, len(whole)), label="start")
    cut = data.draw(st.integers(0, len(whole) - start), label="cut")
    put = data.draw(st.binary(max_size=40), label="put")
    changed = whole[:start] + put + whole[start + cut :]
    path = archive.with_name("spliced.bundle")
    path.write_bytes(changed)
    try:
        if changed == whole:
            read_bundle(path, {key.public_key})
        else:
            with pytest.raises(BundleError):
                read_bundle(path, {key.public_key})
    finally:
        path.unlink()


@given(junk=st.binary(max_size=300), name=st.sampled_from(NAMES))
@settings(max_examples=100, deadline=None)
def test_no_file_of_a_folder_can_be_another(
    junk: bytes, name: str, contents: dict[str, bytes], key: SigningKey, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = unpacked({**contents, name: junk}, tmp_path_factory.mktemp("junk") / "folder")
    with pytest.raises(BundleError):
        read_bundle(folder, {key.public_key})


@pytest.mark.parametrize("name", SIGNED)
def test_another_file_of_the_same_size_and_a_right_checksum_is_refused(
    name: str, contents: dict[str, bytes], key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an attacker without the signer's key can do best; the archive itself is flawless."""

    def parsed(*_: object) -> None:
        raise AssertionError("parsed before it was verified")

    monkeypatch.setattr(files, "_parse", parsed)
    other = {**contents, name: contents[name][:-1] + bytes([contents[name][-1] ^ 1])}
    path = tmp_path / "other.bundle"
    path.write_bytes(b"".join(archive_parts(other)))
    for place in (path, unpacked(other, tmp_path / "folder")):
        with pytest.raises(BundleError, match=f"{name} is not the file that was signed"):
            read_bundle(place, {key.public_key})


# Folders


def test_a_folder_with_a_file_too_many_or_too_few_is_refused(contents: dict[str, bytes], key: SigningKey, tmp_path: Path) -> None:
    folder = unpacked(contents, tmp_path / "folder")
    (folder / "model.onnx.data").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"'model.onnx.data' is in the folder and not part of a bundle"):
        read_bundle(folder, {key.public_key})
    (folder / "model.onnx.data").unlink()
    for name in NAMES:
        (folder / name).rename(tmp_path / "away")
        with pytest.raises(BundleError, match=f"{name} is missing"):
            read_bundle(folder, {key.public_key})
        (tmp_path / "away").rename(folder / name)
    read_bundle(folder, {key.public_key})


@pytest.mark.parametrize("name", NAMES)
def test_links_pipes_and_folders_in_a_folder_are_refused(
    contents: dict[str, bytes], key: SigningKey, tmp_path: Path, name: str
) -> None:
    folder = unpacked(contents, tmp_path / "folder")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{name} is a link"):
        read_bundle(folder, {key.public_key})
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(BundleError, match=f"{name} is not a file"):
        read_bundle(folder, {key.public_key})
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(BundleError, match=f"{name} is not a file"):
        read_bundle(folder, {key.public_key})


def test_a_file_that_changes_after_it_was_hashed_does_not_matter(
    contents: dict[str, bytes], key: SigningKey, tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpacked(contents, tmp_path / "folder")
    parse = files._parse

    def change_then_parse(*arguments: object) -> Bundle:
        for name in NAMES:
            (folder / name).write_bytes(b"changed")
        return parse(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "_parse", change_then_parse)
    assert same(read_bundle(folder, {key.public_key}), tiny)


def test_what_is_no_file_at_all_is_refused_and_does_not_hang(key: SigningKey, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, said in (("pipe", "neither a file nor a folder"), ("socket", "cannot be read"), ("nothing", "no such file")):
            found: list[str] = []

            def read(name: str = name, found: list[str] = found) -> None:
                try:
                    read_bundle(tmp_path / name, {key.public_key})
                except BundleError as error:
                    found.append(str(error))

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            reader.join(10)
            assert found
            assert found[0].startswith(f"{tmp_path / name}: {said}")


# The manifest


def test_a_manifest_has_one_form(contents: dict[str, bytes], key: SigningKey, resigned: Resign) -> None:
    raw = json.loads(contents[MANIFEST])
    one = raw["files"][MODEL]
    others = {
        "one form": [
            json.dumps(raw, indent=1).encode(),
            contents[MANIFEST].rstrip(),
            contents[MANIFEST].replace(b'"format"', b'"format":"silorec-bundle-1","format"'),
            json.dumps({**raw, "more": 1}, sort_keys=True, separators=(",", ":")).encode() + b"\n",
        ],
        "not part of a bundle": [json.dumps({**raw, "files": {**raw["files"], "../x": one}}).encode()],
        "is missing": [json.dumps({**raw, "files": {MODEL: one}}).encode()],
        "is not a size": [
            json.dumps({**raw, "files": {**raw["files"], MODEL: {**one, "size": v}}}).encode() for v in (-1, 1.0, True, "1")
        ],
        "is not a SHA-256": [
            json.dumps({**raw, "files": {**raw["files"], MODEL: {**one, "sha256": v}}}).encode() for v in ("", "A" * 64, 7)
        ],
        "use the silorec that wrote it": [json.dumps({**raw, "format": "silorec-bundle-2"}).encode()],
        "not a list of files": [
            b"",
            b"[]",
            b"{}",
            b"\xff",
            b"[" * 4000,
            b'{"format":"silorec-bundle-1","files":[]}',
            b"9" * 4096,
        ],
    }
    for said, forms in others.items():
        for form in forms:
            with pytest.raises(BundleError, match=said):
                Manifest.from_bytes(form)
            with pytest.raises(BundleError):
                read_bundle(resigned({MANIFEST: form, SIGNATURE: sign(form, key)}), {key.public_key})


@given(
    content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode), st.from_regex(rb"\{[\[\]{}\",:a-z0-9 ]*\}"))
)
def test_no_bytes_make_the_manifests_parser_fail_otherwise(content: bytes) -> None:
    with pytest.raises(BundleError):
        Manifest.from_bytes(content)
    with pytest.raises(BundleError):
        signer_of(content, content)


def test_sizes_are_refused_before_anything_is_read(key: SigningKey, contents: dict[str, bytes], tmp_path: Path) -> None:
    """A manifest may claim what it likes; nothing is set aside for it."""
    facts = {name: FileFacts.of(contents[name]) for name in SIGNED}
    for name in SIGNED:
        for size, said in (
            (1 << 62, f"{name} has .* bytes, at most"),
            (len(contents[name]) + 1, f"{name} has .* by the manifest"),
        ):
            manifest = Manifest({**facts, name: FileFacts(size, facts[name].sha256)}).to_bytes()
            folder = tmp_path / f"{name}-{size}"
            unpacked({**contents, MANIFEST: manifest, SIGNATURE: sign(manifest, key)}, folder)
            with pytest.raises(BundleError, match=said):
                read_bundle(folder, {key.public_key})


# What a trusted signer could get wrong


@pytest.mark.parametrize("name", SIGNED)
def test_signed_nonsense_is_refused_all_the_same(name: str, resigned: Resign, key: SigningKey) -> None:
    for content in (b"", b"nonsense", b"\0" * 1000):
        with pytest.raises(BundleError):
            read_bundle(resigned({name: content}), {key.public_key})


def test_a_card_in_words_that_says_something_else_is_refused(
    contents: dict[str, bytes], resigned: Resign, key: SigningKey
) -> None:
    better = contents[CARD_MD].replace(b"epsilon 8.00", b"epsilon 0.10")
    assert better != contents[CARD_MD]
    with pytest.raises(BundleError, match=r"card\.md does not say what card\.json says"):
        read_bundle(resigned({CARD_MD: better}), {key.public_key})
    with pytest.raises(BundleError, match=r"card\.md does not say what card\.json says"):
        read_bundle(resigned({CARD_JSON: contents[CARD_JSON].replace(b'"epsilon": 8.0', b'"epsilon": 0.1')}), {key.public_key})


def test_files_that_do_not_belong_together_are_refused(tiny: Bundle, resigned: Resign, key: SigningKey, tmp_path: Path) -> None:
    from common.bundle.catalogue_parquet import catalogue_to_bytes
    from common.bundle.item_tensors import items_to_bytes

    wide = ItemTable.quantised(np.ones((12, 7), np.float32), np.zeros(12, np.float32), 4)
    for changes, said in (
        ({CATALOGUE: catalogue_to_bytes(tiny_catalogue(13))}, "12 item vectors for a catalogue of 13"),
        ({ITEMS: items_to_bytes(wide)}, "vectors of 7 columns"),
    ):
        with pytest.raises(BundleError, match=said):
            read_bundle(resigned(changes), {key.public_key})


def test_more_items_than_the_reader_allows_are_refused(archive: Path, key: SigningKey) -> None:
    with pytest.raises(BundleError, match="12 items of 6 columns, at most 11"):
        read_bundle(archive, {key.public_key}, max_items=11)
    assert len(read_bundle(archive, {key.public_key}, max_items=12).items) == 12


def test_a_larger_bundle_holds_too(key: SigningKey, tmp_path: Path) -> None:
    """More rows than one group of the catalogue's file holds."""
    n = 70_000
    random = np.random.default_rng(4)
    items = ItemTable.quantised(
        random.standard_normal((n, 6)).astype(np.float32), random.standard_normal(n).astype(np.float32), 4
    )
    catalogue, path = tiny_catalogue(n), tmp_path / "large.bundle"
    write_bundle(path, card=tiny_card(n), catalogue=catalogue, items=items, model=tiny_model(6, 4), key=key)
    opened = read_bundle(path, {key.public_key})
    assert opened.catalogue.fingerprint == catalogue.fingerprint
    assert np.array_equal(opened.items.vectors, items.vectors)
