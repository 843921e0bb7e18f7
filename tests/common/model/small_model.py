"""Tiny recommenders for tests of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config import Config, load
from common.data.catalogue import Catalogue
from common.model.adapter import from_vector, manifest_of, to_vector
from common.model.recommender import Batch, Recommender, build_recommender

BACKBONES = ("tiny-bert", "tiny-llama")
SETTINGS: dict[str, Any] = {
    "run": {"device": "cpu"},
    "model": {"encoder": "hashing", "backbone": "tiny-bert", "window": 6, "lora_rank": 2, "item_dim": 3},
}


def config(**settings: Any) -> Config:
    """:data:`SETTINGS` with dotted ``section__key`` settings over them."""
    return load(SETTINGS, {key.replace("__", "."): value for key, value in settings.items()})


def moved(model: Recommender, seed: int = 3, by: float = 0.05) -> Recommender:
    """Every trainable number away from its start, as after training."""
    manifest = manifest_of(model)
    noise = np.random.default_rng(seed).standard_normal(manifest.n_parameters)
    from_vector(model, (to_vector(model) + by * noise).astype(np.float32), manifest)
    return model


def build(catalogue: Catalogue, **settings: Any) -> Recommender:
    return build_recommender(config(**settings), catalogue)


def batch(histories: list[list[int]], text: list[list[int]] | None = None, width: int = 0, text_width: int = 0) -> Batch:
    """Right-padded, at least ``width`` items and ``text_width`` tokens wide."""

    def pad(rows: list[list[int]], least: int) -> torch.Tensor:
        longest = max([least, *(len(row) for row in rows)])
        return torch.tensor([row + [-1] * (longest - len(row)) for row in rows], dtype=torch.long).reshape(len(rows), longest)

    return Batch(pad(histories, width), pad(text or [[] for _ in histories], text_width))


def scores(model: Recommender, users: Batch, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(users, **options)


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "of", "harbour", "meadow", "lantern", "orchard", "drama", "comedy", "western")


def save_tokenizer(folder: Path) -> None:
    """A word-level tokenizer in the format of Hugging Face."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)


def save_model(folder: Path, kind: str) -> Path:
    """A tiny random language model and its tokenizer, as ``save_pretrained`` leaves them."""
    import transformers as hf

    shape: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
    }
    gpt2 = {"vocab_size": len(WORDS), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    distilbert = {
        "vocab_size": len(WORDS),
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "max_position_embeddings": 32,
    }
    t5 = {"vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "num_layers": 2, "num_heads": 2, "d_ff": 32}
    makers = {
        "bert": lambda: hf.BertModel(hf.BertConfig(**shape)),
        "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**shape, num_key_value_heads=2)),
        "gpt2": lambda: hf.GPT2Model(hf.GPT2Config(**gpt2, bos_token_id=2, eos_token_id=3)),
        "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**shape, pad_token_id=0, bos_token_id=2, eos_token_id=3)),
        "electra": lambda: hf.ElectraModel(hf.ElectraConfig(**shape, embedding_size=16)),
        "distilbert": lambda: hf.DistilBertModel(hf.DistilBertConfig(**distilbert)),
        "t5": lambda: hf.T5Model(hf.T5Config(**t5)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        makers[kind]().save_pretrained(folder)
    save_tokenizer(folder)
    return folder
