"""The folders of a deployment, and what their operators write in them.

Each party has one folder and needs no other: the silo its own, the coordinator its own, the authority one that can be kept off
the network. What lies where is said here and nowhere else. Private keys are made in these folders and never leave them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from common.config import read_toml
from common.errors import ConfigError

#: A silo's name: one label of a DNS name (RFC 1123), because its certificate carries it as one and files are named after it.
SILO_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(_Settings):
    """Where the silo's own data are: a file or folder, or a query to a database. They stay there, and are only read."""

    path: Path | None = Field(None, description="file or folder; relative to the silo's folder")
    format: str = Field("auto", description="a format of 'silorec data formats', or auto")
    columns: dict[str, str] = Field(default_factory=dict, description="our column name to the source's")
    url: str | None = Field(None, repr=False, description="of a database, as SQLAlchemy writes it")
    query: str | None = Field(None, repr=False, description="SELECT that gives one row an interaction")
    items_query: str | None = Field(None, repr=False, description="SELECT that gives one row an item that the silo sells")
    password_file: Path | None = Field(None, description="file with the database's password, which nobody else can read")

    @model_validator(mode="after")
    def _one_source(self) -> DataSettings:
        if (self.path is None) == (self.url is None):
            raise ValueError("give either path (a file or folder) or url and query (a database)")
        if (self.url is None) != (self.query is None):
            raise ValueError("url and query go together")
        return self


class SiloSettings(_Settings):
    """``silo.toml``: what a silo's operator decides."""

    name: str = Field(description="the silo's name in the consortium")
    coordinator: str = Field(description="host:port of the coordinator")
    data: DataSettings = Field(description="where the silo's data are")
    catalogue: Path | None = Field(
        None, description="the run's public catalogue on this machine, where it is not at the path that the run says"
    )
    show_budget: bool = Field(False, description="whether the coordinator is told how much budget is left")
    roster_refresh: float = Field(60.0, ge=1, description="seconds between two looks for a newer roster")
    metrics_port: int = Field(0, ge=0, le=65535, description="of the silo's own Prometheus metrics, on loopback; 0 is off")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train; auto is CUDA where there is one")

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        return check_silo_name(name)

    @field_validator("coordinator")
    @classmethod
    def _addressed(cls, address: str) -> str:
        return check_address(address)


class CoordinatorSettings(_Settings):
    """``coordinator.toml``: what the coordinator's operator decides."""

    name: str = Field(description="the consortium's name")
    listen: str = Field("0.0.0.0:9092", description="address and port that silos connect to")
    metrics_port: int = Field(0, ge=0, le=65535, description="of Prometheus metrics, on loopback; 0 is off")
    tensorboard: bool = Field(False, description="whether a run writes scalars for TensorBoard into its folder as it goes on")

    @field_validator("listen")
    @classmethod
    def _addressed(cls, address: str) -> str:
        return check_address(address)


class SiloHome:
    """A silo's folder, by the names of what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings_file = folder / "silo.toml"
        self.policy = folder / "policy.toml"
        self.ledger = folder / "ledger.sqlite"
        self.identity_key = folder / "ledger.key"
        self.node_key = folder / "node.key"
        self.tls_key = folder / "tls.key"
        self.tls_certificate = folder / "tls.pem"
        self.authority = folder / "authority.pem"
        self.roster = folder / "roster.toml"
        self.status = folder / "status.json"

    def settings(self) -> SiloSettings:
        """What ``silo.toml`` says, its data's path made absolute.

        Raises
        ------
        ConfigError
            Naming the file and the key.
        """
        settings = _read(SiloSettings, self.settings_file)
        if settings.data.path is None:
            return settings
        path = (self.folder / settings.data.path.expanduser()).absolute()
        return settings.model_copy(update={"data": settings.data.model_copy(update={"path": path})})


class CoordinatorHome:
    """The coordinator's folder, by the names of what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings_file = folder / "coordinator.toml"
        self.key = folder / "coordinator.key"
        self.tls_key = folder / "tls.key"
        self.tls_certificate = folder / "tls.pem"
        self.authority = folder / "authority.pem"
        self.roster = folder / "roster.toml"
        self.journal = folder / "journal.jsonl"
        self.database = folder / "superlink.sqlite"
        self.runs = folder / "runs"

    def settings(self) -> CoordinatorSettings:
        """What ``coordinator.toml`` says; :class:`ConfigError` as for a silo."""
        return _read(CoordinatorSettings, self.settings_file)


class AuthorityHome:
    """The authority's folder, by the names of what is in it; ``coordinator`` is the folder beside it, where there is one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "authority.key"
        self.authority = folder / "authority.pem"
        self.roster = folder / "roster.toml"
        self.pending = folder / "roster.pending.toml"
        self.invitations = folder / "invitations.toml"
        self.journal = folder / "journal.jsonl"
        self.lock = folder / ".lock"
        self.coordinator = CoordinatorHome(folder.parent / "coordinator")


def check_silo_name(name: str) -> str:
    """``name``, if a silo may be called so; else :class:`ValueError`."""
    if SILO_NAME.fullmatch(name) is None:
        raise ValueError("a silo's name has up to 63 of a-z, 0-9 and '-', and neither begins nor ends with '-'")
    return name


def check_address(address: str) -> str:
    """``address``, if it is host:port; else :class:`ValueError`."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[1]) < 65536:
        raise ValueError("must be host:port, as in federation.example.org:9092; an IPv6 address stands in brackets")
    return address


def host_of(address: str) -> str:
    """The host in host:port, without an IPv6 address' brackets."""
    return address.rpartition(":")[0].strip("[]")


_AnySettings = TypeVar("_AnySettings", bound=_Settings)


def _read(kind: type[_AnySettings], path: Path) -> _AnySettings:
    try:
        return kind.model_validate(read_toml(path))
    except ValidationError as error:
        raise ConfigError("; ".join(f"{path}: {_explain(kind, dict(e))}" for e in error.errors(include_url=False))) from None


def _explain(kind: type[BaseModel], error: Mapping[str, Any]) -> str:
    key, *inner = (str(part) for part in error["loc"])
    where = ".".join((key, *inner))
    fields = kind.model_fields
    if key == "data" and kind is SiloSettings and (inner or error["type"] == "extra_forbidden"):
        fields = DataSettings.model_fields
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where.rpartition(".")[2], fields, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown setting {where!r}{hint} (allowed: {', '.join(sorted(fields))})"
    if error["type"] == "missing":
        return f"{where} is missing: {fields[where.rpartition('.')[2]].description}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if isinstance(error["input"], dict):
        return f"{where}: {message}"
    return f"{where} = {error['input']!r}: {message[0].lower()}{message[1:]}"
