"""A policy says what is wrong with it, survives its file, and refuses what it does not allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, PolicyRefused, PrivacyError
from common.privacy.events import DistributedCount, DistributedMetrics, GaussianMetrics, Unprotected
from common.privacy.filter import ORDERS, order_for
from common.privacy.policy import Policy, Proposal, policy_from_dict, read_policy
from tests.common.privacy.ledgers import AUDITOR, COORDINATOR, COUNT, RUN, asks, digest, policy, shared_step, steps

FILE = """
silo = "north"
epsilon = 8
delta = 1e-5
epsilon_per_run = 4.0
modes = ["silo", "distributed"]
min_noise_multiplier = 0.8
max_sampling_probability = 0.25
max_steps_per_round = 8
max_rounds_per_run = 20
declared_users = 900
coordinators = ["any"]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text)
    return path


def test_a_policy_is_read_from_its_file(tmp_path: Path) -> None:
    read = read_policy(written(tmp_path, FILE))
    assert read == Policy(
        silo="north",
        epsilon=8.0,
        delta=1e-5,
        epsilon_per_run=4.0,
        modes=("silo", "distributed"),
        min_noise_multiplier=0.8,
        max_sampling_probability=0.25,
        max_steps_per_round=8,
        max_rounds_per_run=20,
        declared_users=900,
        coordinators=("any",),
    )


def test_what_is_not_said_restricts_nothing_but_the_mode() -> None:
    least = Policy(silo="north", epsilon=8.0, delta=1e-5, coordinators=("any",))
    assert least.modes == ("silo",)
    least.check(asks(steps(10**6, noise_multiplier=0.01, sampling_probability=1.0, steps=10**6)))


policies = st.builds(
    Policy,
    silo=st.sampled_from(["north", "Bücher & Co.", "silo 0", "a" * 100]),
    epsilon=st.floats(0.5, 100),
    delta=st.floats(1e-12, 1e-3),
    order=st.none(),
    epsilon_per_run=st.none() | st.floats(0.5, 100),
    epsilon_per_day=st.none() | st.floats(0.5, 100),
    modes=st.sampled_from([("silo",), ("silo", "none"), ("distributed", "silo"), ("none",)]),
    min_noise_multiplier=st.floats(0, 10),
    min_share_noise_multiplier=st.floats(0, 10),
    max_honest_silos=st.none() | st.integers(1, 100),
    max_sampling_probability=st.floats(0.001, 1),
    max_steps_per_round=st.none() | st.integers(1, 1000),
    max_rounds_per_run=st.none() | st.integers(1, 1000),
    declared_users=st.none() | st.integers(1, 10**7),
    coordinators=st.sampled_from([("any",), (), (COORDINATOR.public_key, AUDITOR.public_key)]),
)


@given(policies)
def test_a_policy_survives_toml_and_json_resolved_or_not(made: Policy) -> None:
    import json
    import tomllib

    for one in (made, made.resolved()):
        assert policy_from_dict(tomllib.loads(one.to_toml())) == one
        assert policy_from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert made.resolved().resolved() == made.resolved()


