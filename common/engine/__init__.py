"""The engine: a history in, the best items out, with reasons, from a bundle and without any training library.

It runs the same in a silo's gateway and in the coordinator's service. It keeps nothing of what it is asked.
"""

from common.engine.engine import Engine
from common.engine.requests import Reason, Recommended, Request

__all__ = ["Engine", "Reason", "Recommended", "Request"]
