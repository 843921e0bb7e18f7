"""Each step from a PyTorch student to a small file changes what it says by no more than it may."""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from common.bundle.contents import HISTORY, LENGTH, POOLED, QUERY, ItemTable
from common.bundle.model_graph import check_model
from common.model.student import Shape, Student
from server.bundling import balanced
from server.compress import export, keep, prune, quantise

N_ITEMS, TEXT_DIM, WINDOW = 200, 48, 9
KINDS = {
    "plain": {},
    "one layer": {"layers": 1},
    "three layers": {"layers": 3},
    "not normalised": {"normalise_query": False},
    "no factors": {"item_dim": 0},
    "window of one": {"window": 1},
}


def made(**changes: object) -> Student:
    """As after training."""
    shape = {"item_dim": 16, "window": WINDOW, "layers": 2, "width": 32, "heads": 2, "feed_forward": 64, "normalise_query": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = torch.nn.functional.normalize(torch.randn(N_ITEMS, TEXT_DIM), dim=1)
        whole = Shape(n_items=N_ITEMS, text_dim=TEXT_DIM, pooling_decay=0.6, **(shape | changes))  # type: ignore[arg-type]
        student = Student(whole, text)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
            student.scale.weight.fill_(8.0)
    return student.eval()


@cache
def files(kind: str) -> tuple[Student, bytes, bytes]:
    """A student, its float32 file and its int8 file."""
    student = made(**KINDS[kind])
    exact = export(student)
    return student, exact, quantise(exact)


def histories(student: Student, n: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    length = torch.from_numpy(rng.integers(1, student.shape.window + 1, n))
    items = torch.from_numpy(rng.integers(0, N_ITEMS, (n, student.shape.window)))
    items[torch.arange(student.shape.window) >= length.unsqueeze(1)] = -1
    with torch.inference_mode():
        return student.vectors_of(items), length


def run(model: bytes, history: torch.Tensor, length: torch.Tensor) -> list[NDArray[np.float32]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run([QUERY, POOLED], {HISTORY: history.numpy(), LENGTH: length.numpy()})


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_float32_file_says_what_pytorch_says(kind: str) -> None:
    student, exact, _ = files(kind)
    history, length = histories(student)
    with torch.inference_mode():
        expected = student.last_query(history, length)
    for mine, theirs in zip(run(exact, history, length), expected, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-4, atol=1e-4)


def test_the_int8_file_ranks_nearly_alike(kind: str) -> None:
    student, exact, small = files(kind)
    history, length = histories(student)
    vectors = student.item_vectors.detach().numpy()
    scores = [run(model, history, length)[0] @ vectors.T for model in (exact, small)]
    assert np.abs(scores[0] - scores[1]).std() < 0.05 * scores[0].std(axis=1).mean()
    first = [np.argsort(-one, axis=1)[:, :10] for one in scores]
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*first, strict=True)])
    assert shared > 0.9


def test_both_are_what_a_bundle_may_hold(kind: str) -> None:
    student, exact, small = files(kind)
    for model in (exact, small):
        check_model(model, student.shape.dim)
    onnx.checker.check_model(onnx.load_from_string(exact), full_check=True)


def test_weights_take_a_byte_each() -> None:
    """And a scale for every 64 of them."""
    student = made(width=64, feed_forward=256, item_dim=16)
    exact = export(student)
    matrices = sum(
        value.numel() for name, value in student.named_parameters() if value.ndim == 2 and name not in ("factors", "place")
    )
    assert len(exact) - len(quantise(exact)) == pytest.approx(matrices * (4 - 1 - 4 / 64), rel=0.02)


def test_nothing_of_this_machine_is_in_the_file(kind: str) -> None:
    _, exact, small = files(kind)
    for content in (exact, small):
        for word in ("/home", "/root", "/tmp", "/work", ".py", "site-packages"):
            assert word.encode() not in content
        model = onnx.load_from_string(content)
        assert not model.metadata_props
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_what_follows_the_end_and_who_else_asks_change_nothing(kind: str) -> None:
    """Also in int8, where a scale shared by all rows of a batch would let one person's history show in another's answer."""
    student, exact, small = files(kind)
    history, length = histories(student, 12)
    for model in (exact, small):
        together = run(model, history, length)
        for row in range(len(length)):
            n = int(length[row])
            alone = run(model, history[row : row + 1, :n], length[row : row + 1])
            np.testing.assert_allclose(together[0][row], alone[0][0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(together[1][row, :n], alone[1][0], rtol=1e-4, atol=1e-6)
            assert not together[1][row, n:].any()


def test_the_same_student_gives_the_same_bytes() -> None:
    assert export(made()) == export(made())
    assert quantise(export(made())) == quantise(export(made()))


def test_quantising_leaves_the_logging_of_the_process_alone(caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    quantise(export(made()))
    assert (root.level, list(root.handlers)) == before
    assert not caplog.records


def test_pruning_takes_the_smallest_feed_forward_weights_and_no_others() -> None:
    student, before = made(), made()
    masks = prune(student, 0.25)
    assert sorted(masks) == sorted(f"layers.{i}.{part}.weight" for i in (0, 1) for part in ("down", "up"))
    for name, weight in student.named_parameters():
        old = before.get_parameter(name)
        if name not in masks:
            assert torch.equal(weight, old)
            continue
        gone = weight == 0
        assert int(gone.sum()) == weight.numel() // 4
        assert old[gone].abs().max() <= old[~gone].abs().min()
    with torch.no_grad():
        student.get_parameter("layers.0.up.weight").add_(1.0)
    keep(student, masks)
    assert int((student.get_parameter("layers.0.up.weight") == 0).sum()) == int((masks["layers.0.up.weight"] == 0).sum())
    assert prune(made(), 0.0) == {}


def test_balancing_changes_nothing_but_the_rounding() -> None:
    student = made()
    with torch.no_grad():
        student.factors *= 40.0
        student.factor_out.weight /= 40.0
        student.token.weight[:, TEXT_DIM:] /= 40.0
    even = balanced(student)
    history, length = histories(student)
    items = torch.arange(N_ITEMS)
    errors = []
    with torch.inference_mode():
        plain = student.last_query(history, length)[0] @ student.item_vectors.T
        turned = even.vectors_of(items.unsqueeze(0))[0]
        query, _ = even.last_query(_again(even, history, student), length)
        torch.testing.assert_close(query @ turned.T, plain, rtol=1e-3, atol=1e-3)
        for one in (student, even):
            table = ItemTable.quantised(one.item_vectors.numpy(), one.bias.weight.numpy(), TEXT_DIM)
            rounded = torch.from_numpy(table.rows(np.arange(N_ITEMS)))
            errors.append(float((rounded[:, :TEXT_DIM] - one.text).norm()))
    assert errors[1] < 0.2 * errors[0], "text vectors are rounded finely again"


def _again(even: Student, history: torch.Tensor, student: Student) -> torch.Tensor:
    """The same histories with the item vectors of another student."""
    by = (even.factors / student.factors)[0, 0]
    return torch.cat([history[..., :TEXT_DIM], history[..., TEXT_DIM:] * by], dim=-1)
