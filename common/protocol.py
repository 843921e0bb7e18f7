"""What a round exchanges, said without Flower: actions, requests, and the one list of what may leave a silo.

Both sides read this file: the coordinator to build requests and to check replies, a silo to check requests and to build
replies. :data:`RELEASED` is that list. A silo's reply to an action consists of exactly the fields that are named there, or of
an :class:`~common.errors.ErrorCode`; the silo checks it before it sends (``client.release``), the coordinator when it receives
(``server.wire``), both with :func:`check_reply`.

Everything in a request is public. A silo may be asked anything by anybody, so it checks every request and its own budget; where
the configuration names the coordinator's key, every request must be signed with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Config, load, to_dict
from common.errors import ConfigError, ErrorCode, FederationError, SilorecError
from common.secagg.context import MAX_SILOS
from common.secagg.keys import ADVERTISEMENT_BYTES
from common.secagg.messages import BOX_RECORD, REVEALED_RECORD, SIGNATURE_BYTES, round_id

PROTOCOL_VERSION = 4

#: Who are you: the silo's place in the roster, which is public.
ENROL = "query.enrol"
#: Protected count of interactions per item, from which item biases start.
COUNT = "query.count"
#: Protected change of the adapter after local training.
TRAIN = "train"
#: Protected figures of an adapter's quality on interactions that the silo held out; asked once, after the last round.
METRICS = "query.metrics"
#: How much of its budget a silo has left, in thousandths of epsilon, where its operator shows it: a figure of the ledger, which
#: follows from what was released and never from data.
BUDGET = "query.budget"

#: What a silo answers with a vector. In a secure sum it never leaves as it is: the stages below take its place.
SUMMED = (COUNT, TRAIN, METRICS)

#: The stages of a secure sum, in order; see ``common.secagg.messages`` for what is in their bytes.
ADVERTISE, SHARE, MASK, SIGN, REVEAL = "query.advertise", "query.share", "query.mask", "query.sign", "query.reveal"

Kind = Literal["integer", "vector", "words", "digest", "bytes"]

#: What leaves a silo, by action; nothing else may. ``vector`` is a finite float32 array of shape ``(length,)``, ``words`` one of
#: uint32 or uint64, ``digest`` 32 bytes, ``bytes`` a list of records of the size that :data:`RECORDS` gives.
RELEASED: Mapping[str, Mapping[str, Kind]] = MappingProxyType(
    {
        ENROL: MappingProxyType({"silo": "integer", "protocol": "integer"}),
        COUNT: MappingProxyType({"count": "vector"}),
        TRAIN: MappingProxyType({"update": "vector"}),
        METRICS: MappingProxyType({"metrics": "vector"}),
        BUDGET: MappingProxyType({"budget": "integer"}),
        ADVERTISE: MappingProxyType({"advertisement": "bytes"}),
        SHARE: MappingProxyType({"shares": "bytes"}),
        MASK: MappingProxyType({"masked": "words", "release": "digest"}),
        SIGN: MappingProxyType({"signature": "bytes"}),
        REVEAL: MappingProxyType({"revealed": "bytes"}),
    }
)

#: Size of the records in a field of bytes, and how many there may be: one, or one for each silo.
RECORDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "advertisement": (ADVERTISEMENT_BYTES, 1),
        "shares": (BOX_RECORD, MAX_SILOS),
        "signature": (SIGNATURE_BYTES, 1),
        "revealed": (REVEALED_RECORD, MAX_SILOS),
    }
)

#: Refusals that asking again cannot mend.
FINAL = frozenset(
    {
        ErrorCode.BAD_REQUEST,
        ErrorCode.MANIFEST_MISMATCH,
        ErrorCode.BUDGET_EXHAUSTED,
        ErrorCode.POLICY_REFUSED,
        ErrorCode.REPLAYED,
        ErrorCode.SECAGG_REFUSED,
    },
)

#: Refusals that stay what they are for the rest of a run: a budget does not come back, and an operator has decided.
FOR_GOOD = frozenset({ErrorCode.BUDGET_EXHAUSTED, ErrorCode.POLICY_REFUSED})

#: Keys of Flower's ``run_config`` that are no settings of the run but of the process that runs it.
APP_PREFIX = "app."
APP_KEYS = frozenset({"app.out", "app.home", "app.key", "app.roster"})

Fields = Mapping[str, Any]


class Refusal(SilorecError):
    """A silo does not do what it was asked; only :attr:`code` travels."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What every request says: which configuration, and which version of this protocol.

    ``signature`` is the coordinator's, 128 hex characters over :func:`statement`, or empty where the configuration names no key.
    """

    config_hash: str
    protocol: int = PROTOCOL_VERSION
    signature: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterRequest(Request):
    """Train from ``vector`` in round ``round`` (from 1), or measure it after that round.

    ``vector`` is the adapter as float32 ``(n_parameters,)``, laid out as the manifest with hash ``manifest_hash`` says.
    """

    round: int
    manifest_hash: str
    vector: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class SumRequest(Request):
    """One stage of a secure sum of the answers to a question that is put to all silos.

    ``nonce`` (32 bytes) is the coordinator's for this attempt. ``question`` is the :func:`question_digest` of what is summed, the
    answers to ``action`` in round ``round``; ``roster`` the digest of the coordinator's roster; ``payload`` what the stage needs.
    In the stage :data:`MASK` the question itself comes along: ``vector`` and ``manifest_hash``, where it is about an adapter.
    """

    action: str
    round: int
    question: str
    nonce: bytes
    roster: str
    payload: bytes = field(default=b"", repr=False)
    manifest_hash: str = ""
    vector: NDArray[np.float32] | None = field(default=None, repr=False)

    @property
    def round_id(self) -> bytes:
        """The name of the attempt, 32 bytes."""
        return round_id(self.nonce, self.question)

    def asked(self) -> Request:
        """What is to be answered in the stage :data:`MASK`, as if it were asked plainly."""
        if self.vector is None:
            return Request(config_hash=self.config_hash, protocol=self.protocol)
        return AdapterRequest(
            config_hash=self.config_hash,
            protocol=self.protocol,
            round=self.round,
            manifest_hash=self.manifest_hash,
            vector=self.vector,
        )


def round_of(request: Request) -> int:
    """The round that a request belongs to; 0 is before training."""
    return request.round if isinstance(request, AdapterRequest | SumRequest) else 0


def statement(action: str, request: Request) -> bytes:
    """Everything that a request asks, as bytes: what the coordinator signs, and what makes two questions the same."""
    said: dict[str, Any] = {"action": action, "config": request.config_hash, "protocol": request.protocol}
    if isinstance(request, AdapterRequest):
        vector = hashlib.sha256(np.ascontiguousarray(request.vector).tobytes()).hexdigest()
        said |= {"round": request.round, "manifest": request.manifest_hash, "vector": vector}
    if isinstance(request, SumRequest):
        said |= {"sum": request.action, "round": request.round, "question": request.question, "nonce": request.nonce.hex()}
        said |= {"roster": request.roster, "payload": hashlib.sha256(request.payload).hexdigest()}
    return b"silorec-request-3\0" + json.dumps(said, sort_keys=True).encode()


def question_digest(action: str, request: Request) -> str:
    """SHA-256 (hex) of :func:`statement`."""
    return hashlib.sha256(statement(action, request)).hexdigest()


def release_question(mode: str, request: SumRequest) -> str:
    """The digest under which ledger and transcript hold an answer that goes into a secure sum.

    In mode ``distributed`` every attempt draws new noise and is charged, so it is a question of its own. In the other modes the
    answer is the same in every attempt, and paid for once.
    """
    if mode != "distributed":
        return request.question
    return hashlib.sha256(b"silorec-attempt-1\0" + bytes.fromhex(request.question) + request.round_id).hexdigest()


def answer_digest(action: str, fields: Fields, salt: bytes = b"") -> str:
    """SHA-256 (hex) of an answer: its action, and each field's name and bytes. The silo's ledger and the transcript hold it.

    With a secret ``salt`` it commits to the answer and tells nothing of it: for answers that leave under a mask.
    """
    digest = hashlib.sha256(f"silorec-answer-1/{action}".encode() + salt)
    for name in sorted(fields):
        value = fields[name]
        if isinstance(value, int):
            content = str(value).encode()
        else:
            array = np.ascontiguousarray(value)
            content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        digest.update(f"/{name}/{len(content)}/".encode() + content)
    return digest.hexdigest()


def check_request(request: Request, action: str, config: Config) -> None:
    """A silo's first question about any request.

    Raises
    ------
    Refusal
        ``BAD_REQUEST`` if the version or the configuration differ from the silo's own, ``POLICY_REFUSED`` if the signature is
        not that of the coordinator whom the configuration names.
    """
    if request.protocol != PROTOCOL_VERSION:
        raise Refusal(
            ErrorCode.BAD_REQUEST,
            f"the coordinator speaks protocol {request.protocol}, this silo {PROTOCOL_VERSION}: install the same silorec",
        )
    if request.config_hash != config_hash(config):
        raise Refusal(ErrorCode.BAD_REQUEST, "the request belongs to another configuration than this silo was given")
    coordinator = config.federation.coordinator
    if coordinator and not _signed_by(coordinator, request.signature, statement(action, request)):
        raise Refusal(ErrorCode.POLICY_REFUSED, "the request is not signed by the coordinator of its configuration")


def check_adapter(request: AdapterRequest, action: str, config: Config, manifest_hash: str, n_parameters: int) -> None:
    """That round and vector of a question are possible. In a secure sum the signature is on the request around the question.

    Raises
    ------
    Refusal
        ``MANIFEST_MISMATCH`` if the vector is laid out for another model, ``BAD_REQUEST`` for anything else.
    """
    rounds = config.federation.rounds
    first = rounds if action == METRICS else 1
    if not first <= request.round <= rounds:
        raise Refusal(ErrorCode.BAD_REQUEST, f"{action}: round {request.round} is outside {first}..{rounds}")
    if request.manifest_hash != manifest_hash:
        raise Refusal(ErrorCode.MANIFEST_MISMATCH, "the coordinator's adapter has another manifest than this silo's model")
    problem = _vector_problem(request.vector, n_parameters)
    if problem:
        raise Refusal(ErrorCode.BAD_REQUEST, f"the adapter {problem}")


def check_reply(action: str, fields: Mapping[str, Any], length: int | None = None) -> None:
    """Fields are exactly those of :data:`RELEASED`, of the kind that it says.

    Parameters
    ----------
    action:
        Of the request that is answered.
    fields:
        Name to int or array.
    length:
        Expected length of vectors, where known.

    Raises
    ------
    FederationError
        Naming the field, never a value.
    """
    allowed = RELEASED.get(action)
    if allowed is None:
        raise FederationError(f"no reply to {action!r} is defined (defined: {', '.join(RELEASED)})")
    if set(fields) != set(allowed):
        raise FederationError(f"a reply to {action!r} has the fields {sorted(fields)}, allowed are exactly {sorted(allowed)}")
    for name, kind in allowed.items():
        value = fields[name]
        if kind == "integer":
            problem = "" if type(value) is int and value >= 0 else "is not an integer from 0"
        elif kind == "vector":
            problem = _vector_problem(value, length)
        elif kind == "words":
            problem = _words_problem(value, length)
        else:
            problem = _bytes_problem(value, *((32, 1) if kind == "digest" else RECORDS[name]))
        if problem:
            raise FederationError(f"a reply to {action!r}: {name} {problem}")


def config_hash(config: Config) -> str:
    """SHA-256 (hex) of the resolved configuration: equal on both sides or nothing is done."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()


