"""A claim's curve, and what right guesses say against it, compared with closed forms of the Gaussian mechanism."""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.errors import PrivacyError
from common.privacy.audit.fdp_bound import fdp_bound_gaussian, fdp_p_value, gaussian_trade_off
from common.privacy.audit.gaussian_bound import gaussian_epsilon
from common.privacy.audit.one_run import Guesses
from common.privacy.events import DistributedStep, GaussianCount, PoissonGaussianSteps, Unprotected
from simulations.attacks.canaries import audit_canaries
from simulations.attacks.claims import Claim, check_attackable, trade_off, with_noise
from simulations.attacks.conformance import check_conformance
from simulations.attacks.members import member_signals
from simulations.attacks.reconstruction import reconstruct
from tests.simulations.attacks import canary_run


def full_batch(sigma: float, steps: int = 6, delta: float = 1e-5) -> Claim:
    return Claim(tuple(PoissonGaussianSteps(sigma, 1.0, 1, 1.0, r) for r in range(1, steps + 1)), delta)


def guesses(n: int, correct: int) -> list[Guesses]:
    return [Guesses(n, 0, correct, 0)]


@pytest.mark.parametrize("sigma", [1.2, 2.9, 8.0])
def test_steps_on_everybody_are_one_gaussian(sigma: float) -> None:
    """T steps with noise sigma are sqrt(T)/sigma-GDP; the curve lies below that one's, and close."""
    claim, mu = full_batch(sigma), math.sqrt(6) / sigma
    assert claim.epsilon_pld == pytest.approx(gaussian_epsilon(mu, 1e-5), rel=2e-3)
    assert claim.epsilon > claim.epsilon_pld
    curve, exact = trade_off(claim), gaussian_trade_off(mu)
    for x in np.linspace(0.001, 0.999, 50):
        assert exact(float(x)) - 3e-3 <= curve(float(x)) <= exact(float(x)) + 1e-9


@pytest.mark.parametrize(("n", "correct"), [(111, 95), (111, 102), (333, 250), (1000, 700)])
def test_the_bound_of_a_gaussian_claim_is_that_of_the_gaussian_family(n: int, correct: int) -> None:
    """Rounded down to the claim's family, of which members are some 3 % apart."""
    exact = fdp_bound_gaussian(1000, n, correct, delta=1e-5).epsilon
    assert exact > 0.5
    assert 0.94 * exact < full_batch(2.9).epsilon_lower(guesses(n, correct), 1000, 0.95) <= exact * 1.003


def test_the_p_value_is_that_of_the_curve_and_pays_for_each_number_of_guesses() -> None:
    claim = full_batch(2.9)
    exact = fdp_p_value(gaussian_trade_off(math.sqrt(6) / 2.9), n_canaries=1000, n_guesses=111, n_correct=110)
    assert exact < 0.05
    once = claim.p_value(guesses(111, 110), 1000)
    assert exact <= once < 1.1 * exact
    assert claim.p_value(guesses(111, 110) + guesses(37, 20), 1000) == pytest.approx(2 * once)


def test_guesses_no_better_than_coins_refute_nothing() -> None:
    claim = full_batch(2.9)
    assert claim.epsilon_lower(guesses(100, 52), 1000, 0.95) == 0.0
    assert claim.p_value(guesses(100, 52), 1000) == 1.0


def test_sampled_steps_are_tested_by_their_own_curve() -> None:
    """What contradicts steps on a quarter of users need not contradict steps on all: the p-value falls with the claim."""
    sampled = Claim((PoissonGaussianSteps(1.8, 0.25, 24, 1.0, 1),), 1e-5)
    everybody = Claim((PoissonGaussianSteps(1.8, 1.0, 24, 1.0, 1),), 1e-5)
    found = guesses(111, 110)
    assert sampled.p_value(found, 1000) < 0.05 < everybody.p_value(found, 1000)
    assert sampled.epsilon_lower(found, 1000, 0.95) > sampled.epsilon_pld


def test_noise_scales_every_event_of_a_claim() -> None:
    claim = Claim((GaussianCount(4.0, 1.0), PoissonGaussianSteps(2.0, 0.5, 3, 1.0, 1)), 1e-5)
    assert [event.noise_multiplier for event in with_noise(claim, 1.5).events] == [6.0, 3.0]  # type: ignore[union-attr]
    assert with_noise(claim, 1.5).epsilon < claim.epsilon


def test_a_run_that_promises_nothing_is_no_claim() -> None:
    for events in ((), (Unprotected("update"),)):
        with pytest.raises(PrivacyError, match="nothing is claimed"):
            Claim(events, 1e-5)


def test_what_is_claimed_of_sums_over_silos_is_not_attacked_on_one() -> None:
    """By none of the attacks, and before anything is trained; the sentence says what can be attacked instead."""
    config, plan = canary_run.run(privacy__mode="distributed", partition__silos=4)
    attacks = {
        "canaries": lambda: audit_canaries(config, plan, n=10, seed=0),
        "conformance": lambda: check_conformance(config, plan, n=10, seed=0),
        "members": lambda: member_signals(config, None, plan, shadows=2, seed=0),  # type: ignore[arg-type]
        "reconstruction": lambda: reconstruct(config, None, plan, seed=0),  # type: ignore[arg-type]
        "claim": lambda: Claim((plan.train_event(1),), 1e-5),
        "claim among others": lambda: Claim((GaussianCount(4.0, 1.0), DistributedStep(2.0, 0.5, 1.0, 1, honest=3)), 1e-5),
    }
    for attack in attacks.values():
        with pytest.raises(PrivacyError, match=r"trains one silo by itself.*attack the training of one silo with --set privacy"):
            attack()
    for mode in ("silo", "none"):
        check_attackable(mode)
