"""The model card: how a bundle came about, what it promises about people, and what it can do.

``card.json`` is for programs, ``card.md`` says the same to people and is written from it. Everything in a card is public. Its
texts are single lines without control characters, since they are shown in terminals and on pages.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import BundleError

SCHEMA: Final = 1

_UNSEEN = frozenset(
    {"Cc", "Cf", "Cs", "Zl", "Zp"}
)  # Unicode categories: control, format (order of writing), surrogate, line ends


def _visible(text: str) -> str:
    if any(unicodedata.category(character) in _UNSEEN for character in text):
        raise ValueError("must be one line without control characters")
    return text


Text = Annotated[str, Field(max_length=4000), AfterValidator(_visible)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataFacts(_Part):
    """What was trained on, as far as it is public."""

    name: Text
    items: int = Field(ge=1)
    silos: int = Field(ge=1)
    declared_users: int = Field(ge=1, description="sum of what the silos declare")


class TrainingFacts(_Part):
    """How the teacher was trained."""

    rounds: int = Field(ge=0)
    backbone: Text
    encoder: Text
    licence: Text = Field(description="of the base model")


class PrivacyFacts(_Part):
    """What is promised, to whom, by whom."""

    mode: Literal["none", "silo", "distributed"]
    epsilon: float | None = Field(None, ge=0)
    delta: float | None = Field(None, gt=0, lt=1)
    unit: Text = Field(description="for example: one user of one silo, add/remove")
    statement: Text = Field(description="the guarantee in words")
    trust: Text = Field(description="who must be trusted for it to hold")

    @model_validator(mode="after")
    def _honest(self) -> PrivacyFacts:
        if (self.epsilon is None) != (self.delta is None):
            raise ValueError("epsilon and delta go together")
        if self.mode == "none" and self.epsilon is not None:
            raise ValueError("mode none has no epsilon: nobody is protected")
        return self

    @property
    def protected(self) -> bool:
        """Whether anything is promised to anybody."""
        return self.mode != "none" and self.epsilon is not None


class Measured(_Part):
    """A figure of quality with its interval, or without one where none was computed."""

    name: Text
    value: float
    low: float | None = None
    high: float | None = None
    note: Text = ""

    @model_validator(mode="after")
    def _interval(self) -> Measured:
        if (self.low is None) != (self.high is None) or (self.low is not None and self.high is not None and self.low > self.high):
            raise ValueError("an interval has a low end and a high end")
        return self


class ModelFacts(_Part):
    """The student."""

    window: int = Field(ge=1, description="most recent items that are read")
    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    parameters: int = Field(ge=1)
    precision: Literal["float32", "int8"]


class Card(_Part):
    """The whole card."""

    schema_version: Literal[1] = SCHEMA
    name: Text = Field(min_length=1)
    created: Text = Field(description="ISO 8601, UTC")
    data: DataFacts
    training: TrainingFacts
    privacy: PrivacyFacts
    model: ModelFacts
    quality: tuple[Measured, ...] = ()
    added_items: int = Field(0, ge=0, description="items that were added after training")
    notes: tuple[Text, ...] = ()

    def to_json(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()

    def to_markdown(self) -> str:
        """``card.md``: the same for people, see :func:`common.bundle.card_text.in_words`."""
        from common.bundle.card_text import in_words

        return in_words(self)

    @classmethod
    def from_json(cls, content: bytes) -> Card:
        """What :meth:`to_json` wrote; :class:`BundleError` naming the first thing that does not fit."""
        try:
            json.loads(content, object_pairs_hook=_no_key_twice)
            return cls.model_validate_json(content, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in [".".join(str(part) for part in first["loc"])] if part)
            raise BundleError(f"card.json: {where}{first['msg'].removeprefix('Value error, ')}") from None
        except (ValueError, RecursionError) as error:
            raise BundleError(f"card.json is not JSON ({error})") from None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found
