"""What every call has in common: who asks, what it may carry, how much it may ask, how it ends and how that is counted."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc

from server.serving.counting import Counts
from server.serving.limits import Allowance, Limits, Places
from server.serving.metadata import check_metadata
from server.serving.refusal import Refused
from server.serving.tls import Admission

UNKNOWN: Final = "unknown"
"""In counters, a caller whose certificate did not let it in."""

log = logging.getLogger(__name__)


class Gate:
    """Lets calls in, one after the other; the same gate for every method of the server. To be used on one event loop."""

    def __init__(self, admission: Admission, limits: Limits, counts: Counts) -> None:
        self.limits, self.counts = limits, counts
        self.stopping = asyncio.Event()
        self._admission = admission
        self._allowance = Allowance(limits.rate, limits.burst)
        self._calls = Places("calls", limits.under_way, limits.under_way_of_one)
        self._streams = Places("streams", limits.downloads, limits.downloads_of_one)
        counts.show("silorec_calls_under_way", "Calls under way.", lambda: self._calls.taken)

    @asynccontextmanager
    async def call(self, method: str, context: Any, questions: int = 1) -> AsyncIterator[str]:
        """A call from its beginning to its end; gives the silo's name inside. What goes wrong inside ends the call with a status.

        ``questions`` is what the call takes of the silo's allowance. What a bug says may quote a question: only its kind and its
        place in the code are logged.
        """
        silo, status = UNKNOWN, "OK"
        refused: Refused | None = None
        try:
            silo = self._admission.silo_of(context.auth_context())
            check_metadata(context.invocation_metadata())
            self.spend(silo, questions)
            with self._calls.one(silo):
                yield silo
        except Refused as error:
            refused = error
        except grpc.aio.AbortError:
            status = _name_of(context.code())
            raise
        except (asyncio.CancelledError, GeneratorExit):
            status = "CANCELLED"
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error("%s failed: %s at %s:%s", method, type(error).__name__, place.filename, place.lineno)
            refused = Refused(grpc.StatusCode.INTERNAL, "the service failed to answer; nothing was wrong with the question")
        finally:
            self.counts.call(silo, method, status if refused is None else refused.code.name)
        if refused is not None:
            code, sentence, wait = refused.code, refused.sentence, refused.retry_after
            refused = None  # it holds its traceback, which holds this frame: such a circle is kept until it is collected
            await context.abort(code, sentence, () if wait is None else (("retry-after-ms", str(int(1000 * wait) + 1)),))

    @asynccontextmanager
    async def stream(self, silo: str) -> AsyncIterator[None]:
        """Around a call that outlasts a question: there are few of them at once, and they end."""
        with self._streams.one(silo):
            try:
                async with asyncio.timeout(self.limits.download_deadline):
                    yield
            except TimeoutError:
                raise Refused(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"a stream ends after {self.limits.download_deadline:g} s; go on with a new call",
                ) from None

    def spend(self, silo: str, questions: int) -> None:
        """Take from a silo's allowance; :class:`Refused` if there is not enough."""
        self._allowance.spend(silo, questions)

    def seconds_left(self, context: Any) -> float:
        """The caller's deadline, or the service's where that is shorter or the caller has none."""
        remaining: float | None = context.time_remaining()
        return self.limits.deadline if remaining is None else min(remaining, self.limits.deadline)


def _name_of(code: Any) -> str:
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), "UNKNOWN")
