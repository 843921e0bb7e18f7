"""A call that is not answered, and what its caller is told."""

from __future__ import annotations

import grpc


class Refused(Exception):
    """Why a call is not answered.

    Parameters
    ----------
    code:
        gRPC's status.
    sentence:
        For the caller: what was wrong and what to do. It repeats nothing that the caller sent.
    retry_after:
        Seconds after which it may be tried again, where that helps.
    """

    def __init__(self, code: grpc.StatusCode, sentence: str, retry_after: float | None = None) -> None:
        super().__init__(sentence)
        self.code, self.sentence, self.retry_after = code, sentence, retry_after


def malformed(sentence: str) -> Refused:
    """What was sent cannot be answered, now or later."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, sentence)


def busy(sentence: str, retry_after: float) -> Refused:
    """Too much at once."""
    return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{sentence}; try again in {retry_after:.2f} s", retry_after)
