"""Every setting of silorec: typed, validated, with its default in one place.

A :class:`Config` comes from defaults, a TOML file, Flower's ``run_config`` (flat, dotted keys) and ``key=value`` overrides,
later ones winning. It travels as an object; :func:`to_toml` writes the resolved tree into a run and :func:`to_run_config`
flattens it for Flower.

The configuration is public: the coordinator, every silo and the auditor see it. It must hold no secret and nothing derived
from users.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from common.errors import ConfigError

Mode = Literal["none", "silo", "distributed"]


def _json_list(value: object) -> object:
    """Flower's run_config has no lists: accept a list written as JSON in a string."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(_Section):
    """What is common to everybody in a run."""

    seed: int = Field(0, ge=0, description="seed of everything but training in private modes")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto is CUDA where there is one")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic of the forward pass; auto is bfloat16 on CUDA, float32 on a CPU"
    )
    threads: int = Field(0, ge=0, description="CPU threads of PyTorch; 0 leaves PyTorch's choice")


class SyntheticConfig(_Section):
    """A made-up population, see ``common.data.synthetic``."""

    users: int = Field(400, ge=1, description="how many users are made up")
    items: int = Field(200, ge=3, description="how many items, where the catalogue is made up too")
    interactions_per_user: float = Field(30.0, gt=0, description="mean; lengths are log-normal")
    categories: int = Field(8, ge=1, description="of the made-up catalogue")
    taste: float = Field(4.0, ge=0, description="how strongly users prefer their own categories; 0 means not at all")
    popularity_skew: float = Field(1.0, ge=0, description="Zipf exponent of item popularity")
    drift: float = Field(0.1, ge=0, le=1, description="share of a user's taste that is replaced over their history")
    review_text: bool = Field(False, description="every interaction comes with a line of text")


class DataConfig(_Section):
    """Where interactions come from."""

    source: str = Field("ml-100k", description="a data set that can be fetched, 'synthetic', or a path")
    format: str = Field("auto", description="a registered reader, or auto")
    columns: Annotated[dict[str, str], BeforeValidator(_json_list)] = Field(
        default_factory=dict, description="for CSV, Parquet and RecBole files: our column name to the file's"
    )
    malformed: Literal["strict", "skip"] = Field("strict", description="what to do with a malformed line")
    min_value: float | None = Field(None, description="drop interactions with a lower value (rating)")
    min_user_interactions: int = Field(3, ge=3, description="users with fewer cannot be split into train, validation, test")
    synthetic: SyntheticConfig = SyntheticConfig()


class PartitionConfig(_Section):
    """How a simulation deals one data set out to silos."""

    by: Literal["taste", "size", "column", "catalogue"] = Field(
        "taste", description="what decides a user's silo; catalogue also gives each silo items of its own"
    )
    silos: int = Field(4, ge=1, description="how many silos there are")
    alpha: float = Field(0.5, gt=0, description="taste: Dirichlet concentration; size: power-law exponent")
    column: str | None = Field(None, description="column: the user attribute that names the silo")
    overlap: float = Field(0.5, ge=0, le=1, description="catalogue: share of items that all silos sell")


class ModelConfig(_Section):
    """The recommender, see ``common.model``."""

    encoder: str = Field("minilm", description="preset, Hugging Face id or folder of the text encoder of items")
    backbone: str = Field("minilm", description="preset, Hugging Face id or folder of the causal language model")
    window: int = Field(30, ge=1, description="most recent interactions that are read")
    user_text: bool = Field(False, description="put the user's text before the items")
    text_tokens: int = Field(32, ge=1, description="at most this many tokens of user text")
    lora_rank: int = Field(16, ge=0, description="0 trains no LoRA adapters")
    lora_alpha: float = Field(32.0, gt=0, description="LoRA scaling: alpha over rank")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout before each LoRA adapter")
    lora_layers: int = Field(0, ge=0, description="adapt only this many top layers; 0 means all")
    item_dim: int = Field(64, ge=0, description="width of the trainable item factors; 0 has none")
    input_map: bool = Field(True, description="train a linear map of item vectors into the backbone")
    correction_rank: int = Field(0, ge=0, description="rank of the map from hidden state to query; 0 means full")
    pooling_decay: float = Field(0.9, gt=0, le=1, description="weight of each older item against the next newer one")
    pooling_weight: float = Field(1.0, ge=0, description="weight of the pooled item vectors in the query")
    normalise_query: bool = Field(True, description="scale queries to length 1")
    scale: float = Field(10.0, gt=0, description="starting temperature of the scores")
    train_scale: bool = Field(True, description="train the temperature and the weight of the pooled items")
    train_bias: bool = Field(True, description="train item biases; if not, they stay as the count made them")
    bias_weight: float = Field(1.0, ge=0, description="weight of the log count that biases start from")


