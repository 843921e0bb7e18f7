"""Figures in words: a guarantee is never shown better than it is."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from common.report import words


@given(st.floats(0, 1e4))
def test_epsilon_is_rounded_up_to_hundredths(value):
    shown = float(words.epsilon(value))
    assert value - 1e-8 <= shown < value + 0.01


@given(st.floats(1e-30, 0.99))
def test_delta_is_rounded_up_to_two_digits(value):
    shown = words.small(value)
    number, _, power = shown.partition("×10")
    plain = float(number) * 10.0 ** int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0)
    assert value * (1 - 1e-6) <= plain <= value * 1.1 * (1 + 1e-6)


def test_figures_are_shown_as_people_write_them():
    assert [words.small(x) for x in (1e-5, 1 / 1380, 0.05, 0.25, 0.0996)] == ["1.0×10⁻⁵", "7.3×10⁻⁴", "0.050", "0.25", "0.10"]
    assert [words.odds(x) for x in (0.0, 1.0, 8.0, 40.0)] == ["1.0", "2.8", "2,990", "2.4×10¹⁷"]
    assert [words.duration(x) for x in (0.214, 42.4, 431.7, 7500, None)] == ["0.21 s", "42 s", "7 min 12 s", "2 h 5 min", "–"]


@given(st.floats(0, 300))
def test_factor_of_the_guarantee_is_never_shown_smaller_than_it_is(value):
    number, _, power = words.odds(value).partition("×10")
    shown = float(number.replace(",", "")) * 10.0 ** int(power.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")) or 0)
    assert math.exp(value) * (1 - 1e-9) <= shown <= math.exp(value) * 1.11
