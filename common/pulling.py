"""How Flower fetches the parts of a message that are still on their way: more eagerly, and not for ever.

A message is announced before its parts have arrived. Flower looks for a missing part after 1 second, then 2, 4, 8 and so on, and
gives up after two hours, or three minutes where the sender has died in between. It has no settings for either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

FIRST, LONGEST = 0.05, 0.5
"""Seconds between two looks for a part; the pause grows from the one to the other."""


def eager(pull_objects: Callable[..., Any], seconds: Callable[[], float | None] = lambda: None) -> Callable[..., Any]:
    """Flower's ``pull_objects`` with these pauses.

    Parameters
    ----------
    seconds:
        How long all parts of one message may take; asked at each call. None leaves Flower's limit.
    """

    @functools.wraps(pull_objects)
    def pulled(*arguments: Any, **options: Any) -> Any:
        limit = seconds()
        more = {} if limit is None else {"max_time": limit}
        return pull_objects(*arguments, **{"initial_backoff": FIRST, "backoff_cap": LONGEST, **more, **options})

    return pulled
