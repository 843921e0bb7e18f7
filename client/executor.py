"""Where a silo's answers are computed: one process that takes questions from Flower's SuperNode to the installed app.

Flower's own executor starts a process for each message and has it unpack the app bundle that the coordinator sent, and import
from there. This one imports ``client.app`` of the installed silorec before anything arrives, unpacks nothing, and refuses a run
whose bundle holds code or names another app: what a silo runs is what it installed. The process stays, and with it the model.

``python -m client.executor --address 127.0.0.1:9094 --secret FILE``, beside
``flower-supernode --isolation process --superexec-auth-secret-file FILE``.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import time
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import httpx
from flwr.app import Context, Message

from client.app import app
from client.release import answer
from common.errors import ErrorCode
from common.pauses import pause_factor
from common.protocol import Fields, Refusal

log = logging.getLogger("silorec.client")

APP = "client.app:app"
QUIET = frozenset({".gitignore", "LICENSE", "LICENSE.md", "README.md", "pyproject.toml"})
"""What a bundle may hold beside Flower's own list of files: text that nothing executes."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 0.2
"""Seconds between two looks for a question; the pause grows while there is none."""

LARGEST_BUNDLE, LARGEST_PROJECT = 10_000_000, 1_000_000

PARTS_WITHIN = 600.0
"""Seconds that a question may take to be whole once the SuperNode has announced it."""

Told = Callable[[Message, ErrorCode | None, float], None]


def bundle_problem(content: bytes) -> str:
    """Why a run with this app bundle (a zip file) is not taken part in; empty if it holds no code and names the installed app."""
    if len(content) > LARGEST_BUNDLE:
        return f"the app bundle has {len(content)} bytes; one without code has a few thousand"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            names = [name for name in bundle.namelist() if not name.endswith("/")]
            strange = sorted(name for name in names if name not in QUIET and not name.startswith(".info/"))
            if strange:
                return f"the app bundle holds {strange[0]!r}: this silo runs what it has installed, and no code from elsewhere"
            if bundle.getinfo("pyproject.toml").file_size > LARGEST_PROJECT:
                return f"the app bundle's pyproject.toml has {bundle.getinfo('pyproject.toml').file_size} bytes"
            components = tomllib.loads(bundle.read("pyproject.toml").decode())["tool"]["flwr"]["app"]["components"]
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError):
        return "the app bundle cannot be read"
    if components.get("clientapp") != APP:
        return f"the app bundle names {components.get('clientapp')!r} as the silo's app; this silo runs {APP!r} and nothing else"
    return ""


def played(message: Message, context: Context, bundle: bytes) -> Message:
    """The reply to a message: that of the installed app, or a refusal. Never raises an :class:`Exception`."""
    problem = bundle_problem(bundle)
    if problem:
        return _refused(message, Refusal(ErrorCode.POLICY_REFUSED, problem))
    try:
        return app(message, context)
    except Exception as error:  # Flower's own: no handler of that name; its text must not leave
        log.error("%s was not answered: %s", message.metadata.message_type, type(error).__name__)
        return _refused(message, Refusal(ErrorCode.BAD_REQUEST, "this silo has no answer of that name"))


def _refused(message: Message, refusal: Refusal) -> Message:
    def refuse() -> Fields:
        raise refusal

    return answer(message, refuse)


