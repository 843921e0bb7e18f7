"""Between the protocol and Flower's messages, on the coordinator's side: write requests, read replies."""

from __future__ import annotations

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from common.errors import ErrorCode, FederationError
from common.protocol import AdapterRequest, Fields, Request, SumRequest, check_reply


def request_content(request: Request) -> RecordDict:
    """The records of a request; a new :class:`RecordDict` each time, for messages must not share one."""
    said: dict[str, Any] = {"config": request.config_hash, "protocol": request.protocol, "signature": request.signature}
    vector = None
    if isinstance(request, SumRequest):
        said |= {"sum": request.action, "question": request.question, "nonce": request.nonce}
        said |= {"roster": request.roster, "payload": request.payload}
    if isinstance(request, AdapterRequest | SumRequest):
        said |= {"round": request.round, "manifest": request.manifest_hash}
        vector = request.vector
    content = RecordDict({"request": ConfigRecord(said)})
    if vector is not None:
        content["adapter"] = ArrayRecord({"vector": Array(vector)})
    return content


def read_reply(message: Message, length: int | None = None) -> Fields | ErrorCode:
    """The fields of a reply, or why there are none.

    A code that is not ours (Flower's own, or an invention) is read as ``INTERNAL``; a reason is never read.

    Raises
    ------
    FederationError
        If the reply holds anything but the fields of :data:`common.protocol.RELEASED`.
    """
    if message.has_error():
        try:
            return ErrorCode(message.error.code)
        except ValueError:
            return ErrorCode.INTERNAL
    action = message.metadata.message_type
    fields: dict[str, Any] = {}
    for name, record in message.content.items():
        if name == "public" and isinstance(record, ConfigRecord):
            fields |= dict(record)
        elif name == "protected" and isinstance(record, ArrayRecord):
            fields |= {key: _numpy(action, array) for key, array in record.items()}
        else:
            raise FederationError(f"a reply to {action!r} holds a record {name!r} that no reply has")
    check_reply(action, fields, length)
    return fields


def _numpy(action: str, array: Array) -> Any:
    try:
        return array.numpy()
    except (TypeError, ValueError, NotImplementedError):
        raise FederationError(f"a reply to {action!r} holds an array that cannot be read") from None