def test_the_file_that_is_written_can_be_read(tmp_path: Path) -> None:
    one = policy(epsilon_per_day=3.0).resolved()
    assert read_policy(written(tmp_path, one.to_toml())) == one


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("epsilom = 4", r"unknown setting 'epsilom'; did you mean 'epsilon'\? \(allowed: coordinators, declared_users, delta"),
        ("epsilon = -1", "epsilon = -1: input should be greater than 0"),
        ("epsilon = nan", "epsilon = nan: input should be a finite number"),
        ("epsilon = inf", "epsilon = inf: input should be a finite number"),
        ("delta = 0", "delta = 0: input should be greater than 0"),
        ("delta = 1", "delta = 1: input should be less than 1"),
        ("order = 1", "order = 1: input should be greater than 1.01"),
        ("order = 5000", "order = 5000: input should be less than or equal to 1024"),
        ('modes = ["open"]', "modes.0 = 'open': input should be 'silo', 'distributed' or 'none'"),
        ("modes = []", "modes = "),
        ("max_sampling_probability = 1.5", "max_sampling_probability = 1.5: input should be less than or equal to 1"),
        ("max_steps_per_round = 0", "max_steps_per_round = 0: "),
        ("max_rounds_per_run = 2.5", "max_rounds_per_run = 2.5: "),
        ("max_honest_silos = 0", "max_honest_silos = 0: input should be greater than or equal to 1"),
        ("min_share_noise_multiplier = -0.1", "min_share_noise_multiplier = -0.1: input should be greater than or equal to 0"),
        ('coordinators = ["all"]', "'all' is neither a public key"),
        (f'coordinators = ["{"A" * 64}"]', "is neither a public key"),
        ('silo = ""', "silo = '': "),
        ('silo = "a\\nb"', "silo = "),
        ("epsilon_per_run = 0.1\norder_per_run = 2.0", "epsilon_per_run = 0.1 leaves no room at order_per_run = 2"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(tmp_path: Path, change: str, said: str) -> None:
    keys = {line.partition(" = ")[0] for line in change.splitlines()}
    kept = [line for line in FILE.splitlines() if line.partition(" = ")[0] not in keys]
    with pytest.raises(ConfigError, match=f"policy.toml: .*{said}"):
        read_policy(written(tmp_path, "\n".join([*kept, change])))


@pytest.mark.parametrize("missing", ["silo", "delta", "coordinators"])
def test_what_must_be_said_is_asked_for(tmp_path: Path, missing: str) -> None:
    kept = [line for line in FILE.splitlines() if not line.startswith(f"{missing} ")]
    with pytest.raises(ConfigError, match=f"policy.toml: {missing} is missing: "):
        read_policy(written(tmp_path, "\n".join(kept)))


def test_no_limit_must_be_meant(tmp_path: Path) -> None:
    without = FILE.replace("epsilon = 8\n", "")
    with pytest.raises(ConfigError, match="epsilon is not set"):
        read_policy(written(tmp_path, without))
    read = read_policy(written(tmp_path, without.replace('"silo", ', '"none", "silo", ')))
    assert read.epsilon is None
    assert [limit.name for limit in read.limits] == ["epsilon_per_run"]


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_policy(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_policy(tmp_path)
    with pytest.raises(ConfigError, match="not a TOML file"):
        read_policy(written(tmp_path, "epsilon 8"))
    (tmp_path / "latin").write_bytes(b"silo = '\xe9'")
    with pytest.raises(ConfigError, match="not a TOML file"):
        read_policy(tmp_path / "latin")


def test_every_limit_gets_the_order_that_suits_it() -> None:
    resolved = policy(epsilon_per_run=2.0, epsilon_per_day=1.0).resolved()
    assert [limit.order for limit in resolved.limits] == [order_for(8.0, 1e-5), order_for(2.0, 1e-5), order_for(1.0, 1e-5)]
    assert len({limit.order for limit in resolved.limits}) == 3
    assert all(limit.rdp_budget > 0 for limit in resolved.limits)
    assert policy(order=5.5).resolved().order == 5.5
    assert policy(epsilon=None, modes=("none",)).resolved().order in ORDERS
    with pytest.raises(ConfigError, match=r"epsilon_per_day: epsilon = 0\.001 at delta = 1e-05 leaves no room"):
        policy(epsilon_per_day=0.001).resolved()


def test_a_following_policy_keeps_the_orders_and_the_silo() -> None:
    first = policy(epsilon_per_run=2.0).resolved()
    after = policy(epsilon=20.0, epsilon_per_run=3.0, epsilon_per_day=4.0).resolved(before=first)
    assert (after.order, after.order_per_run) == (first.order, first.order_per_run)
    assert after.order_per_day == order_for(4.0, 1e-5)
    assert policy().resolved(before=after).order_per_day == after.order_per_day  # kept for the day the limit comes back
    assert policy(order=first.order).resolved(before=first).order == first.order
    for changes in ({"order": 7.0}, {"epsilon_per_run": 2.0, "order_per_run": 7.0}):
        with pytest.raises(ConfigError, match="it was fixed at"):
            policy(**changes).resolved(before=first)
    with pytest.raises(ConfigError, match="another silo needs its own"):
        policy(silo="south").resolved(before=first)
    with pytest.raises(ConfigError, match="epsilon = 2 leaves no room at order"):
        policy(epsilon=2.0).resolved(before=first)


STRICT: dict[str, Any] = {
    "min_noise_multiplier": 0.8,
    "max_sampling_probability": 0.25,
    "max_steps_per_round": 8,
    "max_rounds_per_run": 20,
    "declared_users": 900,
}
STRANGER = digest("no coordinator")


@pytest.mark.parametrize(
    ("proposal", "said"),
    [
        (asks(steps(1, 0.79), declared_users=900), "min_noise_multiplier: a noise multiplier of 0.79 .* allows 0.8"),
        (asks(GaussianMetrics(0.5, 1.0), declared_users=900), "min_noise_multiplier: a noise multiplier of 0.5"),
        (asks(steps(1, sampling_probability=0.26), declared_users=900), "max_sampling_probability: .* 0.26 .* allows 0.25"),
        (asks(steps(1, steps=9), declared_users=900), "max_steps_per_round: steps: 9 .* allows 8"),
        (asks(steps(21), declared_users=900), "max_rounds_per_run: round 21 .* allows 20"),
        (asks(steps(1), declared_users=901), "declared_users: the question says 901, the policy says 900"),
        (asks(steps(1)), "declared_users: the question says None, the policy says 900"),
        (asks(steps(1), declared_users=900, coordinator=STRANGER), f"coordinators: coordinator {STRANGER} is not among"),
        (asks(steps(1), declared_users=900, coordinator=""), "coordinators: an unsigned question is not among"),
        (asks(shared_step(1), declared_users=900), "modes: mode 'distributed' was asked for, .* allows silo"),
        (asks(Unprotected("update", 1), declared_users=900, mode="none"), "modes: mode 'none' was asked for"),
    ],
)
def test_what_passes_a_limit_is_refused_with_both_values(proposal: Proposal, said: str) -> None:
    with pytest.raises(PolicyRefused, match=said):
        policy(**STRICT).check(proposal)


def test_what_just_meets_every_limit_is_allowed() -> None:
    strict = policy(**STRICT)
    strict.check(asks(steps(20, 0.8, 0.25, 8), declared_users=900))
    strict.check(asks(COUNT, declared_users=900))
    policy(**STRICT, modes=("none",), epsilon=8.0).resolved()
    policy(modes=("none",)).check(asks(Unprotected("update", 1), mode="none"))


SHARING: dict[str, Any] = {
    **STRICT, "modes": ("silo", "distributed"), "min_share_noise_multiplier": 0.5, "max_honest_silos": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("proposal", "said"),
    [
        (asks(shared_step(1, honest=5), declared_users=900), "max_honest_silos: noise .* honest silos: 5 .* allows 4 at most"),
        (
            asks(shared_step(1, 0.99), declared_users=900),
            "min_share_noise_multiplier: a noise multiplier of 0.99 from 4 honest silos is 0.495 of this silo's own, .* 0.5 and",
        ),
        (asks(DistributedMetrics(0.98, 1.0, honest=4), declared_users=900), "min_share_noise_multiplier: .* 0.49 of this"),
        (asks(DistributedCount(0.98, 1.0, honest=4), declared_users=900), "min_share_noise_multiplier: .* 0.49 of this"),
        (asks(shared_step(1, 0.79, honest=1), declared_users=900), "min_noise_multiplier: a noise multiplier of 0.79"),
        (asks(shared_step(1, sampling_probability=0.26), declared_users=900), "max_sampling_probability: .* 0.26 .* allows 0.25"),
        (asks(shared_step(21), declared_users=900), "max_rounds_per_run: round 21 .* allows 20"),
    ],
)
def test_an_operator_bounds_how_far_a_silo_relies_on_others(proposal: Proposal, said: str) -> None:
    with pytest.raises(PolicyRefused, match=said):
        policy(**SHARING).check(proposal)


def test_what_just_meets_the_bounds_on_sharing_is_allowed_and_they_bind_no_other_mode() -> None:
    sharing = policy(**SHARING)
    sharing.check(asks(shared_step(20, 1.0, 0.25, honest=4), declared_users=900))
    sharing.check(asks(DistributedCount(0.8, 1.0, honest=2), declared_users=900))
    policy(**{**SHARING, "min_noise_multiplier": 0.0, "max_honest_silos": 1}).check(asks(steps(1, 0.1), declared_users=900))
    policy(modes=("distributed",)).check(asks(shared_step(1, 0.01, honest=10**6)))


def test_a_policy_of_before_mode_distributed_was_known_is_read_and_means_the_same() -> None:
    before = {key: value for key, value in policy().to_dict().items() if "honest" not in key and "share" not in key}
    assert len(before) == len(policy().to_dict()) - 2
    assert policy_from_dict(before) == policy()


def test_any_admits_everybody_and_only_when_said() -> None:
    for coordinator in ("", STRANGER, COORDINATOR.public_key):
        policy(coordinators=("any",)).check(asks(COUNT, coordinator=coordinator))
        with pytest.raises(PolicyRefused, match="coordinators"):
            policy(coordinators=()).check(asks(COUNT, coordinator=coordinator))
    policy().check(asks(COUNT))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": "x"}, "run = 'x'"),
        ({"run": RUN.upper()}, "run = "),
        ({"coordinator": "abc"}, "coordinator = 'abc'"),
        ({"round": 2}, "round = 2, but the event is of round 1"),
        ({"mode": "none"}, "mode = 'none' does not go with a release of kind 'poisson-gaussian-steps'"),
        ({"mode": "distributed"}, "mode = 'distributed' does not go with a release of kind 'poisson-gaussian-steps'"),
    ],
)
def test_a_question_that_contradicts_itself_cannot_be_asked(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PrivacyError, match=said):
        asks(steps(1), **changes)
    with pytest.raises(PrivacyError, match="does not go with a release of kind 'unprotected'"):
        asks(Unprotected("update", 1))
    for mode in ("silo", "none"):
        with pytest.raises(PrivacyError, match=f"mode = '{mode}' does not go with a release of kind 'distributed-step'"):
            asks(shared_step(1), mode=mode)
