"""All attacks on one silo of a simulated run, as one answer in plain values, which ``silorec audit report`` shows.

An attack trains the run's model anew, with the run's settings, on the silo's simulated users. Nothing is charged to any ledger,
and the figures are not protected: they are for populations that are made up or public.

Kinds:

* ``canaries``: gradient canaries in the real training (:mod:`simulations.attacks.canaries`), and with SGD the check of sampling
  and clipping with next to no noise (:mod:`simulations.attacks.conformance`).
* ``members``: membership inference with shadow models (:mod:`simulations.attacks.members`).
* ``reconstruction``: single updates, unprotected, masked and private (:mod:`simulations.attacks.reconstruction`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from common.config import Config, load
from common.errors import ConfigError, PrivacyError
from common.protocol import config_hash
from simulations.watch import Silent, Watch

if TYPE_CHECKING:
    from client.silo_data import SiloData
    from common.privacy.plan import PrivacyPlan

Kind = Literal["canaries", "members", "reconstruction"]
KINDS: tuple[Kind, ...] = ("canaries", "members", "reconstruction")

SCHEMA = 1
CONFIG = "config.toml"


def target_of(target: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration to attack: of a run's folder, or of a scenario by name or path; with the numbers that silos declare.

    Raises
    ------
    ConfigError
        If there is no such scenario or folder, or a setting is wrong.
    """
    from common.data.population import enrolled
    from simulations.scenario import load_scenario

    path = Path(target)
    if path.is_dir():
        config = load(path / CONFIG, {"federation.declared_users": []}, overrides=overrides)
    else:
        config = load_scenario(target, overrides=overrides)
    return enrolled(config)


def attack(
    config: Config,
    kinds: Sequence[Kind] = KINDS,
    *,
    silo: int = 0,
    seed: int = 0,
    canaries: int = 1000,
    shadows: int = 8,
    silos: int = 40,
    candidates: int = 200,
    confidence: float = 0.95,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Attack one silo.

    Parameters
    ----------
    config:
        With declared users, see :func:`target_of`.
    kinds:
        Which attacks. An attack that cannot be made on this run is in ``skipped``, with the reason, if there are others.
    silo:
        Its place in the roster.
    seed:
        Draws canaries, coins and pools. Samples and noise are the training's own.
    canaries, shadows, silos, candidates:
        Sizes, see the modules of the attacks.

    Returns
    -------
    Finite plain values for JSON: facts of the run, ``attacks`` by name, ``skipped``, and what contradicts the claim, ``refuted``.

    Raises
    ------
    ConfigError
        If there is no such silo.
    PrivacyError
        If no attack can be made, as in mode ``distributed``.
    """
    from common.privacy.plan import plan_for
    from simulations.attacks.claims import check_attackable
    from simulations.attacks.conformance import check_conformance

    check_attackable(config.privacy.mode)
    declared = config.federation.declared_users
    if not 0 <= silo < len(declared):
        raise ConfigError(f"silo {silo}: the run has {len(declared)} silos, from 0 to {len(declared) - 1}")
    began, watch = time.monotonic(), watch or Silent()
    plan = replace(plan_for(config, declared[silo], min(declared)), hardened=config.privacy.noise == "hardened")
    sizes = {"canaries": canaries, "shadows": shadows, "silos": silos, "candidates": candidates}
    found: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for kind in kinds:
        try:
            found |= _ATTACKS[kind](config, plan, silo, seed, confidence, sizes, watch)
        except PrivacyError as error:
            if list(kinds) == [kind]:
                raise
            skipped[kind] = str(error)
    if "canaries" in found and config.training.optimizer == "sgd":
        try:
            found["conformance"] = check_conformance(config, plan, n=canaries, seed=seed, watch=watch).as_dict()
        except PrivacyError as error:
            skipped["conformance"] = str(error)
    if not found:
        raise PrivacyError("; ".join(f"{kind}: {why}" for kind, why in skipped.items()))
    answer = {
        "schema": SCHEMA,
        "software": _software(),
        "name": config.name,
        "run": config_hash(config),
        "mode": config.privacy.mode,
        "optimizer": config.training.optimizer,
        "silo": silo,
        "declared_users": declared[silo],
        "delta": plan.delta,
        "confidence": confidence,
        "seed": seed,
        "seconds": time.monotonic() - began,
        "attacks": found,
        "skipped": skipped,
        "refuted": refutations(found),
    }
    plain: dict[str, Any] = _plain(answer)
    return plain


def refutations(attacks: Mapping[str, Any]) -> list[str]:
    """What speaks against the run's claim, in words; attacks that merely found little say nothing for it."""
    out = []
    canaries, conformance, members = (attacks.get(name) for name in ("canaries", "conformance", "members"))
    if canaries and (canaries["refuted_by"] or (canaries["fit"] and not canaries["fit"]["holds"])):
        out.append(f"canaries: {canaries['verdict']}")
    if conformance and not conformance["holds"]:
        out.append(f"conformance: {'; '.join(conformance['violations'])}")
    if members and members["claimed_epsilon"] is not None and members["one_run"]["epsilon_lower"] > members["claimed_epsilon"]:
        out.append("members: the bound from one run passes the claimed epsilon")
    return out


def _attack_canaries(
    config: Config, plan: PrivacyPlan, silo: int, seed: int, confidence: float, sizes: Mapping[str, int], watch: Watch
) -> dict[str, Any]:
    from simulations.attacks.canaries import audit_canaries

    result = audit_canaries(config, plan, n=sizes["canaries"], seed=seed, confidence=confidence, watch=watch)
    return {"canaries": result.as_dict()}


def _attack_members(
    config: Config, plan: PrivacyPlan, silo: int, seed: int, confidence: float, sizes: Mapping[str, int], watch: Watch
) -> dict[str, Any]:
    from simulations.attacks.members import attack_members

    data = _data(config, silo)
    half = replace(plan, expected_batch_size=plan.expected_batch_size / 2)  # each model learns from half of the users
    result = attack_members(config, data, half, shadows=sizes["shadows"], seed=seed, confidence=confidence, progress=watch)
    return {"members": result.as_dict()}


def _attack_reconstruction(
    config: Config, plan: PrivacyPlan, silo: int, seed: int, confidence: float, sizes: Mapping[str, int], watch: Watch
) -> dict[str, Any]:
    from simulations.attacks.reconstruction import reconstruct

    result = reconstruct(
        config,
        _data(config, silo),
        plan,
        seed=seed,
        silos=sizes["silos"],
        candidates=sizes["candidates"],
        confidence=confidence,
        progress=watch,
    )
    return {"reconstruction": result.as_dict()}


_Attack = Callable[["Config", "PrivacyPlan", int, int, float, Mapping[str, int], Watch], dict[str, Any]]
_ATTACKS: dict[Kind, _Attack] = {
    "canaries": _attack_canaries,
    "members": _attack_members,
    "reconstruction": _attack_reconstruction,
}


def _data(config: Config, silo: int) -> SiloData:
    """The silo's part of the simulated population, as the silo itself reads it."""
    from client.place import Place
    from client.silo import Silo

    data: SiloData = Silo(config, Place(silo, Path(), simulated=True)).data  # its folder is for a ledger, and nothing is released
    return data


def _plain(value: Any) -> Any:
    """NumPy's arrays and numbers as Python's, infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _software() -> str:
    try:
        return f"silorec {version('silorec')}"
    except PackageNotFoundError:
        return "silorec"
