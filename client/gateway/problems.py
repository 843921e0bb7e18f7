"""Errors as documents for programs and sentences for people (RFC 9457, application/problem+json).

A document may quote what was asked: it goes to whoever asked. Nothing of it is logged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from client.gateway.models import FieldProblem, Problem

CONTENT_TYPE: Final = "application/problem+json"
ERRORS_MOST: Final = 10
"""Fields that one document names."""

_PERSONAL = ("user", "customer", "session", "account", "visitor", "email", "device", "person", "member", "cookie", "uid")


class Refused(Exception):
    """A request that is answered with a problem; ``bundle`` where one had a part in it."""

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        bundle: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status.phrase)  # the sentence may quote a request, and exceptions find their way into logs
        self.problem = Problem(title=status.phrase, status=int(status), detail=detail, errors=list(errors))
        self.headers = dict(headers or {})
        if bundle is not None:
            self.headers["Silorec-Bundle"] = bundle

    @property
    def body(self) -> bytes:
        """The document; ASCII, because a request's text may hold what UTF-8 cannot say."""
        return json.dumps(self.problem.model_dump(mode="python", exclude_defaults=False), ensure_ascii=True).encode()


def refused_fields(found: Sequence[Mapping[str, Any]]) -> Refused:
    """What to answer to the errors that pydantic ``found`` in a request."""
    if any(error["type"] == "json_invalid" for error in found):
        return Refused(HTTPStatus.BAD_REQUEST, "the body is not JSON")
    errors = [FieldProblem(field=_field(error["loc"]), reason=_reason(error)) for error in found[:ERRORS_MOST]]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{errors[0].field}: {errors[0].reason}{more}", errors=errors)


def _field(place: Sequence[int | str]) -> str:
    """``('body', 'requests', 0, 'k')`` as ``requests[0].k``."""
    text = ""
    for part in place[1:]:
        text += f"[{part}]" if isinstance(part, int) else f".{shortened(str(part), 80)}"
    return text.removeprefix(".") or str(place[0])


def _reason(error: Mapping[str, Any]) -> str:
    name = str(error["loc"][-1]).lower()
    if error["type"] == "extra_forbidden":
        if any(word in name for word in _PERSONAL):
            return "a request holds a history and says nothing of whose it is; leave the field out"
        return "there is no such field"
    message = str(error["msg"])
    return message[:1].lower() + message[1:]


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
