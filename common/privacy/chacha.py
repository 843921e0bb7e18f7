"""A stream of random words that nobody can compute again: ChaCha20 under a fresh key of the operating system.

The kernel's generator is safe, but slow to ask for megabytes. So 256 bits are taken from it (``os.urandom``) and stretched by
the stream cipher ChaCha20 (RFC 8439; OpenSSL's, through the ``cryptography`` package). To tell the stream from fair coins is to
break the cipher. To compute it again takes the key, which is never stored and never leaves the process.

A stream belongs to one call: every function of :mod:`common.privacy.noise` opens its own, so two calls share nothing but the
kernel's generator. A key never meets the same block twice: the nonce is zero and the key is new for each stream, new again after
a gibibyte (RFC 8439 allows 256), and new in a process that was forked off with an open stream.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32
BYTES_PER_KEY = 2**30

_ZEROS = memoryview(bytes(2**18))
_LITTLE_ENDIAN = np.dtype("<u8")


def cipher(key: bytes, nonce: bytes = bytes(12), counter: int = 0) -> Any:
    """ChaCha20 as RFC 8439 has it, for :func:`write`; ``counter`` is the number of the first block of 64 bytes."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    return Cipher(algorithms.ChaCha20(key, counter.to_bytes(4, "little") + nonce), mode=None).encryptor()


def write(cipher: Any, target: memoryview) -> None:
    """Fill ``target``, a view of bytes, with the next bytes of the key stream."""
    for start in range(0, len(target), len(_ZEROS)):
        part = target[start : start + len(_ZEROS)]
        cipher.update_into(_ZEROS[: len(part)], part)


class Stream:
    """Random words, each as good as fresh ones of the operating system. Open one for a task; do not keep it, do not share it."""

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self._cipher = cipher(os.urandom(KEY_BYTES))
        self._left, self._process = BYTES_PER_KEY, os.getpid()

    def words(self, n: int) -> NDArray[np.uint64]:
        """The next ``n`` words of 64 bits, uint64 ``(n,)``."""
        words = np.empty(n, dtype=np.uint64)
        self.fill(words)
        return words

    def fill(self, words: NDArray[np.uint64]) -> None:
        """Overwrite ``words``, uint64 and contiguous, with the next ones."""
        if not words.size:
            return
        target = words.data.cast("B")
        while len(target):
            if not self._left or self._process != os.getpid():
                self._open()
            part = target[: self._left]
            write(self._cipher, part)
            self._left -= len(part)
            target = target[len(part) :]
        if not _LITTLE_ENDIAN.isnative:
            words.byteswap(inplace=True)


class SeededStream(Stream):
    """The same words for everybody who knows ``name``: for what must be repeatable and hides nothing."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0
        super().__init__()

    def _open(self) -> None:
        self._count += 1
        self._cipher = cipher(hashlib.sha256(f"silorec-stream-1/{self._count}/{self._name}".encode()).digest())
        self._left, self._process = BYTES_PER_KEY, os.getpid()
