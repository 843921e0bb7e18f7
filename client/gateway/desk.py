"""Questions as people and shops ask them, answered by one engine.

A desk belongs to one bundle: its titles, categories and facts. It keeps nothing of what it is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Final

import numpy as np

from client.gateway.models import (
    Answer,
    Because,
    BundleAnswer,
    CardAnswer,
    CategoryCount,
    FieldProblem,
    Found,
    Item,
    Question,
    Recommendations,
    RecommendedItem,
)
from client.gateway.problems import ERRORS_MOST, Refused, shortened
from client.gateway.titles import Titles, categories_by_size
from common.engine import Engine, Recommended, Request
from common.errors import SilorecError
from common.privacy.signing import fingerprint
from common.serving import Status

CATEGORIES_MOST: Final = 500
"""Categories that the page's list offers; any may be asked for."""


class Desk:
    """One bundle's answers.

    Building one reads all titles: about a second for 100,000 items.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.bundle = engine, engine.bundle
        catalogue = self.bundle.catalogue
        self.titles = Titles(catalogue, self.bundle.items.biases)
        self._years = catalogue.fields.get("year", ("",) * len(catalogue))
        self._categories = categories_by_size(catalogue.categories)
        self._typical = float(np.median(self.bundle.items.biases))

    @property
    def digest(self) -> str:
        return self.bundle.digest

    def recommend(self, question: Question) -> Answer:
        """The answer to one question.

        Raises
        ------
        Refused
            422 if an item or a category is unknown, with the nearest titles; 503 if the bundle cannot answer.
        """
        answer = self._answered([question], [""])[0]
        return Answer(bundle=self.digest, history=answer.history, recommendations=answer.recommendations)

    def recommend_many(self, questions: Sequence[Question]) -> list[Recommendations]:
        """As :meth:`recommend`, the model being run once for all; none is answered if one of them is refused."""
        return self._answered(questions, [f"requests[{i}]." for i in range(len(questions))])

    def search(self, text: str, limit: int) -> Found:
        """Items whose titles fit."""
        return Found(bundle=self.digest, items=[self.item(i) for i in self.titles.search(text, limit)])

    def card(self) -> CardAnswer:
        return CardAnswer(bundle=self.digest, card=self.bundle.card.model_dump(mode="json"))

    def facts(self, status: Status) -> BundleAnswer:
        """The bundle in figures, and what ``status`` says of bundles before it."""
        bundle, index = self.bundle, self.engine.index
        return BundleAnswer(
            bundle=bundle.digest,
            signer=bundle.signer,
            fingerprint=fingerprint(bundle.signer),
            name=bundle.card.name,
            created=bundle.card.created,
            items=len(bundle.items),
            window=bundle.card.model.window,
            mode=bundle.card.privacy.mode,
            search=self.engine.search,
            recall=1.0 if index is None else float(index.recall),
            typical_popularity=self._typical,
            categories=[CategoryCount(name=name, items=items) for name, items in self._categories[:CATEGORIES_MOST]],
            since=status.since,
            swaps=status.swaps,
            rollbacks=status.rollbacks,
            refused=status.refused,
        )

    def item(self, position: int) -> Item:
        catalogue = self.bundle.catalogue
        return Item(
            id=catalogue.ids[position],
            title=catalogue.titles[position],
            year=self._years[position] or None,
            categories=list(catalogue.categories[position]),
        )

    def _answered(self, questions: Sequence[Question], places: Sequence[str]) -> list[Recommendations]:
        problems: list[FieldProblem] = []
        requests = [self._request(question, place, problems) for question, place in zip(questions, places, strict=True)]
        if problems:
            raise self._refused(problems)
        try:
            answers = self.engine.recommend_many(requests)
        except SilorecError as error:  # what a bundle that was warmed should never give
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(error), bundle=self.digest) from None
        return [
            Recommendations(
                history=[self.item(position) for position in request.history],
                recommendations=[self._recommended(recommended) for recommended in answer],
            )
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _request(self, question: Question, place: str, problems: list[FieldProblem]) -> Request:
        def positions(name: str, texts: Iterable[str]) -> list[int]:
            return [self._position(text, f"{place}{name}[{i}]", problems) for i, text in enumerate(texts)]

        known = set(self.engine.categories)
        for i, name in enumerate(question.categories):
            if name not in known and len(problems) < ERRORS_MOST:
                reason = f"no item is of category {shortened(name, 80)!r}; GET v1/bundle lists the categories"
                problems.append(FieldProblem(field=f"{place}categories[{i}]", reason=reason))
        boosted = [self._position(text, f"{place}boost.{shortened(text, 80)}", problems) for text in question.boost]
        fields = {
            "history": tuple(positions("history", question.history)),
            "allow": None if question.allow is None else frozenset(positions("allow", question.allow)),
            "deny": frozenset(positions("deny", question.deny)),
        }
        if problems:
            return Request()
        return Request(
            **fields,  # type: ignore[arg-type]
            k=question.k,
            exclude_seen=question.exclude_seen,
            categories=frozenset(question.categories),
            diversity=question.diversity,
            boost=dict(zip(boosted, question.boost.values(), strict=True)),
            explain=question.explain,
        )

    def _position(self, text: str, field: str, problems: list[FieldProblem]) -> int:
        found = self.titles.called(text)
        if len(found) == 1:
            return found[0]
        if len(problems) < ERRORS_MOST:  # looking for near titles takes time: not for more than are told
            quoted = repr(shortened(text, 80))
            if found:
                reason, near = f"{len(found)} items are called {quoted}; give the id of the one that is meant", found[:5]
            else:
                near = self.titles.near(text)
                names = ", ".join(repr(self.bundle.catalogue.titles[i]) for i in near)
                reason = f"no item is called {quoted}" + (f"; did you mean {names}?" if near else "")
            problems.append(FieldProblem(field=field, reason=reason, near=[self.item(i) for i in near]))
        return -1

    def _refused(self, problems: Sequence[FieldProblem]) -> Refused:
        detail = f"{problems[0].field}: {problems[0].reason}"
        return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=problems, bundle=self.digest)

    def _recommended(self, recommended: Recommended) -> RecommendedItem:
        item = self.item(recommended.position)
        return RecommendedItem(
            **item.model_dump(),
            score=recommended.score,
            popularity=recommended.popularity,
            pool=recommended.pool,
            sequence=recommended.sequence,
            boost=recommended.boost,
            reasons=[
                Because(id=reason.id, title=reason.title, contribution=reason.contribution, kind=reason.kind)
                for reason in recommended.reasons
            ],
        )
