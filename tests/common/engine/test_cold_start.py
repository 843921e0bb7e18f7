"""What a process loads before its first answer. Times are not asserted here: they are the machine's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from common.privacy.signing import create_key
from tests.bundles import write_tiny

NOT_NEEDED = ("torch", "transformers", "peft", "opacus", "flwr", "pandas", "scipy", "sklearn", "sympy", "onnx", "grpc")

PROGRAM = """
import json, sys, time
began = time.perf_counter()
from pathlib import Path
from common.bundle.files import read_bundle
from common.engine import Engine, Request
engine = Engine(read_bundle(Path(sys.argv[1]), {sys.argv[2]}))
answer = engine.recommend(Request((1, 2, 3), explain=True))
seconds = time.perf_counter() - began
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"loaded": loaded, "items": [item.position for item in answer], "seconds": seconds}))
"""


def test_a_fresh_process_answers_without_any_training_library(tmp_path: Path) -> None:
    key = create_key(tmp_path / "key.pem")
    bundle = write_tiny(tmp_path / "tiny.bundle", key, n_items=1682, dim=128, text_dim=96, window=30)
    program = [sys.executable, "-c", PROGRAM, str(tmp_path / "tiny.bundle"), key.public_key]
    root = Path(__file__).parents[3]
    said = json.loads(subprocess.run(program, check=True, capture_output=True, text=True, cwd=root).stdout)
    assert not set(said["loaded"]) & set(NOT_NEEDED)
    assert {"numpy", "onnxruntime", "pyarrow"} <= set(said["loaded"])
    assert len(said["items"]) == 10
    assert all(0 <= position < len(bundle.items) for position in said["items"])
