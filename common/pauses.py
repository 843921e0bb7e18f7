"""How long the processes of a deployment pause between two looks for something to do.

``SILOREC_PAUSE_FACTOR`` scales all of these pauses: below 1 answers are seen sooner and idle processes ask more often. What the
pauses cost is measured with it (``silorec bench deployment``).
"""

from __future__ import annotations

import os
from typing import Final

from common.errors import ConfigError

FACTOR: Final = "SILOREC_PAUSE_FACTOR"
LEAST, MOST = 0.01, 100.0


def pause_factor() -> float:
    """What pauses are multiplied by; 1 where nothing else is said.

    Raises
    ------
    ConfigError
        If the variable is not a number from :data:`LEAST` to :data:`MOST`.
    """
    said = os.environ.get(FACTOR, "1")
    try:
        found = float(said)
    except ValueError:
        found = 0.0
    if not LEAST <= found <= MOST:
        raise ConfigError(f"{FACTOR}={said}: give a number from {LEAST:g} to {MOST:g}, or leave it out")
    return found
