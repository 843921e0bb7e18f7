"""Configuration: what is written is read back, layers win in order, and mistakes are named."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from common.config import Config, Section, describe, load, to_dict, to_run_config, to_toml
from common.errors import ConfigError


@st.composite
def configurations(draw: st.DrawFn) -> Config:
    """Settings of every kind: integers, floats, choices, switches, lists, tables, unset."""
    silos = draw(st.integers(1, 6))
    positive = st.floats(1e-9, 1e9, allow_nan=False)
    return load(
        {
            "name": draw(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,10}\Z")),
            "run.seed": draw(st.integers(0, 2**62)),
            "data.source": draw(st.text(max_size=20).filter(lambda s: s[:1] not in ("[", "{"))),
            "data.columns": draw(st.dictionaries(st.from_regex(r"\A[a-z]{1,8}\Z"), st.text(max_size=8), max_size=3)),
            "data.min_value": draw(st.none() | positive),
            "partition.silos": silos,
            "model.lora_layers": draw(st.integers(0, 40)),
            "model.user_text": draw(st.booleans()),
            "privacy.delta": draw(st.none() | st.floats(1e-12, 0.5)),
            "privacy.epsilon": draw(positive),
            "training.learning_rate": draw(positive),
            "federation.declared_users": draw(st.just([]) | st.lists(st.integers(1, 10**7), min_size=silos, max_size=silos)),
            "evaluation.references": draw(st.lists(st.sampled_from(["ease", "als", "tf-idf"]), max_size=3)),
        }
    )


@given(configurations())
@settings(max_examples=60, deadline=None)
def test_a_configuration_is_read_back_from_toml_and_from_run_config(config: Config) -> None:
    assert load(tomllib.loads(to_toml(config))) == config
    flat = to_run_config(config)
    assert all(type(value) in (str, int, float, bool) for value in flat.values())
    assert load(flat) == config
    assert load(to_dict(config)) == config


def test_a_file_is_read_back(tmp_path: Path) -> None:
    config = load({"privacy.epsilon": 2.5, "federation.declared_users": [10, 20], "partition.silos": 2})
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load(path) == config


def test_nothing_given_gives_the_defaults() -> None:
    assert load() == Config()


def test_later_layers_win_and_leave_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[privacy]\nepsilon = 1.0\nmax_grad_norm = 0.5\n[training]\nlocal_steps = 9\n", encoding="utf-8")
    config = load(path, {"privacy": {"epsilon": 2.0}}, {"privacy.epsilon": 3.0, "run.seed": 5}, overrides=["run.seed=7"])
    assert config.privacy.epsilon == 3.0
    assert config.privacy.max_grad_norm == 0.5
    assert config.training.local_steps == 9
    assert config.run.seed == 7


def test_loading_changes_no_source() -> None:
    source: dict[str, Any] = {"privacy": {"epsilon": 2.0}}
    load(source, {"privacy.epsilon": 3.0})
    assert source == {"privacy": {"epsilon": 2.0}}


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("privacy.epsilon=4", ("privacy", "epsilon"), 4.0),
        ("model.encoder=hashing", ("model", "encoder"), "hashing"),
        ('model.encoder="hashing"', ("model", "encoder"), "hashing"),
        ("model.user_text=true", ("model", "user_text"), True),
        ("evaluation.references=[]", ("evaluation", "references"), ()),
        ('evaluation.references=["ease", "als"]', ("evaluation", "references"), ("ease", "als")),
        ("data.source=/a/path with = signs", ("data", "source"), "/a/path with = signs"),
        (" run.seed = 3 ", ("run", "seed"), 3),
    ],
)
def test_overrides_are_read_as_toml_else_as_words(override: str, key: tuple[str, str], value: object) -> None:
    section, name = key
    assert getattr(getattr(load(overrides=[override]), section), name) == value


def test_lists_and_tables_may_be_json_in_a_string() -> None:
    config = load({"federation.declared_users": "[3, 4, 5, 6]", "data.columns": '{"user": "uid"}'})
    assert config.federation.declared_users == (3, 4, 5, 6)
    assert config.data.columns == {"user": "uid"}
    with pytest.raises(ConfigError, match=r"federation.declared_users = '\[3, 4'"):
        load({"federation.declared_users": "[3, 4"})


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"privacy.epsilom": 1}, ["'privacy.epsilom'", "did you mean 'epsilon'", "max_grad_norm"]),
        ({"privcy.epsilon": 1}, ["'privcy'", "did you mean 'privacy'", "training"]),
        ({"data.synthetic.user": 3}, ["'data.synthetic.user'", "did you mean 'users'", "interactions_per_user"]),
        ({"zzz": 3}, ["unknown setting 'zzz' (allowed: aggregation, data, distillation, evaluation"]),
        ({"privacy.mode": "strong"}, ["privacy.mode = 'strong'", "'none'", "'silo'"]),
        ({"privacy.epsilon": -1}, ["privacy.epsilon = -1", "greater than 0"]),
        ({"privacy.epsilon": float("inf")}, ["privacy.epsilon = inf", "finite"]),
        ({"privacy.delta": 1.0}, ["privacy.delta = 1.0", "less than 1"]),
        ({"privacy.epsilon": "much"}, ["privacy.epsilon = 'much'", "valid number"]),
        ({"training.local_steps": 1.5}, ["training.local_steps = 1.5", "integer"]),
        ({"training.sampling_probability": 1.01}, ["training.sampling_probability = 1.01", "less than or equal to 1"]),
        ({"run.seed": -1}, ["run.seed = -1", "greater than or equal to 0"]),
        ({"name": "../evil"}, ["name = '../evil'", "pattern"]),
        ({"privacy": 3}, ["privacy = 3"]),
        ({"federation.declared_users": [0, 1, 1, 1]}, ["declared_users", "at least 1"]),
        ({"federation.declared_users": [5, 6, 7]}, ["names 3 silos, partition.silos is 4"]),
        ({"evaluation.select": "validation"}, ["evaluation.select", "privacy.mode = 'none'"]),
        ({"aggregation.dropout": 0.5}, ["aggregation.dropout = 0.5", "less than 0.5"]),
        ({"aggregation.bits": 16}, ["aggregation.bits = 16", "32 or 64"]),
        ({"privacy.mode": "distributed", "training.local_steps": 2}, ["set training.local_steps = 1, not 2"]),
        (
            {"privacy.mode": "distributed", "training.local_steps": 1, "aggregation.method": "plain"},
            ["protect nobody before they are summed", "aggregation.method = 'secure' and three silos or more"],
        ),
        ({"privacy.mode": "distributed", "training.local_steps": 1, "partition.silos": 2}, ["three silos or more"]),
    ],
)
def test_a_mistake_is_named_with_its_key_its_value_and_what_is_allowed(setting: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(setting)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("method", "silos", "secure"),
    [("auto", 2, False), ("auto", 3, True), ("plain", 9, False), ("secure", 2, True), ("secure", 9, True)],
)
def test_sums_are_secure_from_three_silos_on_unless_somebody_says_otherwise(method: str, silos: int, secure: bool) -> None:
    assert load({"aggregation.method": method, "partition.silos": silos}).is_secure is secure
    assert load().is_secure


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load({"privacy.epsilon": -1, "run.sed": 3})
    assert "privacy.epsilon" in str(error.value)
    assert "did you mean 'seed'" in str(error.value)


def test_what_belongs_together_is_accepted() -> None:
    load({"evaluation.select": "validation", "privacy.mode": "none"})
    load({"federation.declared_users": [5, 6], "partition.silos": 2})


def test_a_value_is_no_section() -> None:
    with pytest.raises(ConfigError, match=r"privacy.epsilon.x: privacy.epsilon is a value, not a section"):
        load({"privacy.epsilon": 1}, {"privacy.epsilon.x": 2})


@pytest.mark.parametrize("text", ["epsilon", "=4", ""])
def test_an_override_needs_key_and_value(text: str) -> None:
    with pytest.raises(ConfigError, match="expected key=value"):
        load(overrides=[text])


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: no such file"):
        load(tmp_path / "missing.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("[privacy\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.toml: not a TOML file"):
        load(bad)
    bad.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match=r"bad\.toml: not a TOML file"):
        load(bad)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().run.seed = 3  # type: ignore[misc]


def test_every_setting_is_described_and_can_be_set_to_its_default() -> None:
    rows = describe()
    keys = [key for key, *_ in rows]
    assert len(keys) == len(set(keys))

    def leaves(model: type[BaseModel]) -> int:
        annotations = [info.annotation for info in model.model_fields.values()]
        return sum(leaves(a) if isinstance(a, type) and issubclass(a, Section) else 1 for a in annotations)

    assert len(keys) == leaves(Config)
    flat = to_run_config(Config())
    assert set(flat) <= set(keys)
    assert {key for key in keys if key not in flat} == {key for key, kind, *_ in rows if "unset" in kind}
    for key, value in flat.items():
        assert load({key: value}) == Config()
