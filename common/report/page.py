"""What pages of silorec share: one look, escaping, and figures that carry their full value.

A page is one file that needs nothing else: styles and figures are inline, there are no scripts, and it requests nothing. Shown
figures are rounded; the full value is in the ``value`` attribute of the ``<data>`` element around them.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from common.report import words


def environment(package: str) -> Environment:
    """Templates of ``package``, which may include ``style.css`` and show figures by the filters below."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("common.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        number=number,
        figure=figure,
        duration=words.duration,
        epsilon=shown_as(words.epsilon),
        small=shown_as(words.small),
        plural=words.plural,
    )
    return made


def data(value: float | None, shown: str) -> Markup:
    """``shown``, with the full ``value`` behind it; a dash where there is none."""
    if value is None:
        return Markup('<span class="none" aria-label="not measured">–</span>')
    return Markup('<data value="{}">{}</data>').format(json.dumps(value), shown)


def number(value: float | None, digits: int = 0) -> Markup:
    """With so many decimals, and commas between thousands."""
    return data(value, "" if value is None else f"{value:,.{digits}f}")


def figure(value: float | None, digits: int = 6) -> Markup:
    """With so many significant digits."""
    return data(value, "" if value is None else f"{value:.{digits}g}")


def shown_as(in_words: Callable[[float], str]) -> Callable[[float | None], Markup]:
    """A filter that shows a figure as ``in_words`` says it."""
    return lambda value: data(value, "" if value is None else in_words(value))