class PrivacyConfig(_Section):
    """Differential privacy of every silo; the unit is one user of one silo, add/remove neighbours."""

    mode: Mode = Field(
        "silo",
        description="silo: DP-SGD in every silo; distributed: one DP-SGD step of all silos a round, each adds part of the noise; "
        "none: no protection, for reference runs",
    )
    epsilon: float = Field(8.0, gt=0, description="for the whole run")
    delta: float | None = Field(None, gt=0, lt=1, description="unset: 1 / (10 x declared users of the smallest silo)")
    max_grad_norm: float = Field(1.0, gt=0, description="L2 bound of one user's gradient")
    count_share: float = Field(0.15, gt=0, lt=1, description="share of epsilon that the interaction count may use")
    metrics_share: float = Field(
        0.0, ge=0, lt=1, description="share of epsilon for noised figures of quality after the last round; 0 withholds them"
    )
    noise: Literal["auto", "hardened", "fast"] = Field(
        "auto", description="of simulated silos: hardened, or one draw each (auto, fast); silos with an operator always harden"
    )
    accountant: Literal["rdp", "pld"] = Field("rdp", description="which bound calibrates the noise")

    @model_validator(mode="after")
    def _shares(self) -> PrivacyConfig:
        if self.count_share + self.metrics_share >= 1:
            raise ValueError("count_share and metrics_share together must leave some of epsilon to the training")
        return self


class TrainingConfig(_Section):
    """What a silo does in one round."""

    optimizer: Literal["sgd", "adam", "adamw"] = Field("adamw", description="of the silo, started afresh in every round")
    learning_rate: float = Field(1e-3, gt=0, description="of the silo's optimiser")
    weight_decay: float = Field(0.01, ge=0, description="of adamw; others have none")
    local_epochs: int = Field(0, ge=0, description="mode none: passes over the silo's users; 0 takes local_steps")
    local_steps: int = Field(4, ge=1, description="optimiser steps per round")
    sampling_probability: float = Field(0.25, gt=0, le=1, description="chance of a user to be in a step")
    batch_size: int = Field(64, ge=1, description="mode none: users per step")
    physical_batch_size: int = Field(64, ge=1, description="users per forward pass; bounds memory, changes no result")
    gradient_clip: float = Field(1.0, gt=0, description="mode none: L2 bound of a step's mean gradient")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all items on sale")


