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
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, Field, ValidationError, model_validator

from common.config_sections import (
    AggregationConfig,
    DataConfig,
    DistillationConfig,
    EvaluationConfig,
    FederationConfig,
    Mode,
    ModelConfig,
    PartitionConfig,
    PrivacyConfig,
    RunConfig,
    Section,
    SyntheticConfig,
    TrainingConfig,
)
from common.errors import ConfigError

__all__ = [
    "AggregationConfig",
    "Config",
    "DataConfig",
    "DistillationConfig",
    "EvaluationConfig",
    "FederationConfig",
    "Mode",
    "ModelConfig",
    "PartitionConfig",
    "PrivacyConfig",
    "RunConfig",
    "Section",
    "SyntheticConfig",
    "TrainingConfig",
    "describe",
    "load",
    "read_toml",
    "to_dict",
    "to_run_config",
    "to_toml",
]


class Config(Section):
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
    distillation: DistillationConfig = DistillationConfig()

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
