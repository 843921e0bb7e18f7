"""Messages of the coordinator's service: ``recommender.proto``, and what is generated from it.

After a change of the ``.proto`` file, from the repository's folder::

    python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. common/proto/recommender.proto

Stubs are not generated: service and client hand raw bytes to gRPC and encode and decode them by themselves, because the service
compares what it got with what the schema would have made (:mod:`server.serving.questions`).
"""

from __future__ import annotations

from typing import Final

SERVICE: Final = "silorec.v1.Recommender"
"""Full name of the service."""

BATCH_LIMIT: Final = 64
"""Histories in one ``RecommendBatch``, at most."""


def path_of(method: str) -> str:
    """A method's name on the wire."""
    return f"/{SERVICE}/{method}"
