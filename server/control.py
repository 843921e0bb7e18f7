"""The SuperLink's Control API, from the coordinator's own machine: which nodes may come, which runs go on.

Over Flower's own client, in this process: the ``flwr`` command takes a second of a core for each question.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from common.errors import FederationError

Said = TypeVar("Said")


class Control:
    """Questions to the SuperLink at ``address`` (host:port); ``authority``: PEM file of the authority behind its certificate.

    Every method raises :class:`FederationError` if the SuperLink cannot be reached or refuses.
    """

    def __init__(self, address: str, authority: Path) -> None:
        self.address, self.authority = address, authority
        self._opened: Any = None

    def is_healthy(self) -> bool:
        """Whether the SuperLink answers."""
        context = ssl.create_default_context(cafile=str(self.authority))
        try:
            with urllib.request.urlopen(f"https://{self.address}/health", timeout=2, context=context) as answer:
                return bool(answer.status == 200)
        except ssl.SSLError as error:
            raise FederationError(f"the SuperLink's certificate is not accepted: {error}") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):
                raise FederationError(f"the SuperLink's certificate is not accepted: {error.reason}") from None
            return False
        except OSError:
            return False

    def admit(self, allowed: Iterable[tuple[str, bytes]]) -> tuple[list[str], list[int]]:
        """Make the nodes that may come those with these names and public keys (PEM), and no others.

        Returns
        -------
        added, removed:
            Names of nodes that are new, and ids of those that may not come any more.
        """
        from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest

        wanted = {key: name for name, key in allowed}
        known = {
            bytes(node.public_key): int(node.node_id)
            for node in self._ask("ListNodes", ListNodesRequest()).nodes_info
            if node.status != "unregistered"
        }
        added, removed = [], []
        for key, name in wanted.items():
            if key not in known:
                self._ask("RegisterNode", RegisterNodeRequest(public_key=key, name=name))
                added.append(name)
        for key, node in known.items():
            if key not in wanted:
                self._ask("UnregisterNode", UnregisterNodeRequest(node_id=node))
                removed.append(node)
        return added, removed

    def unfinished(self) -> list[int]:
        """Ids of runs that Flower believes to go on."""
        from flwr.proto.control_pb2 import ListRunsRequest

        runs = self._ask("ListRuns", ListRunsRequest(limit=1000)).run_dict
        return sorted(int(run_id) for run_id, run in runs.items() if run.status.status != "finished")

    def status(self, run: int) -> str:
        """Of a run: ``pending``, ``starting``, ``running``, ``finished:completed``, ``finished:failed``, ``finished:stopped``."""
        from flwr.proto.control_pb2 import ListRunsRequest

        found = self._ask("ListRuns", ListRunsRequest(run_id=run)).run_dict[run].status
        return f"{found.status}:{found.sub_status}" if found.sub_status else str(found.status)

    def stop(self, run: int) -> None:
        """End a run."""
        from flwr.proto.control_pb2 import StopRunRequest

        self._ask("StopRun", StopRunRequest(run_id=run))

    def close(self) -> None:
        """Let go of the connection."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _ask(self, method: str, request: Any) -> Any:
        import httpx
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        if self._opened is None:
            self._opened = ControlHttpClient.from_server_address(
                server_address=self.address,
                insecure=False,
                root_certificates=self.authority.read_bytes(),
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            )
        try:
            return getattr(self._opened, method)(request)
        except httpx.HTTPError as error:
            self.close()
            response = getattr(error, "response", None)
            detail = "" if response is None else f": {response.text[:500]}"
            raise FederationError(
                f"the SuperLink at {self.address} did not do {method} ({type(error).__name__}{detail})"
            ) from None
