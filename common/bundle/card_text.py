"""``card.md``: a card in words.

The text is settled by the card, and a bundle whose two forms differ is refused: so the one that people read cannot say more, or
something else, than the one that programs read. It belongs to the card's schema: a change to the words makes a new schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.report.words import epsilon, plural

if TYPE_CHECKING:
    from common.bundle.card import Card, Measured, PrivacyFacts

NOBODY = "Nobody is protected"

_MODES = {
    "none": "none: silos sent what they computed as it is",
    "silo": "silo: each silo adds the noise for its own users before anything leaves it",
    "distributed": "distributed: each silo adds a share of the noise, and only the sum over all silos is seen",
}
_MARKUP = re.compile(r"([\\`*_<>\[\]#|])")


def in_words(card: Card) -> str:
    """Markdown (CommonMark with tables); the same for the same card."""
    return "\n".join(_lines(card)) + "\n"


def guarantee(privacy: PrivacyFacts) -> str:
    """One line: what is promised. Epsilon is rounded up, delta is as it is."""
    if privacy.mode == "none":
        return f"{NOBODY}: the model was trained without differential privacy, and what it says may reveal what single users did."
    if privacy.epsilon is None:
        return f"{NOBODY}: there is no bound on epsilon, and what the model says may reveal what single users did."
    return f"epsilon {epsilon(privacy.epsilon)} at delta {privacy.delta!r} for {privacy.unit}"


def figure(measured: Measured) -> tuple[str, str]:
    """Value and interval as they are printed."""
    interval = "not computed" if measured.low is None else f"{measured.low:.4g} to {measured.high:.4g}"
    return f"{measured.value:.4g}", interval


def _lines(card: Card) -> Iterator[str]:
    privacy, data, training, model = card.privacy, card.data, card.training, card.model
    yield f"# {_plain(card.name)}"
    yield ""
    if not privacy.protected:
        yield f"> **WARNING. {_plain(guarantee(privacy))}**"
        yield ""
    yield (
        f"A recommender for {plural(data.items + card.added_items, 'item')}, distilled from a model that "
        f"{plural(data.silos, 'silo')} trained together. It reads the last {plural(model.window, 'item')} of a history and "
        "ranks the whole catalogue. It holds the model, one vector for each item, the public catalogue and this card, "
        "and no user's record."
    )
    yield ""
    yield f"Made {_plain(card.created)}."
    yield from _section("Privacy")
    yield f"- Guarantee: {_plain(guarantee(privacy))}"
    yield f"- Mode: {_MODES[privacy.mode]}"
    yield f"- Unit: {_plain(privacy.unit)}"
    yield f"- In words: {_plain(privacy.statement)}"
    yield f"- Who must be trusted: {_plain(privacy.trust)}"
    yield from _section("Data and training")
    yield f"- Data: {_plain(data.name)}, {plural(data.items, 'item')}, {plural(data.silos, 'silo')}"
    yield f"- Users, by the silos' own declaration: {data.declared_users:,}"
    yield f"- Rounds of training: {training.rounds:,}"
    yield f"- Base model: {_plain(training.backbone)}, licence {_plain(training.licence)}"
    yield f"- Text encoder: {_plain(training.encoder)}"
    yield f"- Items added after training: {card.added_items:,}"
    yield from _section("Model")
    yield f"- {plural(model.layers, 'layer')} of width {model.width:,}"
    yield f"- {plural(model.parameters, 'parameter')}, {model.precision}"
    yield f"- Window: {plural(model.window, 'item')}"
    yield from _section("Quality")
    if card.quality:
        yield "| figure | value | interval | note |"
        yield "|---|---|---|---|"
        for one in card.quality:
            yield "| " + " | ".join((_plain(one.name), *figure(one), _plain(one.note) or "–")) + " |"
    else:
        yield "Nothing was measured."
    if card.notes:
        yield from _section("Notes")
        yield from (f"- {_plain(note)}" for note in card.notes)
    yield from _section("How to verify")
    yield "This text is worth what the bundle's signature is worth. Ask the signer for the public key by another way, then run"
    yield ""
    yield "    silorec bundle verify FILE.bundle --signer PUBLIC_KEY"
    yield ""
    yield "which checks the signature, every file's SHA-256, and that this text says what card.json says."


def _section(name: str) -> tuple[str, ...]:
    return "", f"## {name}", ""


def _plain(text: str) -> str:
    """Text that Markdown and HTML take for text."""
    return _MARKUP.sub(r"\\\1", text)
