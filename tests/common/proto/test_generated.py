"""The generated modules are those of ``recommender.proto``, and the schema says what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import common.proto as proto
from common.proto import recommender_pb2 as messages
from common.recommending import ANSWERS, PAD, SLOTS

ROOT = Path(__file__).resolve().parents[3]
SOURCE = "common/proto/recommender.proto"


def test_the_committed_modules_are_what_the_documented_command_makes(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    command = next(line.split() for line in (proto.__doc__ or "").splitlines() if "grpc_tools.protoc" in line)
    assert command[0] == "python"
    out = [part.replace("_out=.", f"_out={tmp_path}") for part in command[1:]]
    done = subprocess.run([sys.executable, *out], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_text() for path in (tmp_path / "common" / "proto").iterdir()}
    assert set(made) == {"recommender_pb2.py", "recommender_pb2.pyi"}
    for name, text in made.items():
        assert (ROOT / "common" / "proto" / name).read_text() == text, (
            f"{name} is stale; {proto.__name__} says how to make it again"
        )


def test_a_request_has_a_field_for_the_history_and_one_for_the_catalogue_and_no_other() -> None:
    fields = {name: [field.name for field in kind.fields] for name, kind in messages.DESCRIPTOR.message_types_by_name.items()}
    requests = {name: names for name, names in fields.items() if name.endswith("Request")}
    assert requests == {
        "RecommendRequest": ["catalogue", "history"],
        "RecommendBatchRequest": ["catalogue", "histories"],
        "GetBundleRequest": ["digest", "offset"],
        "GetCardRequest": [],
    }


def test_the_sizes_in_the_schema_are_the_codes() -> None:
    text = (ROOT / SOURCE).read_text()
    assert f"numbers {SLOTS} and {ANSWERS} below are SLOTS and ANSWERS" in text
    assert f"{SLOTS} positions in the catalogue" in text
    assert f"{ANSWERS} positions in the catalogue" in text
    assert f"1 to {proto.BATCH_LIMIT} histories of {SLOTS} slots" in text
    assert f"0x{PAD:X}" in text


def test_names_on_the_wire_are_the_services() -> None:
    service = messages.DESCRIPTOR.services_by_name["Recommender"]
    assert service.full_name == proto.SERVICE
    assert proto.path_of("GetCard") == "/silorec.v1.Recommender/GetCard"
