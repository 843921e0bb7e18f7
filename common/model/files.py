"""Names of the files in a run's folder of which its model can be made again; apart, so that they are known without PyTorch."""

from __future__ import annotations

from typing import Final

CONFIG: Final = "config.toml"
ADAPTER: Final = "adapter.safetensors"
CATALOGUE: Final = "catalogue.jsonl"
