"""What a question to the coordinator's service costs, beside its parts, and how many it answers.

Four programs on one machine: this one, which asks one question after the other and computes the parts; the service as ``silorec
serve`` starts it, its engine in a process of its own; a service that does nothing, of the same size and with the same TLS; and a
load generator, which is cheap (:mod:`simulations.bench.grpc_load`). Nothing is pinned: the service has what the load generator
leaves of the processor, and a note says what that took. What is compared is measured in turn, so that what else the machine does
meets all of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import numpy as np

from common.bundle.contents import Bundle
from common.errors import ConfigError
from common.recommending import ANSWERS, PAD, SLOTS
from simulations.bench import Figure, empty_service, grpc_load, register
from simulations.bench.grpc_load import Load, Outcome
from simulations.watch import Watch

SECONDS, CALLS, ROUNDS = 6, 1_500, 5
STREAMS, CONNECTIONS = 64, 4
SHARE: Final = 0.8
"""Of saturation, at which the slowest calls are looked at."""

QUESTIONS: Final = 256
SLOW_SHARE: Final = 99.0
UNLIMITED: Final = (
    "--rate", "1e9", "--burst", "1000000000", "--under-way", "100000", "--under-way-of-one", "100000", "--waiting", "100000",
    "--deadline", "60",
)  # fmt: skip
"""For the service that is measured: whatever comes is answered, however long it takes."""

CHANNELS: Final = ("mutual TLS", "no TLS")


@register("serve")
def serve(
    out: Path,
    watch: Watch,
    *,
    bundle: str = "",
    items: int = 0,
    seconds: int = SECONDS,
    calls: int = CALLS,
    repeats: int = ROUNDS,
) -> list[Figure]:
    """The gRPC service beside the bare engine and an empty call: time, questions a second, memory; with TLS and without."""
    import psutil
    from threadpoolctl import threadpool_limits

    if seconds < 1 or calls < 10 or repeats < 1:
        raise ConfigError("the service is measured with 10 calls or more, for a second or more, once or more")
    out.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(1), ExitStack() as stack:
        prepared = _prepare(out, bundle, items)
        figures = [*prepared.figures()]
        for channel in CHANNELS:
            secure = channel == CHANNELS[0]
            service = stack.enter_context(_service(prepared, secure))
            empty = stack.enter_context(_empty(prepared, secure))
            process = psutil.Process(service.process.pid)
            before = _resident(process)
            alone = _one_after_the_other(prepared, service, empty, calls, watch, channel)
            figures += alone.figures(channel)
            figures += _many_at_once(prepared, service, empty, seconds, repeats, alone, watch, channel)
            after = _resident(process)
            figures.append(
                Figure(
                    f"memory of the service at its start, {channel}", before / 2**20, "MiB", "resident, with the engine's process"
                )
            )
            figures.append(Figure(f"memory of the service after the load, {channel}", after / 2**20, "MiB", "resident"))
    return figures


def _resident(process: Any) -> int:
    """Bytes, of a process and those that it started."""
    return int(sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]))


@dataclass(frozen=True)
class Prepared:
    """A bundle on the disk, who signed it, questions about it, and paths of certificates by role."""

    path: Path
    bundle: Bundle
    histories: tuple[tuple[int, ...], ...]
    questions: tuple[bytes, ...]
    service_tls: tuple[str, str, str]
    client_tls: tuple[str, str, str]

    def figures(self) -> Iterator[Figure]:
        facts = self.bundle.card.model
        note = f"{facts.layers} layers of width {facts.width}, {facts.precision}, {self.bundle.items.dim} columns"
        yield Figure("items", len(self.bundle.items), "", note)
        note = f"as the client library shows histories; always {SLOTS} slots and {ANSWERS} answers"
        yield Figure("items of a history in a question", float(np.mean([len(h) for h in self.histories])), "", note)
        yield Figure("bytes of a question", len(self.questions[0]), "B")


def _prepare(out: Path, bundle: str, items: int) -> Prepared:
    from client.private_history import protect
    from common.bundle.files import read_bundle, write_bundle
    from common.privacy.signing import create_key
    from common.proto import recommender_pb2 as messages
    from simulations.bench.certificates import Authority
    from simulations.bench.served_bundle import Size, random_parts

    if bundle:
        path = Path(bundle)
    else:
        path, key_file = out / "random.bundle", out / "signer.key"
        key_file.unlink(missing_ok=True)
        card, catalogue, table, model = random_parts(Size(items=items) if items else Size())
        write_bundle(path, card=card, catalogue=catalogue, items=table, model=model, key=create_key(key_file))
    opened = read_bundle(path, None)
    n, rng = len(opened.items), Random(0)
    shown = [protect([rng.randrange(n) for _ in range(rng.randrange(5, 80))], n, rng=rng) for _ in range(QUESTIONS)]
    fingerprint = bytes.fromhex(opened.catalogue_fingerprint)
    questions = [messages.RecommendRequest(catalogue=fingerprint, history=slots).SerializeToString() for slots in shown]
    histories = tuple(tuple(slot for slot in slots if slot != PAD) for slots in shown)
    authority = Authority(out)
    pairs = [authority.sign("service", server=True), authority.sign("silo")]
    tls = [(str(pair.certificate), str(pair.key), str(authority.certificate)) for pair in pairs]
    return Prepared(path, opened, histories, tuple(questions), tls[0], tls[1])


@dataclass(frozen=True)
class _Started:
    process: subprocess.Popen[str]
    port: int
    certificates: tuple[str, ...]


@contextmanager
def _started(command: Sequence[str], said: str, certificates: tuple[str, ...]) -> Iterator[_Started]:
    """A process that prints its port as JSON, ended afterwards."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, *command], **pipes) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(said + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise ConfigError(f"{Path(command[1]).name} did not start; what it said stands above")
            facts = json.loads(line)
            yield _Started(process, int(facts.get("port") or facts["address"].rpartition(":")[2]), certificates)
        finally:
            process.terminate()
            process.wait(30)


