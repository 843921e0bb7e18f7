"""Figures in words: rounded for people, and a privacy guarantee never rounded to look better than it is."""

from __future__ import annotations

import math

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def epsilon(value: float) -> str:
    """Two decimals, rounded up: a guarantee is never shown better than it is."""
    return f"{math.ceil(value * 100 - 1e-9) / 100:.2f}"


def small(value: float) -> str:
    """Two significant digits, rounded up, as a power of ten below 0.01."""
    if value <= 0:
        return "0"
    power = math.floor(math.log10(value))
    tenths = math.ceil(value / 10.0**power * 10 - 1e-6)
    if tenths >= 100:
        tenths, power = 10, power + 1
    if power >= -2:
        return f"{tenths * 10.0 ** (power - 1):.{1 - power}f}"
    return f"{tenths / 10:.1f}×10{str(power).translate(_SUPERSCRIPT)}"


def odds(value: float) -> str:
    """``exp(value)``, rounded up, readable at any size."""
    if value < math.log(10):
        return f"{math.ceil(math.exp(value) * 10 - 1e-9) / 10:.1f}"
    if value < math.log(1e6):
        number = math.exp(value)
        unit = 10 ** max(0, math.floor(math.log10(number)) - 2)
        return f"{math.ceil(number / unit) * unit:,}"
    decimal = value / math.log(10)
    power = math.floor(decimal)
    return f"{math.ceil(10 ** (decimal - power) * 10) / 10:.1f}×10{str(power).translate(_SUPERSCRIPT)}"


def duration(seconds: float | None) -> str:
    """``0.21 s``, ``42 s``, ``7 min 12 s``, ``2 h 5 min``."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plural(number: int, noun: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