class Executor:
    """Takes tasks from the SuperNode at ``address`` (loopback, without TLS), one at a time.

    Parameters
    ----------
    secret:
        Shared with the SuperNode, so that no other program on this machine takes the silo's questions.
    told:
        Called after each reply, with the code of a refusal and the seconds that it took.
    """

    def __init__(self, address: str, secret: bytes, told: Told = lambda message, code, seconds: None) -> None:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
        from flwr.supercore.superexec.run_superexec import _SUPEREXEC_AUTH_METHODS

        self.address, self.told = address, told
        auth = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_SUPEREXEC_AUTH_METHODS)
        self._client = _client(address, [RuntimeVersionHttpInterceptor(component_name="SuperExec"), auth])

    def run(self) -> NoReturn:
        """For as long as the process lives."""
        pause, factor = SHORTEST_PAUSE, pause_factor()
        while True:
            if self.step():
                pause = SHORTEST_PAUSE
            else:
                time.sleep(factor * pause)
                pause = min(pause * 1.5, LONGEST_PAUSE)

    def step(self) -> bool:
        """Take a task if there is one, and finish it; whether there was one."""
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
        from flwr.supercore.run import RunNotRunningException

        try:
            found = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.TransportError:  # the SuperNode is being started
            return False
        if not (found.HasField("task") and found.token):
            return False
        try:
            self._finish(found.token)
        except RunNotRunningException:
            log.warning("the run has ended; what was computed for it is kept")
        except (httpx.HTTPError, ObjectPullError) as error:
            log.error(
                "a question or its answer was lost on the way (%s); an answer is kept for when it is asked for again", error
            )
        return True

    def _finish(self, token: str) -> None:
        from flwr.common.constant import SubStatus
        from flwr.supercore.heartbeat import HeartbeatSender
        from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
        from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

        versions = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
        client = _client(self.address, [versions, RuntimeTokenHttpInterceptor(token)])
        alive = HeartbeatSender(lambda: _beat(client))
        context: Context | None = None
        status, details = SubStatus.FAILED, "no reply"
        try:
            alive.start()
            message, context, _, bundle = pull_task_input(client)
            began = time.monotonic()
            reply = played(message, context, bundle.content)
            self.told(message, ErrorCode(reply.error.code) if reply.has_error() else None, time.monotonic() - began)
            push_message(client, reply, context)
            status, details = SubStatus.COMPLETED, ""
        finally:
            push_task_output(client, context, status, details)
            if alive.is_running:
                alive.stop()
            client.close()


def _beat(client: Any) -> bool:
    """Tell the SuperNode that the task goes on; True also where it has given it up, for the answer is kept in any case."""
    from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

    try:
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    except httpx.TransportError:
        return False
    except httpx.HTTPStatusError:
        return True
    return True


def _client(address: str, interceptors: list[Any]) -> Any:
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient

    retries = make_simple_http_retry_invoker()
    retries.max_tries = 3
    return RuntimeHttpClient.from_server_address(
        server_address=address, insecure=True, root_certificates=None, interceptors=interceptors, retry_invoker=retries
    )


def main(arguments: list[str] | None = None) -> None:
    """The process."""
    from common.logs import configure
    from common.pulling import eager

    parser = argparse.ArgumentParser(prog="python -m client.executor", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", required=True, help="of the SuperNode's Runtime API, host:port on loopback")
    parser.add_argument("--secret", required=True, type=Path, help="file that the SuperNode was given too")
    parser.add_argument("--home", type=Path, help="the silo's folder, whose status is kept up to date")
    given = parser.parse_args(arguments)
    configure()
    parts = importlib.import_module("flwr.supercore.inflatable.inflatable_utils")
    parts.pull_objects = eager(parts.pull_objects, lambda: PARTS_WITHIN)  # type: ignore[attr-defined]
    Executor(given.address, given.secret.read_bytes(), _status_of(given.home)).run()


def _status_of(home: Path | None) -> Told:
    if home is None:
        return lambda message, code, seconds: None
    from client.status import SiloStatus
    from common.consortium.home import SiloHome

    status = SiloStatus(SiloHome(home))
    return lambda message, code, seconds: status.note(
        message.metadata.message_type, _round_of(message), None if code is None else code.name, seconds
    )


def _round_of(message: Message) -> int | None:
    """The round that a request says, public; None where it says none."""
    if not message.has_content() or "request" not in message.content:
        return None
    said: Any = message.content["request"]
    found = said.get("round") if hasattr(said, "get") else None
    return found if type(found) is int else None


if __name__ == "__main__":
    main()