def _service(prepared: Prepared, secure: bool) -> Any:
    bundle = ["--bundle", str(prepared.path), "--signer", prepared.bundle.signer]
    options = ["--port", "0", "--json", "--no-watch", *UNLIMITED]
    names = ("--tls-cert", "--tls-key", "--client-ca")
    tls = [part for pair in zip(names, prepared.service_tls, strict=True) for part in pair] if secure else ["--insecure"]
    return _started(["-m", "silorec", "serve", *bundle, *options, *tls], "", prepared.client_tls if secure else ())


def _empty(prepared: Prepared, secure: bool) -> Any:
    said = json.dumps({"answer_bytes": answer_bytes(prepared), "certificates": prepared.service_tls if secure else ()})
    return _started(_program(empty_service), said, prepared.client_tls if secure else ())


def answer_bytes(prepared: Prepared) -> int:
    """Of every answer."""
    from common.proto import recommender_pb2 as messages

    return len(messages.RecommendResponse(bundle=bytes(32), positions=[0] * ANSWERS, scores=[0.0] * ANSWERS).SerializeToString())


@dataclass(frozen=True)
class _Alone:
    """Seconds of each call, one at a time."""

    engine: tuple[float, ...]
    empty: tuple[float, ...]
    whole: tuple[float, ...]

    def figures(self, channel: str) -> Iterator[Figure]:
        note = f"median of {len(self.whole):,}, in turn"
        engine, empty, whole = (1e3 * median(values) for values in (self.engine, self.empty, self.whole))
        yield Figure(f"bare engine call, {channel}", engine, "ms", note)
        yield Figure(f"empty call, {channel}", empty, "ms", note)
        yield Figure(f"whole call, {channel}", whole, "ms", f"{note}; p99 {1e3 * _slow(self.whole):.2f} ms")
        yield Figure(f"whole call over engine and empty call, {channel}", whole / (engine + empty), "times")


