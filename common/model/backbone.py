"""Causal language models and text encoders, by preset, Hugging Face id or local folder.

A backbone is used frozen: only LoRA adapters on it are trained. Decoders (Llama-like) are causal already; encoders
(BERT-like) are loaded with ``is_decoder=True``, which puts the causal mask on the same weights.

Presets starting with ``tiny-`` are small random models that need no download. They are for tests and for trying the
machinery; what they recommend rests on item vectors and counts alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import ModelError

log = logging.getLogger(__name__)

# Linear layers that LoRA adapts, by the model's type; other types adapt every linear layer.
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "bert": ("query", "value", "dense"),
    "roberta": ("query", "value", "dense"),
    "llama": ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
}


@dataclass(frozen=True)
class Backbone:
    """A language model that maps input embeddings to hidden states.

    ``model(inputs_embeds=(B, L, width), attention_mask=(B, L), position_ids=(B, L)).last_hidden_state`` is
    ``(B, L, width)`` and causal. ``tokenizer`` may be None where the preset has no text input. Positions count from
    ``first_position``.
    """

    name: str
    model: nn.Module
    width: int
    lora_targets: tuple[str, ...] | str
    n_layers: int
    tokenizer: Any | None
    first_position: int = 0

    def embedding(self) -> nn.Embedding:
        """The word embeddings."""
        return self.model.get_input_embeddings()  # type: ignore[operator]


Loader = Callable[[bool], tuple[nn.Module, Any | None]]
_PRESETS: dict[str, Loader] = {}


def preset(name: str) -> Callable[[Loader], Loader]:
    """Register a loader ``(causal) -> (model, tokenizer)`` under a name."""

    def register(loader: Loader) -> Loader:
        _PRESETS[name] = loader
        return loader

    return register


def presets() -> tuple[str, ...]:
    """Names that :func:`load_backbone` knows besides ids and folders."""
    return tuple(sorted(_PRESETS))


def load_backbone(name: str, *, causal: bool = True) -> Backbone:
    """Load a model in float32 on the CPU, frozen, in evaluation mode.

    Raises
    ------
    ModelError
        If the name is neither a preset, a folder, nor an id that Transformers can load, or if ``causal`` is asked of a model
        that is not.
    """
    with _quiet_transformers():
        if name in _PRESETS:
            model, tokenizer = _PRESETS[name](causal)
        else:
            model, tokenizer = _load_pretrained(name, causal)
    model.requires_grad_(False)
    model.eval()
    if causal and name not in _PRESETS:
        _require_causal(name, model)
    config: Any = model.config
    return Backbone(
        name=name,
        model=model,
        width=int(config.hidden_size),
        lora_targets=LORA_TARGETS.get(config.model_type, "all-linear"),
        n_layers=int(config.num_hidden_layers),
        tokenizer=tokenizer,
        first_position=_first_position(model),
    )


def _first_position(model: nn.Module) -> int:
    """RoBERTa-like models keep the first positions for padding; others count from 0."""
    embeddings = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over names and values of all parameters, so that caches never mix models."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def _load_pretrained(name: str, causal: bool, **options: Any) -> tuple[nn.Module, Any]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(name, **options)
        extra: dict[str, Any] = {"add_pooling_layer": False} if config.model_type in ("bert", "roberta") else {}
        if causal and config.model_type in ("bert", "roberta"):
            extra["is_decoder"] = True
        model = AutoModel.from_pretrained(name, dtype=torch.float32, **options, **extra)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        known = ", ".join(presets())
        raise ModelError(
            f"cannot load the language model {name!r} ({(str(error).splitlines() or ['no reason given'])[0]}); give a preset "
            f"({known}), a Hugging Face id that this machine can reach, or a folder with config.json, weights and tokenizer"
        ) from error
    return model, tokenizer


def _require_causal(name: str, model: Any) -> None:
    """A later token must not change an earlier hidden state, else the recommender reads what it has to predict."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 3, int(model.config.hidden_size), generator=generator).repeat(2, 1, 1)
    tokens[1, 2] = -tokens[0, 2]
    try:
        with torch.inference_mode():
            places = torch.arange(3).repeat(2, 1)
            hidden = model(inputs_embeds=tokens, attention_mask=torch.ones_like(places), position_ids=places).last_hidden_state
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{name!r} is no language model that reads soft tokens ({error}); use a Llama-, GPT- or BERT-like one"
        ) from None
    if not torch.allclose(hidden[0, :2], hidden[1, :2], rtol=1e-3, atol=1e-4):
        raise ModelError(
            f"{name!r} ({model.config.model_type}) looks at later tokens; use a decoder (Llama- or GPT-like), or a BERT- or "
            "RoBERTa-like encoder, which can be made causal"
        )


@preset("minilm")
def _minilm(causal: bool) -> tuple[nn.Module, Any]:
    from common.assets import asset_path

    return _load_pretrained(str(asset_path("minilm")), causal)


@preset("smollm2-135m")
def _smollm2(causal: bool) -> tuple[nn.Module, Any]:
    from common.assets import asset_path

    folder = Path(asset_path("smollm2-135m"))
    weights = sorted(folder.glob("*.gguf"))
    if weights:
        return _load_pretrained(str(folder), causal, gguf_file=weights[0].name)
    return _load_pretrained(str(folder), causal)


def _tiny(kind: str, width: int = 32, layers: int = 2) -> nn.Module:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

    shared: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 128,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20260)  # a fixed public model, the same in every process
        if kind == "bert":
            model: nn.Module = BertModel(BertConfig(**shared, is_decoder=True, type_vocab_size=1), add_pooling_layer=False)
        else:
            model = LlamaModel(LlamaConfig(**shared, num_key_value_heads=2))
    return model


@preset("tiny-bert")
def _tiny_bert(causal: bool) -> tuple[nn.Module, Any]:
    return _tiny("bert"), ByteTokenizer()


@preset("tiny-llama")
def _tiny_llama(causal: bool) -> tuple[nn.Module, Any]:
    return _tiny("llama"), ByteTokenizer()


class ByteTokenizer:
    """ASCII codes as tokens, for the tiny presets; anything else becomes ``?``."""

    cls_token_id = 1

    def __call__(
        self, text: str, *, add_special_tokens: bool = False, truncation: bool = False, max_length: int | None = None
    ) -> Any:
        ids = list(text.encode("ascii", "replace"))
        return {"input_ids": ids[:max_length] if truncation and max_length else ids}


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the library's load report and bars; a head that is not used is meant."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
