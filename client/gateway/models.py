"""What the gateway is asked and what it answers, as JSON: the source of its OpenAPI document.

A question has no place for whose it is, and a field that is not named here is refused.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

HISTORY_MOST: Final = 500
K_MOST: Final = 100
FILTER_MOST: Final = 10_000
BOOST_MOST: Final = 1_000
BATCH_MOST: Final = 64
BODY_MOST: Final = 1 << 20
"""Bytes of a request's body."""

QUERY_MOST: Final = 200
"""Characters of a search."""

ItemText = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Category = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Nats = Annotated[float, Field(ge=-100, le=100)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True)


class Question(_Asked):
    """One history, and wishes. Items are given by their ids or whole titles."""

    history: list[ItemText] = Field([], max_length=HISTORY_MOST, description="what was met, oldest first; empty: what is popular")
    k: int = Field(10, ge=1, le=K_MOST, description="items wanted")
    exclude_seen: bool = Field(True, description="leave out what is in the history")
    allow: list[ItemText] | None = Field(None, max_length=FILTER_MOST, description="only these items; null: all")
    deny: list[ItemText] = Field([], max_length=FILTER_MOST, description="none of these items")
    categories: list[Category] = Field([], max_length=FILTER_MOST, description="only items of any of these; empty: all")
    diversity: float = Field(0.0, ge=0, le=1, description="0: by score alone, 1: by unlikeness to the items before alone")
    boost: dict[ItemText, Nats] = Field({}, max_length=BOOST_MOST, description="nats added to the scores of items")
    explain: bool = Field(False, description="give reasons")


class Batch(_Asked):
    """Several questions, answered by the same bundle."""

    requests: list[Question] = Field(min_length=1, max_length=BATCH_MOST)


class Search(_Asked):
    """A search as a body, which no proxy writes into its log."""

    q: Annotated[str, StringConstraints(min_length=1, max_length=QUERY_MOST)] = Field(description="part of a title, or an id")
    limit: int = Field(10, ge=1, le=50)


class SearchQuery(BaseModel):
    """A search as a query string."""

    model_config = ConfigDict(extra="forbid")

    q: Annotated[str, StringConstraints(min_length=1, max_length=QUERY_MOST)] = Field(description="part of a title, or an id")
    limit: int = Field(10, ge=1, le=50)


class Nothing(BaseModel):
    """A route without parameters: any is refused."""

    model_config = ConfigDict(extra="forbid")


class Item(_Told):
    """An item of the public catalogue."""

    id: str
    title: str
    year: str | None
    categories: list[str]


class Because(_Told):
    """What an item of the history did to a score: its exact share (``pool``), or the change without it (``left out``)."""

    id: str
    title: str
    contribution: float = Field(description="nats")
    kind: Literal["pool", "left out"]


class RecommendedItem(Item):
    """``score = popularity + pool + sequence + boost``, in nats."""

    score: float
    popularity: float = Field(description="the score for somebody of whom nothing is known")
    pool: float = Field(description="by likeness to the text of the history")
    sequence: float = Field(description="by what the model reads in the order of the history beside that")
    boost: float
    reasons: list[Because] = Field(description="largest first; empty unless asked to explain")


class Recommendations(_Told):
    """The answer to one question."""

    history: list[Item] = Field(description="how the history was understood")
    recommendations: list[RecommendedItem] = Field(description="best first")


class Answer(Recommendations):
    """An answer, with the digest of the bundle that made all of it."""

    bundle: str


class BatchAnswer(_Told):
    """Answers in the order of the questions, all by one bundle."""

    bundle: str
    answers: list[Recommendations]


class Found(_Told):
    """Items whose titles fit, best first."""

    bundle: str
    items: list[Item]


class CardAnswer(_Told):
    """The card of the bundle that answers."""

    bundle: str
    card: dict[str, object]


class CategoryCount(_Told):
    name: str
    items: int


class BundleAnswer(_Told):
    """The bundle that answers, and what has happened to bundles since the start."""

    bundle: str = Field(description="SHA-256 of its manifest, in hex")
    signer: str = Field(description="Ed25519 public key, in hex")
    fingerprint: str = Field(description="of the signer's key, for people to compare")
    name: str
    created: str
    items: int
    window: int = Field(description="items of a history that the model reads, newest first")
    mode: Literal["none", "silo", "distributed"]
    search: str = Field(description="how the best items are found: exact, or approximate")
    recall: float = Field(description="measured share of the truly best that the search finds")
    typical_popularity: float = Field(description="median popularity of an item, in nats")
    categories: list[CategoryCount] = Field(description="the largest first")
    since: float = Field(description="when it took over, in seconds since 1970")
    swaps: int
    rollbacks: int
    refused: int


class Changed(_Told):
    """What an administrator's request did."""

    bundle: str = Field(description="digest of the bundle that answers now")
    changed: bool


class Alive(_Told):
    status: Literal["alive"] = "alive"


class Ready(_Told):
    bundle: str
    status: Literal["ready"] = "ready"


class FieldProblem(_Told):
    """What is wrong with one field."""

    field: str
    reason: str
    near: list[Item] = Field([], description="items that may have been meant")


class Problem(_Told):
    """An error as RFC 9457 describes it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = []
