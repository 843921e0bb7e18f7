"""The real presets take a private step. Slow: both models are fetched on first use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.silo_data import SiloData
from client.trainer import train_round
from common.config import load
from common.data.catalogue import Catalogue
from common.model.adapter import manifest_of
from common.model.recommender import build_recommender
from common.privacy.plan import plan_for

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backbone", ["minilm", "smollm2-135m"])
def test_a_preset_takes_a_private_step_with_user_text(backbone: str, catalogue: Catalogue) -> None:
    config = load(
        {
            "model": {"backbone": backbone, "encoder": "minilm", "window": 6, "lora_rank": 2, "user_text": True, "item_dim": 4},
            "training": {"local_steps": 1, "sampling_probability": 1.0, "physical_batch_size": 2},
            "federation": {"rounds": 1, "declared_users": [4], "server_optimizer": "fedavg"},
            "partition": {"silos": 1},
            "run": {"device": "cpu"},
        }
    )
    model = build_recommender(config, catalogue)
    tokenizer = model.tokenizer
    text = tuple(tuple(tokenizer("24 year old technician", add_special_tokens=False)["input_ids"]) for _ in range(4))
    n = len(catalogue)
    histories = tuple(np.arange(start, start + 5, dtype=np.int32) % n for start in range(4))
    data = SiloData(histories, text, n, config.model.window)
    result = train_round(model, data, config, plan_for(config, 4, 4), round_number=1, silo_seed=0)
    assert result.update.shape == (manifest_of(model).n_parameters,)
    assert np.isfinite(result.update).all()
    assert np.abs(result.update).max() > 0
    assert result.loss is None
    assert not any(p.requires_grad for name, p in model.named_parameters() if "base_layer" in name)
    assert torch.isfinite(model(data.batch([0])[0])).all()
