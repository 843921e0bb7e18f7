"""The one door through which anything leaves a silo.

:func:`answer` turns what a handler computed into a reply of exactly the fields in :data:`common.protocol.RELEASED`, and every
exception into an :class:`~common.errors.ErrorCode`. Flower would send the text of an exception that a handler raises to the
coordinator, and that text may quote a user's data: so no exception passes this door, and the local log names where it
happened but not what it said, unless it is of a kind that speaks of public things only.

No other module of ``client`` builds a Flower message; a test holds that.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

from flwr.app import Error, Message

from client.wire import reply_content
from common.errors import (
    AssetError,
    BudgetExhausted,
    ConfigError,
    DataError,
    ErrorCode,
    LedgerError,
    ModelError,
    PolicyRefused,
    PrivacyError,
    SecAggError,
)
from common.protocol import Fields, Refusal, check_reply

log = logging.getLogger("silorec.client")

#: The texts of these speak of the configuration, of public models, of the request, and of the silo's own budget.
_SPEAKS_OF_NO_USER = (Refusal, ConfigError, AssetError, ModelError, BudgetExhausted, PolicyRefused, LedgerError, SecAggError)

_CODES: tuple[tuple[type[Exception], ErrorCode], ...] = (
    (ConfigError, ErrorCode.BAD_REQUEST),
    (BudgetExhausted, ErrorCode.BUDGET_EXHAUSTED),
    (LedgerError, ErrorCode.LEDGER_UNAVAILABLE),
    (PrivacyError, ErrorCode.POLICY_REFUSED),
    (SecAggError, ErrorCode.SECAGG_REFUSED),
    (DataError, ErrorCode.DATA_UNAVAILABLE),
    (AssetError, ErrorCode.DATA_UNAVAILABLE),
    (OSError, ErrorCode.DATA_UNAVAILABLE),
)


def answer(message: Message, compute: Callable[[], Fields]) -> Message:
    """The reply to ``message``: the fields that ``compute`` returns, or a code. Never raises an :class:`Exception`."""
    action = message.metadata.message_type
    try:
        fields = compute()
        check_reply(action, fields)
        return Message(reply_content(fields), reply_to=message)
    except Exception as error:
        code = code_of(error)
        log.error("%s refused with %s: %s", action, code.name, _for_the_log(error))
        return Message(Error(code=int(code), reason=code.name), reply_to=message)


def code_of(error: Exception) -> ErrorCode:
    """The code as which an exception travels; what is not foreseen is ``INTERNAL``."""
    if isinstance(error, Refusal):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), ErrorCode.INTERNAL)


def _for_the_log(error: Exception) -> str:
    if isinstance(error, _SPEAKS_OF_NO_USER):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return f"{type(error).__name__} at " + " < ".join(f"{f.name} ({f.filename}:{f.lineno})" for f in reversed(frames))
