"""The model card: how a bundle came about, what it promises about people, and what it can do.

``card.json`` is for programs, ``card.md`` says the same to people and is written from it. Everything in a card is public.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import BundleError

SCHEMA: Final = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataFacts(_Part):
    """What was trained on, as far as it is public."""

    name: str
    items: int = Field(ge=1)
    silos: int = Field(ge=1)
    declared_users: int = Field(ge=1, description="sum of what the silos declare")


class TrainingFacts(_Part):
    """How the teacher was trained."""

    rounds: int = Field(ge=0)
    backbone: str
    encoder: str
    licence: str = Field(description="of the base model")


class PrivacyFacts(_Part):
    """What is promised, to whom, by whom."""

    mode: Literal["none", "silo", "distributed"]
    epsilon: float | None = Field(None, ge=0)
    delta: float | None = Field(None, gt=0, lt=1)
    unit: str = Field(description="for example: one user of one silo, add/remove")
    statement: str = Field(description="the guarantee in words")
    trust: str = Field(description="who must be trusted for it to hold")


class Measured(_Part):
    """A figure of quality with its interval, or without one where none was computed."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


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
    name: str = Field(min_length=1)
    created: str = Field(description="ISO 8601, UTC")
    data: DataFacts
    training: TrainingFacts
    privacy: PrivacyFacts
    model: ModelFacts
    quality: tuple[Measured, ...] = ()
    added_items: int = Field(0, ge=0, description="items that were added after training")
    notes: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Card:
        """What :meth:`to_json` wrote; :class:`BundleError` naming the first thing that does not fit."""
        try:
            raw: Any = json.loads(content)
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            raise BundleError(f"card.json: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
        except ValueError as error:
            raise BundleError(f"card.json is not JSON ({error})") from None
