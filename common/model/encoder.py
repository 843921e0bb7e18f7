"""One unit vector per catalogue entry, from a frozen text encoder, cached on disk.

The catalogue is public and so are these vectors. The cache is keyed by the encoder's weights and every text, so a changed
catalogue or model can never read another's vectors.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from common.data.catalogue import Catalogue
from common.model.backbone import Backbone, load_backbone, weights_fingerprint

Progress = Callable[[int, int], None]

HASHING = "hashing"
HASHING_DIM = 64
MAX_TOKENS = 128


def item_vectors(
    catalogue: Catalogue,
    encoder: str,
    *,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Unit vectors ``(n_items, dim)`` of the catalogue's texts.

    Parameters
    ----------
    encoder:
        ``hashing`` (feature hashing of words, no model), a preset, a Hugging Face id or a folder.
    progress:
        Called with (texts done, texts in all).

    Notes
    -----
    Mean pooling over tokens and L2 normalisation, as the sentence-transformers models are trained (Reimers & Gurevych 2019).
    """
    from common.assets import cache_dir

    if encoder == HASHING:
        return hashing_vectors(catalogue.texts)
    backbone = load_backbone(encoder, causal=False)
    key = hashlib.sha256(f"v1|{weights_fingerprint(backbone.model)}|{catalogue.fingerprint}|{MAX_TOKENS}".encode()).hexdigest()
    path = cache_dir() / "item-vectors" / f"{key[:32]}.safetensors"
    cached = _read(path, len(catalogue))
    if cached is not None:
        return cached
    vectors = _encode(catalogue.texts, backbone, device or torch.device("cpu"), progress)
    _write(path, vectors)
    return vectors


def hashing_vectors(texts: Sequence[str], dim: int = HASHING_DIM) -> NDArray[np.float32]:
    """Signed feature hashing of lower-cased words (Weinberger et al. 2009), unit vectors ``(n, dim)``."""
    out = np.zeros((len(texts), dim), dtype=np.float32)
    for i, text in enumerate(texts):
        for word in text.lower().replace(",", " ").replace(".", " ").split():
            digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
            value = int.from_bytes(digest, "little")
            out[i, value % dim] += 1.0 if value >> 63 else -1.0
    norms = np.linalg.norm(out, axis=1, keepdims=True)
    out[norms[:, 0] == 0, 0] = 1.0
    out /= np.where(norms > 0, norms, 1.0)
    return out


def _encode(texts: Sequence[str], backbone: Backbone, device: torch.device, progress: Progress | None) -> NDArray[np.float32]:
    model, tokenizer = backbone.model.to(device), backbone.tokenizer
    assert tokenizer is not None
    tokens = [tokenizer(t, truncation=True, max_length=MAX_TOKENS, add_special_tokens=True)["input_ids"] for t in texts]
    order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))  # equal lengths together: little padding
    out = np.zeros((len(texts), backbone.width), dtype=np.float32)
    batch = 64
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            longest = max(1, *(len(tokens[i]) for i in rows))
            ids = torch.zeros((len(rows), longest), dtype=torch.long)
            mask = torch.zeros((len(rows), longest), dtype=torch.long)
            for r, i in enumerate(rows):
                ids[r, : len(tokens[i])] = torch.tensor(tokens[i], dtype=torch.long)
                mask[r, : max(1, len(tokens[i]))] = 1
            ids, mask = ids.to(device), mask.to(device)
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1)
            out[rows] = torch.nn.functional.normalize(pooled, dim=-1).float().cpu().numpy()
            if progress is not None:
                progress(min(start + batch, len(order)), len(order))
    return out


def _read(path: Path, n_items: int) -> NDArray[np.float32] | None:
    if not path.is_file():
        return None
    try:
        vectors = load_file(path)["vectors"]
    except (SafetensorError, KeyError, OSError):
        return None  # damaged: computed again
    return vectors if len(vectors) == n_items else None


def _write(path: Path, vectors: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    save_file({"vectors": np.ascontiguousarray(vectors)}, temporary)
    os.replace(temporary, path)
