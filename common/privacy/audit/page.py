"""``audit.html``, made from what ``audit.json`` holds and from nothing else; see :mod:`common.privacy.audit.report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from common.report.page import data, environment
from common.report.plots import Curve, Dot, Level, Panel, Series, Style, dot_plot, roc_plot, rounds_plot

#: More silos than this are not all drawn: those that spent the largest share of their limit are.
MOST_SILOS = 6

#: Columns of the recomputation.
ACCOUNTANTS = {
    "rdp": "RDP, dp_accounting",
    "reference": "RDP, computed again",
    "pld": "PLD, dp_accounting",
    "prv": "PRV, Opacus",
}


def render(document: Mapping[str, Any]) -> str:
    """The page as HTML.

    Parameters
    ----------
    document:
        As :func:`common.privacy.audit.report.audit` returns it.
    """
    template = environment("common.privacy.audit").get_template("audit.html.j2")
    attacks = (document["attacks"] or {}).get("attacks") or {}
    return template.render(
        document=document,
        claims=document["claims"],
        protected=document["claims"]["mode"] != "none" and document["claims"]["epsilon"] is not None,
        checks=document["verified"]["checks"],
        accountants=ACCOUNTANTS,
        attacks=attacks,
        skipped=(document["attacks"] or {}).get("skipped") or {},
        history_figure=_history_figure(document["history"]),
        histories_drawn=min(len(document["history"]), MOST_SILOS),
        bounds_figure=_bounds_figure(document),
        roc_figure=_roc_figure(attacks),
        share=_share,
        interval=_interval,
        words=_words,
    )


def _history_figure(history: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Epsilon of each ledger over the rounds of the run, under its limit; over reservations where no run is known."""
    of_run = any(point["of_this_run"] for ledger in history for point in ledger["points"])
    panels: list[tuple[float, Panel]] = []
    for ledger in history:
        values: dict[int, float] = {}
        for place, point in enumerate(ledger["points"]):
            if point["epsilon"] is not None and (point["of_this_run"] or not of_run):
                values[point["round"] if of_run else place] = point["epsilon"]
        if not values:
            continue
        limit = ledger["limit"]
        levels = [] if limit is None else [Level(f"limit of the policy {limit:g}", limit)]
        panel = Panel(f"{ledger['silo']}: ε spent", [Series("ε spent", sorted(values.items()), "spent")], levels, height=90)
        panels.append((max(values.values()) / limit if limit else 0.0, panel))
    if not panels:
        return None
    drawn = sorted(panels, key=lambda pair: -pair[0])[:MOST_SILOS] if len(panels) > MOST_SILOS else panels
    axis = "round (0 = before training)" if of_run else "reservation, in order"
    return rounds_plot([panel for _, panel in drawn], axis=axis)


def _bounds_figure(document: Mapping[str, Any]) -> Markup | None:
    """Lower bounds that attacks found, each with its ceiling, against the claim."""
    bounds = document["bounds"]
    if not bounds:
        return None
    dots = [Dot(bound["title"], bound["found"], style="test", reach=bound["ceiling"]) for bound in bounds]
    claimed = max((bound["claimed"] for bound in bounds if bound["claimed"] is not None), default=None)
    level = None if claimed is None else Level(f"claimed {claimed:.3f}", claimed)
    return dot_plot(dots, axis="epsilon", digits=3, level=level)


def _roc_figure(attacks: Mapping[str, Any]) -> Markup | None:
    curves = []
    if members := attacks.get("members"):
        curves.append(_curve(f"members of the run ({members['method']}), AUC {members['auc']:.3f}", members, "test"))
    users = (attacks.get("reconstruction") or {}).get("users") or ()
    styles: dict[str, Style] = {"unprotected": "validation", "masked": "reference", "private": "spent"}
    for view, style in styles.items():
        best = max((row for row in users if row["view"] == view), key=lambda row: row["auc"], default=None)
        if best is not None:
            curves.append(_curve(f"users behind one {view} update ({best['reader']}), AUC {best['auc']:.3f}", best, style))
    return roc_plot(curves) if curves else None


def _curve(name: str, rates: Mapping[str, Any], style: Style) -> Curve:
    return Curve(name, list(zip(rates["false_positive_rate"], rates["true_positive_rate"], strict=True)), style)


def _share(value: float | None) -> Markup:
    """A probability as percent."""
    return data(value, "" if value is None else f"{100 * value:.1f} %")


def _interval(low: float, high: float, digits: int = 3) -> Markup:
    return Markup('<span class="interval">{}–{}</span>').format(data(low, f"{low:.{digits}f}"), data(high, f"{high:.{digits}f}"))


def _words(value: Any) -> str:
    """A stated field as text."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
