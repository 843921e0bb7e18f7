"""The sections of a configuration, see :mod:`common.config`: what may be set, its bounds, its default and what it means."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Mode = Literal["none", "silo", "distributed"]


def _json_list(value: object) -> object:
    """Flower's run_config has no lists: accept a list written as JSON in a string."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Section):
    """What is common to everybody in a run."""

    seed: int = Field(0, ge=0, description="seed of everything but training in private modes")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto is CUDA where there is one")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic of the forward pass; auto is bfloat16 on CUDA, float32 on a CPU"
    )
    threads: int = Field(0, ge=0, description="CPU threads of PyTorch; 0 leaves PyTorch's choice")


class SyntheticConfig(Section):
    """A made-up population, see ``common.data.synthetic``."""

    users: int = Field(400, ge=1, description="how many users are made up")
    items: int = Field(200, ge=3, description="how many items, where the catalogue is made up too")
    interactions_per_user: float = Field(30.0, gt=0, description="mean; lengths are log-normal")
    categories: int = Field(8, ge=1, description="of the made-up catalogue")
    taste: float = Field(4.0, ge=0, description="how strongly users prefer their own categories; 0 means not at all")
    popularity_skew: float = Field(1.0, ge=0, description="Zipf exponent of item popularity")
    drift: float = Field(0.1, ge=0, le=1, description="share of a user's taste that is replaced over their history")
    review_text: bool = Field(False, description="every interaction comes with a line of text")


class DataConfig(Section):
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


class PartitionConfig(Section):
    """How a simulation deals one data set out to silos."""

    by: Literal["taste", "size", "column", "catalogue"] = Field(
        "taste", description="what decides a user's silo; catalogue also gives each silo items of its own"
    )
    silos: int = Field(4, ge=1, description="how many silos there are")
    alpha: float = Field(0.5, gt=0, description="taste: Dirichlet concentration; size: power-law exponent")
    column: str | None = Field(None, description="column: the user attribute that names the silo")
    overlap: float = Field(0.5, ge=0, le=1, description="catalogue: share of items that all silos sell")


class ModelConfig(Section):
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


class PrivacyConfig(Section):
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


class TrainingConfig(Section):
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


class FederationConfig(Section):
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
    deadline: float = Field(
        600.0, gt=0, description="seconds to wait for the silos where they compute: count, train, mask, metrics"
    )
    stage_deadline: float = Field(
        60.0, gt=0, description="seconds to wait where they compute next to nothing, such as signing; never more than deadline"
    )
    enrolment_deadline: float | None = Field(
        None, gt=0, description="seconds to wait for all silos to enrol, and later for a quorum of them; unset: deadline"
    )
    patience: float = Field(
        0.0,
        ge=0,
        description="once the quorum has answered, wait for the others at most this many times as long as the quorum took, and "
        "5 seconds at least; 0 waits until the deadline",
    )
    backoff_rounds: int = Field(
        4, ge=0, description="a silo that fails is left out of 1 round, then of 2, 4, …, of so many at most; 0 leaves none out"
    )
    round_attempts: int = Field(
        3, ge=1, description="how often a round that misses its quorum is tried; never again where that costs the silos budget"
    )
    round_pause: float = Field(10.0, ge=0, description="seconds between two tries of a round")
    ask_budgets: bool = Field(False, description="after each round, ask the silos how much budget they have left")
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


class AggregationConfig(Section):
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


class EvaluationConfig(Section):
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


class DistillationConfig(Section):
    """The student that is made of the finished model, see ``server.distill``; no private data are read for it."""

    histories: int = Field(6000, ge=50, description="made-up histories, each of model.window items")
    temperature: float = Field(
        1.0, gt=0, description="of the distribution that made-up items are drawn from; 1 is the model's own"
    )
    exploration: float = Field(0.0, ge=0, lt=1, description="share of made-up items that are drawn by popularity alone")
    top_k: int = Field(200, ge=1, description="the teacher's first items whose probabilities are learnt one by one")
    epochs: int = Field(15, ge=1, description="passes over the made-up histories")
    batch_size: int = Field(32, ge=1, description="histories per step")
    positions: int = Field(10, ge=0, description="positions of a history that are scored in a step, drawn anew; 0 is all")
    learning_rate: float = Field(2e-3, gt=0, description="of AdamW, at its highest")
    matrix_learning_rate: float = Field(0.02, gt=0, description="of Muon, which moves the matrices of layers, at its highest")
    weight_decay: float = Field(0.01, ge=0, description="of both, on matrices only")
    cosine_weight: float = Field(1.0, ge=0, description="weight of the cosine between queries beside the divergence")
    factor_dropout: float = Field(0.01, ge=0, lt=1, description="share of items whose factors are left out in a step")
    layers: int = Field(2, ge=1, description="layers of the student")
    width: int = Field(128, ge=1, description="width of its hidden states")
    heads: int = Field(4, ge=1, description="attention heads; width must be a multiple")
    feed_forward: int = Field(512, ge=1, description="width inside a layer")
    item_dim: int = Field(64, ge=0, description="width of the items' factors beside their text vectors")
    text_dim: int = Field(
        192,
        ge=0,
        description="columns kept of the text vectors, which are turned to their main axes first; 0 keeps them as they are",
    )
    pruning: float = Field(0.0, ge=0, lt=1, description="share of the smallest feed-forward weights that are set to zero")

    @model_validator(mode="after")
    def _heads_fit(self) -> DistillationConfig:
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} must be a multiple of heads = {self.heads}")
        return self
