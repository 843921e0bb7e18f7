"""What a user says of themselves as one line of text, from the few columns that public data sets have.

Zip codes and the like are left out: they say little about taste and much about who it is.
"""

from __future__ import annotations

_GENDERS = {"m": "male", "f": "female", "male": "male", "female": "female"}


def profile_line(age: str = "", gender: str = "", occupation: str = "") -> str:
    """Such as ``"24 year old male technician"``; empty where nothing is known.

    An occupation that says nothing (``other``, ``none``, a bare code) is left out.
    """
    age, gender, occupation = age.strip().removesuffix(".0"), gender.strip().lower(), occupation.strip()
    words = [f"{age} year old"] if age else []
    if gender in _GENDERS:
        words.append(_GENDERS[gender])
    if occupation.lower() not in {"", "other", "none", "unknown"} and not occupation.isdigit():
        words.append(occupation)
    return " ".join(words)


def profile_lines(user_ids: tuple[str, ...], lines: dict[str, str]) -> tuple[str, ...] | None:
    """Profile lines in the order of users, ``""`` for those without; None if there is none at all."""
    found = tuple(lines.get(user, "") for user in user_ids)
    return found if any(found) else None
