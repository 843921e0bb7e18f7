"""What a silo runs is what it installed: the executor looks at the coordinator's bundle, and never into it."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import pytest
import tomli_w
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from hypothesis import given
from hypothesis import strategies as st

from client.executor import APP, LARGEST_BUNDLE, bundle_problem, played
from common.config import to_run_config
from common.errors import ErrorCode
from common.protocol import PROTOCOL_VERSION, config_hash
from server.flower import thin_app
from tests import tiny

COMPONENTS = {"serverapp": "server.app:app", "clientapp": APP}


def project(components: dict[str, str] = COMPONENTS) -> bytes:
    return tomli_w.dumps({"tool": {"flwr": {"app": {"components": components}}}}).encode()


def bundle(**files: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def test_flowers_own_bundle_of_the_thin_app_is_taken(tmp_path: Path) -> None:
    app = thin_app(tmp_path / "app", tiny.config(), {"app.out": "somewhere"})
    assert bundle_problem(build_fab_from_disk(app)) == ""


def test_a_bundle_of_a_folder_with_code_is_refused(tmp_path: Path) -> None:
    app = thin_app(tmp_path / "app", tiny.config(), {"app.out": "somewhere"})
    (app / "client").mkdir()
    (app / "client" / "app.py").write_text("app = None\n")
    assert bundle_problem(build_fab_from_disk(app)).startswith("the app bundle holds 'client/app.py'")


@pytest.mark.parametrize(
    "name",
    [
        "client/app.py",
        "client.py",
        "sitecustomize.py",
        "x.so",
        "x.pth",
        "client/__pycache__/app.pyc",
        "data.json",
        "../x.md",
        "a.whl",
    ],
)
def test_nothing_but_quiet_text_may_be_in_a_bundle(name: str) -> None:
    assert repr(name) in bundle_problem(bundle(**{"pyproject.toml": project(), name: b""}))


@pytest.mark.parametrize("app", ["evil.app:app", "client.app:other", "client.app", "", None])
def test_a_bundle_may_name_no_other_app(app: str | None) -> None:
    components = {"serverapp": "server.app:app"} | ({} if app is None else {"clientapp": app})
    assert "this silo runs 'client.app:app' and nothing else" in bundle_problem(bundle(**{"pyproject.toml": project(components)}))


@pytest.mark.parametrize(
    "content", [b"", b"no zip", bundle(), bundle(**{"pyproject.toml": b"\xff"}), bundle(**{"pyproject.toml": b"[tool]"})]
)
def test_a_bundle_that_cannot_be_read_is_refused(content: bytes) -> None:
    assert bundle_problem(content) == "the app bundle cannot be read"


def test_a_bundle_that_unpacks_to_very_much_is_refused_unread() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pyproject.toml", b"#" * (LARGEST_BUNDLE + 1))
    assert len(content.getvalue()) < 100_000
    assert "bytes" in bundle_problem(content.getvalue())
    assert "bytes" in bundle_problem(b"\0" * (LARGEST_BUNDLE + 1))


@given(st.binary(max_size=200))
def test_whatever_is_sent_as_a_bundle_is_judged_and_never_an_exception(content: bytes) -> None:
    assert bundle_problem(content)


def enrol(action: str = "query.enrol") -> tuple[Message, Context]:
    config = tiny.config()
    grid = tiny.grid(config)
    said = {"config": config_hash(config), "protocol": PROTOCOL_VERSION, "signature": ""}
    message = Message(RecordDict({"request": ConfigRecord(said)}), grid.get_node_ids()[0], action)
    message.metadata.__dict__["_message_id"] = "1"
    node = {"partition-id": 1, "num-partitions": 2}
    return message, Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=to_run_config(config))


def test_the_installed_app_answers_a_run_without_code() -> None:
    reply = played(*enrol(), bundle(**{"pyproject.toml": project()}))
    assert dict(reply.content["public"]) == {"silo": 1, "protocol": PROTOCOL_VERSION}


def test_a_run_with_code_is_refused_by_a_code_and_said_in_the_silos_own_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "silorec.client"):
        reply = played(*enrol(), bundle(**{"pyproject.toml": project(), "client/app.py": b""}))
    assert reply.error.code == ErrorCode.POLICY_REFUSED
    assert reply.error.reason == "POLICY_REFUSED"
    assert "no code from elsewhere" in caplog.text


def test_a_question_that_the_app_does_not_know_is_a_bad_request_and_tells_nothing() -> None:
    reply = played(*enrol("query.secrets"), bundle(**{"pyproject.toml": project()}))
    assert reply.error.code == ErrorCode.BAD_REQUEST
    assert reply.error.reason == "BAD_REQUEST"