class FederationConfig(_Section):
    """The round loop."""

    rounds: int = Field(6, ge=0, description="rounds of training after the count")
    server_optimizer: Literal["fedavg", "fedadam", "adam", "adam-bc"] = Field(
        "fedavg",
        description="what the coordinator does with the mean update: fedavg and fedadam of Reddi et al. 2021; adam: with bias "
        "correction; adam-bc: also with known noise taken out of the second moment (Tang et al. 2024)",
    )
    server_learning_rate: float = Field(1.0, gt=0, description="step along the mean update; 1 is plain averaging")
    server_beta1: float = Field(0.9, ge=0, lt=1, description="momentum of fedadam, adam and adam-bc")
    server_beta2: float = Field(0.99, ge=0, lt=1, description="decay of squared updates in fedadam, adam and adam-bc")
    server_tau: float = Field(
        1e-3, gt=0, description="degree of adaptivity: fedadam and adam add it to the divisor, adam-bc's divisor is at least this"
    )
    server_averaging: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of its former self in the running average of adapters that is kept; 0 keeps the last one",
    )
    quorum: float = Field(0.5, gt=0, le=1, description="share of silos that must answer in a round")
    deadline: float = Field(600.0, gt=0, description="seconds to wait for the silos in a round")
    weighting: Literal["declared", "uniform"] = Field("declared", description="by declared users, or all alike")
    declared_users: Annotated[tuple[int, ...], BeforeValidator(_json_list)] = Field(
        (), description="users that each silo declares, in the order of the silos; a simulation fills it at enrolment"
    )

    coordinator: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="Ed25519 public key that signs requests, hex; empty: requests are unsigned"
    )

    @model_validator(mode="after")
    def _positive(self) -> FederationConfig:
        if any(n < 1 for n in self.declared_users):
            raise ValueError("declared_users must all be at least 1")
        return self


class AggregationConfig(_Section):
    """How the silos' vectors become one sum, see ``common.secagg``."""

    method: Literal["auto", "plain", "secure"] = Field(
        "auto", description="secure: the coordinator sees sums only; plain: each silo's vector; auto: secure from three silos on"
    )
    dropout: float = Field(
        1 / 3, ge=0, lt=0.5, description="share of silos that may vanish during a secure sum; with more gone there is no sum"
    )
    corrupt: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description="share of silos that may collude with the coordinator without learning another's vector; mode distributed "
        "counts on the noise of the others, and of all but one where this comes to less than one silo but is not 0",
    )
    bits: Literal[32, 64] = Field(32, description="size of a word of a masked vector; mode distributed always takes 64")
    clip: float = Field(8.0, gt=0, description="numbers of a silo's update beyond this are cut off before they are masked")


class EvaluationConfig(_Section):
    """What a simulation measures; it is never reachable from the apps."""

    k: int = Field(10, ge=1, description="length of the recommended lists")
    every: int = Field(1, ge=1, description="evaluate after every so many rounds")
    bootstrap: int = Field(1000, ge=0, description="resamples behind the confidence intervals; 0 means none")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the intervals")
    select: Literal["last", "validation"] = Field(
        "last", description="which round is reported; 'validation' looks at private data and is for reference runs"
    )
    references: Annotated[tuple[str, ...], BeforeValidator(_json_list)] = Field(
        ("popularity", "item-knn", "ease", "als", "bpr", "tf-idf"), description="reference recommenders in the same table"
    )


