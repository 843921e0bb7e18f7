"""The four methods of ``silorec.v1.Recommender``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import grpc

from common.proto import SERVICE
from common.proto import recommender_pb2 as messages
from common.recommending import SLOTS
from common.serving import Current
from server.serving.batching import Answering, Batcher
from server.serving.calls import Gate
from server.serving.issued import Issued
from server.serving.questions import Questions, read, read_batch, read_question
from server.serving.refusal import Refused

CHUNK: Final = 256 << 10
"""Bytes of a bundle in one message."""


class HasCurrent(Protocol):
    """What the service needs of :class:`common.serving.Live`; ``prepared`` of the current engine is an :class:`Issued`."""

    @property
    def current(self) -> Current[Answering]: ...


class Recommender:
    """Answers; keeps nothing."""

    def __init__(self, live: HasCurrent, gate: Gate, batcher: Batcher) -> None:
        self._live, self._gate, self._batcher = live, gate, batcher

    def handler(self) -> grpc.GenericRpcHandler:
        """For a server of ``grpc.aio``. Messages come and go as bytes: see :mod:`server.serving.questions`."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Recommend": grpc.unary_unary_rpc_method_handler(self.recommend),
                "RecommendBatch": grpc.unary_unary_rpc_method_handler(self.recommend_batch),
                "GetCard": grpc.unary_unary_rpc_method_handler(self.get_card),
                "GetBundle": grpc.unary_stream_rpc_method_handler(self.get_bundle),
            },
        )

    async def recommend(self, raw: bytes, context: Any) -> bytes | None:
        return await self._answer("Recommend", raw, context, 1, read_question)

    async def recommend_batch(self, raw: bytes, context: Any) -> bytes | None:
        questions = max(1, len(raw) // (4 * SLOTS))
        return await self._answer("RecommendBatch", raw, context, questions, read_batch)

    async def _answer(
        self, method: str, raw: bytes, context: Any, count: int, reading: Callable[[bytes], Questions]
    ) -> bytes | None:
        async with self._gate.call(method, context, count) as silo:
            questions = reading(raw)
            answers = await self._batcher.ask(questions, self._gate.seconds_left(context))
            self._gate.counts.answered(silo, len(questions.histories))
            return answers.to_bytes()
        return None  # the gate has ended the call with a status

    async def get_card(self, raw: bytes, context: Any) -> bytes | None:
        async with self._gate.call("GetCard", context):
            read(messages.GetCardRequest, raw)
            issued: Issued = self._live.current.prepared
            return messages.GetCardResponse(
                bundle=issued.digest, catalogue=issued.catalogue, card=issued.card
            ).SerializeToString()
        return None

    async def get_bundle(self, raw: bytes, context: Any) -> None:
        async with self._gate.call("GetBundle", context) as silo:
            request = read(messages.GetBundleRequest, raw)
            issued: Issued = self._live.current.prepared
            if issued.file is None:
                raise Refused(
                    grpc.StatusCode.UNIMPLEMENTED, "this service's bundle is a folder, which it does not hand out as a file"
                )
            if request.digest not in (b"", issued.digest):
                raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "another bundle is served now; fetch it from the beginning")
            if request.offset > issued.file.size:
                raise Refused(grpc.StatusCode.OUT_OF_RANGE, f"the bundle has {issued.file.size} bytes; begin inside of it")
            async with self._gate.stream(silo):
                await self._send(issued, request.offset, context)

    async def _send(self, issued: Issued, offset: int, context: Any) -> None:
        assert issued.file is not None
        header = messages.BundleHeader(digest=issued.digest, size=issued.file.size)
        await context.write(messages.GetBundleResponse(header=header).SerializeToString())
        while offset < issued.file.size:
            chunk = await asyncio.to_thread(issued.file.read, offset, CHUNK)
            if not chunk:
                raise Refused(grpc.StatusCode.ABORTED, "the bundle's file was cut off while it was sent; ask again")
            await context.write(messages.GetBundleResponse(chunk=chunk).SerializeToString())
            offset += len(chunk)
