"""Between Flower's messages and the protocol, on the silo's side: read requests, write replies."""

from __future__ import annotations

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from common.errors import ErrorCode, SecAggError
from common.protocol import AdapterRequest, Fields, Refusal, Request, SumRequest


def read_request(message: Message) -> Request:
    """What is asked.

    Raises
    ------
    Refusal
        ``BAD_REQUEST`` if the message does not hold what its action needs.
    """
    said = _record(message, "request", ConfigRecord)
    return Request(
        config_hash=_value(said, "config", str),
        protocol=_value(said, "protocol", int),
        signature=_value(said, "signature", str),
    )


def read_adapter_request(message: Message) -> AdapterRequest:
    """As :func:`read_request`, for questions about an adapter."""
    said = _record(message, "request", ConfigRecord)
    return AdapterRequest(
        config_hash=_value(said, "config", str),
        protocol=_value(said, "protocol", int),
        signature=_value(said, "signature", str),
        round=_value(said, "round", int),
        manifest_hash=_value(said, "manifest", str),
        vector=_adapter(message),
    )


def read_sum_request(message: Message) -> SumRequest:
    """As :func:`read_request`, for a stage of a secure sum; an adapter comes with it where one is asked about."""
    said = _record(message, "request", ConfigRecord)
    request = SumRequest(
        config_hash=_value(said, "config", str),
        protocol=_value(said, "protocol", int),
        signature=_value(said, "signature", str),
        action=_value(said, "sum", str),
        round=_value(said, "round", int),
        question=_value(said, "question", str),
        nonce=_value(said, "nonce", bytes),
        roster=_value(said, "roster", str),
        payload=_value(said, "payload", bytes),
        manifest_hash=_value(said, "manifest", str),
        vector=_adapter(message) if "adapter" in message.content else None,
    )
    try:
        bytes.fromhex(request.question), request.round_id
    except (ValueError, SecAggError):
        raise Refusal(ErrorCode.BAD_REQUEST, "the request does not name a round of a secure sum") from None
    return request


def reply_content(fields: Fields) -> RecordDict:
    """Vectors into the record ``protected``, everything else into the record ``public``; an empty record is left out."""
    content = RecordDict()
    public = {name: value for name, value in fields.items() if isinstance(value, int | bytes)}
    vectors = {name: Array(value) for name, value in fields.items() if name not in public}
    if public:
        content["public"] = ConfigRecord(dict(public))
    if vectors:
        content["protected"] = ArrayRecord(vectors)
    return content


def _adapter(message: Message) -> Any:
    array = _value(_record(message, "adapter", ArrayRecord), "vector", Array)
    try:
        return array.numpy()
    except (TypeError, ValueError, NotImplementedError):
        raise Refusal(ErrorCode.BAD_REQUEST, "the adapter of the request is no array") from None


def _record(message: Message, name: str, kind: type) -> Any:
    if not message.has_content() or not isinstance(message.content.get(name), kind):
        raise Refusal(ErrorCode.BAD_REQUEST, f"the request lacks its record {name!r}")
    return message.content[name]


def _value(record: Any, key: str, kind: type) -> Any:
    if type(record.get(key)) is not kind:
        raise Refusal(ErrorCode.BAD_REQUEST, f"the request lacks {key!r}")
    return record[key]