class Config(_Section):
    """All settings."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run's folder")
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    partition: PartitionConfig = PartitionConfig()
    model: ModelConfig = ModelConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    training: TrainingConfig = TrainingConfig()
    federation: FederationConfig = FederationConfig()
    aggregation: AggregationConfig = AggregationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.privacy.mode == "none" or self.evaluation.select == "last":
            pass
        else:
            raise ValueError("evaluation.select = 'validation' reads private data unprotected: use it with privacy.mode = 'none'")
        declared = self.federation.declared_users
        if declared and len(declared) != self.partition.silos:
            raise ValueError(f"federation.declared_users names {len(declared)} silos, partition.silos is {self.partition.silos}")
        if self.federation.server_optimizer == "adam-bc" and self.privacy.mode != "distributed":
            raise ValueError(
                "federation.server_optimizer = 'adam-bc' takes out noise of known size: use it with privacy.mode = 'distributed'"
            )
        if self.privacy.mode == "distributed":
            if self.privacy.accountant == "pld":
                raise ValueError(
                    "privacy.accountant = 'pld' is for continuous noise, that of mode 'distributed' is discrete: use 'rdp'"
                )
            if not self.is_secure:
                raise ValueError(
                    "privacy.mode = 'distributed' adds up shares of noise, which protect nobody before they are summed: it needs "
                    "aggregation.method = 'secure' and three silos or more"
                )
            if self.training.local_steps != 1:
                raise ValueError(
                    f"privacy.mode = 'distributed' takes one step of all silos a round: set training.local_steps = 1, "
                    f"not {self.training.local_steps}"
                )
        return self

    @property
    def is_secure(self) -> bool:
        """Whether the coordinator sees sums only."""
        return self.aggregation.method == "secure" or (self.aggregation.method == "auto" and self.partition.silos >= 3)


def load(
    *sources: Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
) -> Config:
    """Merge sources into one configuration, later ones winning.

    Parameters
    ----------
    sources:
        TOML files, nested mappings, or flat mappings with dotted keys (Flower's ``run_config``).
    overrides:
        ``section.key=value`` strings; the value is read as TOML, else as a plain string.

    Raises
    ------
    ConfigError
        Naming the key, the value and what is allowed.
    """
    tree: dict[str, Any] = {}
    for source in sources:
        _merge(tree, read_toml(source) if isinstance(source, Path) else source)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override!r}: expected key=value, for example privacy.epsilon=4")
        _merge(tree, {key.strip(): _toml_value(text.strip())})
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(dict(e)) for e in error.errors())) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The values in a TOML file; :class:`ConfigError` with a sentence if it is not there or is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, settings that are unset left out."""
    return config.model_dump(mode="json", exclude_none=True)


def to_toml(config: Config) -> str:
    """The resolved configuration as TOML; :func:`load` reads it back to an equal object."""
    return tomli_w.dumps(to_dict(config))


def to_run_config(config: Config) -> dict[str, str | int | float | bool]:
    """Flat dotted keys with scalar values, as Flower's ``run_config`` wants them; lists become JSON strings."""
    flat: dict[str, str | int | float | bool] = {}

    def walk(prefix: str, tree: Mapping[str, Any]) -> None:
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and name != "data.columns":
                walk(f"{name}.", value)
            else:
                flat[name] = json.dumps(value) if isinstance(value, list | dict) else value

    walk("", to_dict(config))
    return flat


def describe() -> list[tuple[str, str, str, str]]:
    """``(key, type, default, description)`` of every setting, for ``--help`` and the docs."""
    rows: list[tuple[str, str, str, str]] = []

    def walk(prefix: str, model: type[BaseModel]) -> None:
        for key, info in model.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                walk(f"{prefix}{key}.", info.annotation)
            else:
                default = info.get_default(call_default_factory=True)
                rows.append((f"{prefix}{key}", _type_name(info.annotation), json.dumps(default), info.description or ""))

    walk("", Config)
    return rows


def _merge(tree: dict[str, Any], new: Mapping[str, Any]) -> None:
    for dotted, value in new.items():
        *path, last = str(dotted).split(".")
        node = tree
        for depth, key in enumerate(path):
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{dotted}: {'.'.join(path[: depth + 1])} is a value, not a section")
        if isinstance(value, Mapping) and isinstance(node.get(last), dict):
            _merge(node[last], value)
        elif isinstance(value, Mapping):
            node[last] = {}
            _merge(node[last], value)
        else:
            node[last] = value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section, _, name = key.rpartition(".")
        allowed = sorted(_fields(section))
        close = difflib.get_close_matches(name, allowed, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown setting {key!r}{hint} (allowed{' in ' + section if section else ''}: {', '.join(allowed)})"
    message = str(error["msg"]).removeprefix("Value error, ")
    if not key:
        return message
    value = error["input"] if not isinstance(error["input"], dict) else "a section"
    return f"{key} = {value!r}: {message[0].lower()}{message[1:]}"


def _fields(section: str) -> Iterable[str]:
    model: type[BaseModel] = Config
    for name in filter(None, section.split(".")):
        annotation = model.model_fields[name].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ()
        model = annotation
    return model.model_fields


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join("unset" if a is type(None) else _type_name(a) for a in arguments)
    if origin is not None:
        return "list" if origin is tuple else "table"
    return str(getattr(annotation, "__name__", annotation))
