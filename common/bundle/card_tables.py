"""A card in the terminal, as ``silorec bundle show`` prints it."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.bundle.card_text import figure, guarantee
from common.bundle.contents import Bundle
from common.privacy.signing import fingerprint


def print_card(bundle: Bundle) -> None:
    """Print the card of a verified bundle to standard output."""
    card, console = bundle.card, Console()
    privacy, data, training, model = card.privacy, card.data, card.training, card.model
    if not privacy.protected:
        console.print(escape(guarantee(privacy)), style="bold red")
    _table(
        console,
        card.name,
        {
            "digest": bundle.digest,
            "signed by": fingerprint(bundle.signer),
            "made": card.created,
            "guarantee": guarantee(privacy),
            "mode": privacy.mode,
            "unit": privacy.unit,
            "in words": privacy.statement,
            "who must be trusted": privacy.trust,
            "data": f"{data.name}, {data.items:,} items, {data.silos:,} silos, {data.declared_users:,} declared users",
            "items added later": f"{card.added_items:,}",
            "training": f"{training.rounds:,} rounds, {training.backbone}, items' texts by {training.encoder}",
            "licence of the base model": training.licence,
            "model": f"{model.layers} layers of width {model.width}, {model.parameters:,} parameters, {model.precision}, "
            f"{len(bundle.model):,} bytes, reads {model.window} items",
        },
    )
    if card.quality:
        table = Table("figure", "value", "interval", "note")
        for one in card.quality:
            table.add_row(escape(one.name), *figure(one), escape(one.note))
        console.print(table)
    for note in card.notes:
        console.print(escape(note))


def _table(console: Console, title: str, rows: Mapping[str, str]) -> None:
    table = Table(title=escape(title), show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)
