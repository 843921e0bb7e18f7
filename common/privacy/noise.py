"""Gaussian noise from the operating system's generator.

Nobody must be able to compute the noise again. A seeded generator is as strong as its seed is long: PyTorch's on a CPU keeps 32
bits of whatever it is seeded with, so all its noise vectors can be tried, and one that leaves plausible counts behind is the
right one. Here every number takes fresh bits of the operating system's cryptographic generator.

Noise is made and added in double precision and rounded once. That is not a proof against attacks on floating-point arithmetic
(Mironov 2012); a discrete mechanism is.
"""

from __future__ import annotations

import math
import os

import numpy as np
from numpy.typing import NDArray


def gaussian_noise(shape: tuple[int, ...], std: float) -> NDArray[np.float64]:
    """Independent draws from ``N(0, std²)``, by the transform of Box & Muller (1958).

    Uniform numbers have 53 bits, so no draw lies beyond 8.6 standard deviations; the mass out there is below 1e-16.
    """
    n = math.prod(shape)
    pairs = (n + 1) // 2
    words = np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64).reshape(2, pairs)
    uniform = (words >> np.uint64(11)) * 2.0**-53  # in [0, 1)
    radius = np.sqrt(-2.0 * np.log1p(-uniform[0]))
    angle = 2.0 * math.pi * uniform[1]
    return std * np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n].reshape(shape)
