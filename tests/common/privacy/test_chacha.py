"""The stream is RFC 8439's ChaCha20, no two streams are the same, and a forked process has one of its own."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from common.privacy import chacha
from common.privacy.chacha import Stream, cipher, write
from common.privacy.noise import gaussian_noise

# RFC 8439, section 2.3.2 and appendix A.1: key, nonce, number of the block, the block of the key stream.
VECTORS = {
    "2.3.2": (
        bytes(range(32)),
        "000000090000004a00000000",
        1,
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
    ),
    "A.1 #1": (
        bytes(32),
        "000000000000000000000000",
        0,
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
    ),
    "A.1 #2": (
        bytes(32),
        "000000000000000000000000",
        1,
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
    ),
    "A.1 #3": (
        bytes(31) + b"\x01",
        "000000000000000000000000",
        1,
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
        "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
    ),
    "A.1 #4": (
        b"\x00\xff" + bytes(30),
        "000000000000000000000000",
        2,
        "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
        "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
    ),
    "A.1 #5": (
        bytes(32),
        "000000000000000000000002",
        0,
        "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
        "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
    ),
}


def key_stream(key: bytes, n: int, nonce: bytes = bytes(12), counter: int = 0) -> bytes:
    target = bytearray(n)
    write(cipher(key, nonce, counter), memoryview(target))
    return bytes(target)


@pytest.mark.parametrize("name", VECTORS)
def test_the_key_stream_is_that_of_rfc_8439(name: str) -> None:
    key, nonce, counter, block = VECTORS[name]
    assert key_stream(key, 64, bytes.fromhex(nonce), counter).hex() == block


def test_a_stream_is_the_key_stream_of_its_key_from_block_zero_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the zeros that are encrypted at a time, in pieces that do not fit the blocks."""
    key = bytes(range(32))
    monkeypatch.setattr(os, "urandom", lambda n: key[:n])
    stream = Stream()
    sizes = [1, 7, 0, 60_000, 13, 40_000]
    pieces = [stream.words(size) for size in sizes]
    wanted = np.frombuffer(key_stream(key, 8 * sum(sizes)), dtype="<u8")
    assert np.array_equal(np.concatenate(pieces), wanted)


def test_every_stream_has_a_fresh_key_of_256_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []
    real = os.urandom

    def kept(n: int) -> bytes:
        keys.append(real(n))
        return keys[-1]

    monkeypatch.setattr(os, "urandom", kept)
    for _ in range(100):
        Stream().words(3)
    assert [len(key) for key in keys] == [32] * 100
    assert len(set(keys)) == 100


def test_the_key_changes_before_its_bytes_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 bytes a key: the words go on under the next one, and none is left out."""
    keys = [bytes([i]) * 32 for i in range(1, 9)]
    left = iter(keys)
    monkeypatch.setattr(os, "urandom", lambda n: next(left)[:n])
    monkeypatch.setattr(chacha, "BYTES_PER_KEY", 100)
    stream = Stream()
    words = np.concatenate([stream.words(20), stream.words(30)])
    assert words.tobytes() == b"".join(key_stream(key, 100) for key in keys[:4])


def in_a_fork(read: Callable[[], bytes]) -> bytes:
    """What ``read`` gives in a forked child."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover  the child leaves without pytest's ceremony
        os.write(into, read())
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


class Forgetful(Stream):
    """A stream that does not look which process it is in: the weak version of the test below."""

    def words(self, n: int) -> NDArray[np.uint64]:
        self._process = os.getpid()
        return super().words(n)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(("kind", "different"), [(Stream, 3), (Forgetful, 1)])
def test_a_forked_child_repeats_neither_its_parent_nor_its_brother(kind: type[Stream], different: int) -> None:
    stream = kind()
    stream.words(5)
    children = [in_a_fork(lambda: stream.words(8).tobytes()) for _ in range(2)]
    assert [len(words) for words in children] == [64, 64]
    assert len({*children, stream.words(8).tobytes()}) == different


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_noise_of_forked_children_differs() -> None:
    """As in a pool of workers: each draws the noise of its own call."""
    children = [in_a_fork(lambda: gaussian_noise((8,), 1.0).tobytes()) for _ in range(3)]
    assert len({*children, gaussian_noise((8,), 1.0).tobytes()}) == 4