def _one_after_the_other(
    prepared: Prepared, service: _Started, empty: _Started, calls: int, watch: Watch, channel: str
) -> _Alone:
    import grpc

    from common.engine import Engine
    from common.proto import path_of

    engine = Engine(prepared.bundle)
    seconds: dict[str, list[float]] = {"engine": [], "empty": [], "whole": []}
    with ExitStack() as stack:
        whole = stack.enter_context(_channel(service)).unary_unary(path_of("Recommend"))
        nothing = stack.enter_context(_channel(empty)).unary_unary(empty_service.METHOD)
        kinds: dict[str, Callable[[int], object]] = {
            "engine": lambda place: engine.top([prepared.histories[place]], ANSWERS),
            "empty": lambda place: nothing(prepared.questions[place], timeout=30),
            "whole": lambda place: whole(prepared.questions[place], timeout=30),
        }
        warm_up = max(10, calls // 10)
        watch.stage(f"one after the other, {channel}", calls + warm_up)
        try:
            for done in range(calls + warm_up):
                for name, call in kinds.items():
                    began = time.perf_counter()
                    call(done % QUESTIONS)
                    seconds[name].append(time.perf_counter() - began)
                if done % 100 == 0:
                    watch.step(done)
        except grpc.RpcError as error:
            raise ConfigError(f"the service refused a question of the benchmark: {error.details()}") from None
    return _Alone(*(tuple(values[warm_up:]) for values in seconds.values()))


def _channel(started: _Started) -> Any:
    import grpc

    if not started.certificates:
        return grpc.insecure_channel(f"localhost:{started.port}")
    chain, key, authority = (Path(path).read_bytes() for path in started.certificates)
    return grpc.secure_channel(f"localhost:{started.port}", grpc.ssl_channel_credentials(authority, key, chain))


def _many_at_once(
    prepared: Prepared,
    service: _Started,
    empty: _Started,
    seconds: int,
    repeats: int,
    alone: _Alone,
    watch: Watch,
    channel: str,
) -> list[Figure]:
    from common.proto import path_of

    hand, by_hand = Loop(prepared.bundle), []
    loaded, nothing = _Loaded(prepared, service, path_of("Recommend")), _Loaded(prepared, empty, empty_service.METHOD)
    watch.stage(f"saturation and {SHARE:.0%} of it, {channel}", repeats)
    for done in range(repeats):
        by_hand.append(hand.per_second(prepared.histories, seconds / 2))
        for one in (loaded, nothing):
            one.load(seconds, done)
        watch.step(done + 1)
    loop = median(by_hand)
    at = f"at {SHARE:.0%} of saturation"
    generator = f"{STREAMS} under way over {CONNECTIONS} connections; the load generator took {loaded.share:.0%} of a core"
    note = f"median of {repeats} times {seconds} s"
    rates = f"{SHARE:.0%} of the saturation just before, {SHARE * loaded.saturation:.0f} a second in the median"
    arrivals = f"Poisson arrivals, {rates}; from the intended start; {note}"
    lone = "p50 of calls one after the other"
    return [
        Figure(f"a loop of ONNX Runtime and NumPy without a network, beside {channel}", loop, "1/s", f"median of {repeats}"),
        Figure(f"questions a second at saturation, {channel}", loaded.saturation, "1/s", f"{note}; {generator}"),
        Figure(f"saturation over the loop, {channel}", loaded.saturation / loop, "times"),
        Figure(f"p50 {at}, {channel}", 1e3 * loaded.p50, "ms", arrivals),
        Figure(f"p99 {at}, {channel}", 1e3 * loaded.p99, "ms", arrivals),
        Figure(f"p99 {at} over p50 alone, {channel}", loaded.p99 / median(alone.whole), "times", lone),
        Figure(f"p99 {at} over p50 there, {channel}", loaded.p99 / loaded.p50, "times"),
        Figure(f"empty calls a second at saturation, {channel}", nothing.saturation, "1/s", note),
        Figure(f"empty calls: p99 {at}, {channel}", 1e3 * nothing.p99, "ms", f"{SHARE:.0%} of their own saturation; {note}"),
        Figure(f"empty calls: p99 {at} over p50 alone, {channel}", nothing.p99 / median(alone.empty), "times", lone),
    ]


class _Loaded:
    """What came of loading a service, closed and open by turns; medians over the turns."""

    def __init__(self, prepared: Prepared, started: _Started, method: str) -> None:
        questions = tuple(question.hex() for question in prepared.questions)
        self._load = partial(
            Load,
            started.port,
            method,
            questions,
            answer_bytes(prepared),
            certificates=started.certificates,
            connections=CONNECTIONS,
        )
        self._closed: list[Outcome] = []
        self._open: list[Outcome] = []

    def load(self, seconds: int, seed: int) -> None:
        """Find saturation, then ask at a share of it; :class:`ConfigError` if something was not answered."""
        self._closed.append(run_load(self._load(seconds=seconds, streams=STREAMS)))
        rate = SHARE * self._closed[-1].answered / self._closed[-1].seconds
        self._open.append(run_load(self._load(seconds=seconds, rate=rate, seed=seed)))
        if failed := self._closed[-1].failed + self._open[-1].failed:
            raise ConfigError(f"{failed} questions of the load were not answered; nothing can be said about speed")

    @property
    def saturation(self) -> float:
        """Calls a second."""
        return median(outcome.answered / outcome.seconds for outcome in self._closed)

    @property
    def share(self) -> float:
        """Of a core, that the load generator took at saturation."""
        return median(outcome.processor_seconds / outcome.seconds for outcome in self._closed)

    @property
    def p50(self) -> float:
        """Seconds, at :data:`SHARE` of saturation."""
        return median(median(outcome.latencies) for outcome in self._open)

    @property
    def p99(self) -> float:
        return median(_slow(outcome.latencies) for outcome in self._open)


def _program(module: Any) -> list[str]:
    """A module of this folder run as a file, without what the package around it imports."""
    return ["-P", str(module.__file__)]


def run_load(load: Load) -> Outcome:
    """In a process of its own."""
    command = [sys.executable, *_program(grpc_load)]
    done = subprocess.run(command, input=json.dumps(asdict(load)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"the load generator failed: {done.stderr.strip().splitlines()[-1:]}")
    return Outcome(**json.loads(done.stdout))


class Loop:
    """What somebody writes who has one history, ONNX Runtime and NumPy: the model, a matrix product, the best items."""

    def __init__(self, bundle: Bundle) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(bundle.model, options, providers=["CPUExecutionProvider"])
        self._vectors = bundle.items.rows(np.arange(len(bundle.items)))
        self._biases = bundle.items.biases
        self._window = bundle.card.model.window

    def answer(self, history: tuple[int, ...]) -> Any:
        """The best items, best first."""
        recent = list(history[-self._window :])
        inputs = {"history": self._vectors[recent][None], "length": np.array([len(recent)])}
        scores = self._vectors @ self._session.run(["query"], inputs)[0][0] + self._biases
        best = np.argpartition(scores, -ANSWERS)[-ANSWERS:] if len(scores) > ANSWERS else np.arange(len(scores))
        return best[np.argsort(-scores[best])]

    def per_second(self, histories: Sequence[tuple[int, ...]], seconds: float) -> float:
        """How many it answers, one after the other."""
        for history in histories[:50]:
            self.answer(history)
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for history in histories[:32]:
                self.answer(history)
            done += 32
        return done / (time.perf_counter() - began)


def _slow(values: Sequence[float]) -> float:
    return float(np.percentile(values, SLOW_SHARE))
