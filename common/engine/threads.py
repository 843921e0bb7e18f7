"""How many threads NumPy's products run on.

Where many requests are answered side by side, one thread each is best: threads of OpenBLAS that wait for each other on busy
cores make a product of half a millisecond take forty. ``OMP_NUM_THREADS=1`` does the same from outside, if it is set before the
process starts.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def limit_numpy_threads(threads: int) -> bool:
    """Have NumPy's products run on ``threads`` threads, in the whole process, from now on.

    Returns
    -------
    Whether it is known to hold: the OpenBLAS of NumPy's own wheels is told; another library only heeds the environment.
    """
    for variable in _VARIABLES:
        os.environ[variable] = str(threads)
    import numpy

    for path in (Path(numpy.__file__).parents[1] / "numpy.libs").glob("libscipy_openblas*"):
        library = ctypes.CDLL(str(path))  # the one that NumPy has loaded
        for suffix in ("64_", ""):
            tell = getattr(library, f"scipy_openblas_set_num_threads{suffix}", None)
            if tell is not None:
                tell(ctypes.c_int(threads))
                return True
    return False
