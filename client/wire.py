"""Between Flower's messages and the protocol, on the silo's side: read requests, write replies."""

from __future__ import annotations

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from common.errors import ErrorCode
from common.protocol import AdapterRequest, Fields, Refusal, Request


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
    array = _value(_record(message, "adapter", ArrayRecord), "vector", Array)
    try:
        vector = array.numpy()
    except (TypeError, ValueError, NotImplementedError):
        raise Refusal(ErrorCode.BAD_REQUEST, "the adapter of the request is no array") from None
    return AdapterRequest(
        config_hash=_value(said, "config", str),
        protocol=_value(said, "protocol", int),
        signature=_value(said, "signature", str),
        round=_value(said, "round", int),
        manifest_hash=_value(said, "manifest", str),
        vector=vector,
    )


def reply_content(fields: Fields) -> RecordDict:
    """Integers into the record ``public``, vectors into the record ``protected``; an empty record is left out."""
    content = RecordDict()
    integers = {name: value for name, value in fields.items() if isinstance(value, int)}
    vectors = {name: Array(value) for name, value in fields.items() if not isinstance(value, int)}
    if integers:
        content["public"] = ConfigRecord(dict(integers))
    if vectors:
        content["protected"] = ArrayRecord(vectors)
    return content


def _record(message: Message, name: str, kind: type) -> Any:
    if not message.has_content() or not isinstance(message.content.get(name), kind):
        raise Refusal(ErrorCode.BAD_REQUEST, f"the request lacks its record {name!r}")
    return message.content[name]


def _value(record: Any, key: str, kind: type) -> Any:
    if type(record.get(key)) is not kind:
        raise Refusal(ErrorCode.BAD_REQUEST, f"the request lacks {key!r}")
    return record[key]