def silo_seed(run_seed: int, silo: int, round_number: int) -> int:
    """Seed (63 bits) of a silo's reproducible choices in a round; the same in whichever process the silo is played.

    Privacy never rests on it: noise and the sampling of users in private modes draw from the operating system.
    """
    digest = hashlib.sha256(f"silorec/{run_seed}/{silo}/{round_number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def read_run_config(run_config: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Split Flower's flat ``run_config`` into the configuration and the ``app.`` keys, named without their prefix.

    Raises
    ------
    ConfigError
        Naming the unknown key or the bad value.
    """
    app = {key: value for key, value in run_config.items() if key.startswith(APP_PREFIX)}
    unknown = sorted(app.keys() - APP_KEYS)
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r} (allowed in {APP_PREFIX[:-1]}: {', '.join(sorted(APP_KEYS))})")
    config = load({key: value for key, value in run_config.items() if key not in app})
    return config, {key.removeprefix(APP_PREFIX): value for key, value in app.items()}


def _signed_by(public_key: str, signature: str, message: bytes) -> bool:
    from common.privacy.signing import verify

    try:
        return verify(public_key, bytes.fromhex(signature), message)
    except ValueError:
        return False


def _vector_problem(value: Any, length: int | None) -> str:
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim != 1:
        return "is not a float32 vector"
    if length is not None and len(value) != length:
        return f"has {len(value)} numbers, expected {length}"
    if not np.isfinite(value).all():
        return "holds numbers that are not finite"
    return ""


def _words_problem(value: Any, length: int | None) -> str:
    if not isinstance(value, np.ndarray) or value.dtype not in (np.uint32, np.uint64) or value.ndim != 1:
        return "is not a vector of uint32 or uint64"
    return "" if length is None or len(value) == length else f"has {len(value)} numbers, expected {length}"


def _bytes_problem(value: Any, size: int, most: int) -> str:
    if not isinstance(value, bytes) or not value or len(value) % size or len(value) > size * most:
        return f"is not a list of 1 to {most} records of {size} bytes"
    return ""
