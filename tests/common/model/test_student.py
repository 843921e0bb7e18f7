"""The student sees one history's past only, answers as a recommender does, and says exactly what its pool holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import ModelError
from common.model.recommender import Batch, recency_pool
from common.model.student import Shape, Student

HISTORIES = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3], [7, 7]]
N_ITEMS, TEXT_DIM, ITEM_DIM = 12, 10, 4


def made(*, normalise: bool = True, layers: int = 2, item_dim: int = ITEM_DIM, window: int = 6, trained: bool = True) -> Student:
    """As after training unless told otherwise."""
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(N_ITEMS, TEXT_DIM, generator=generator), dim=1)
    shape = Shape(N_ITEMS, TEXT_DIM, item_dim, window, layers, 8, 2, 16, 0.7, normalise)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        student = Student(shape, text)
        if trained:
            with torch.no_grad():
                for parameter in student.parameters():
                    parameter += 0.3 * torch.randn(parameter.shape)
    return student.eval()


def batch(histories: list[list[int]], width: int = 6) -> Batch:
    rows = [row + [-1] * (width - len(row)) for row in histories]
    return Batch(torch.tensor(rows), torch.zeros(len(rows), 0, dtype=torch.long))


@pytest.fixture(params=[(True, 1), (True, 3), (False, 2)], ids=["one layer", "three layers", "not normalised"])
def student(request: pytest.FixtureRequest) -> Student:
    normalise, layers = request.param
    return made(normalise=normalise, layers=layers)


def test_later_items_do_not_change_earlier_scores(student: Student) -> None:
    with torch.inference_mode():
        scores = student(batch(HISTORIES[:1]))[0]
        for known in range(1, 6):
            changed = student(batch([HISTORIES[0][:known] + [11] * (6 - known)]))[0]
            torch.testing.assert_close(changed[:known], scores[:known], rtol=1e-4, atol=1e-4)
            assert (changed[known:] - scores[known:]).abs().max() > 1e-2, "what changed must show"


def test_the_last_position_alone_gives_its_scores(student: Student) -> None:
    with torch.inference_mode():
        everywhere, last = student(batch(HISTORIES)), student(batch(HISTORIES), last_only=True)
    for row, history in enumerate(HISTORIES):
        torch.testing.assert_close(last[row], everywhere[row, len(history) - 1], rtol=1e-4, atol=1e-4)


def test_other_histories_and_what_follows_the_end_change_nothing(student: Student) -> None:
    with torch.inference_mode():
        together = student(batch(HISTORIES), last_only=True)
        vectors, length = student.vectors_of(batch(HISTORIES).items), torch.tensor([len(h) for h in HISTORIES])
        noisy = vectors.clone()
        for row, history in enumerate(HISTORIES):
            noisy[row, len(history) :] = 5.0
            alone = student(batch([history], width=len(history)), last_only=True)[0]
            torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)
        for clean, loud in zip(student.last_query(vectors, length), student.last_query(noisy, length), strict=True):
            torch.testing.assert_close(clean, loud, rtol=1e-5, atol=1e-6)


def test_the_pool_s_share_of_a_score_is_exact(student: Student) -> None:
    """The query without the pooled vectors, which a pooling weight of zero leaves, is the sequence model's own part."""
    histories = batch(HISTORIES)
    length = torch.tensor([len(history) for history in HISTORIES])
    with torch.inference_mode():
        vectors = student.vectors_of(histories.items)
        query, pooled = student.last_query(vectors, length)
        rest = query.clone()
        rest[:, :TEXT_DIM] -= torch.einsum("bt,btd->bd", pooled, vectors[..., :TEXT_DIM])
        weight = student.pool_weight.weight.clone()
        student.pool_weight.weight.zero_()
        alone, none = student.last_query(vectors, length)
        student.pool_weight.weight.copy_(weight)
    assert not none.any()
    assert not pooled[1, 1:].any(), "nothing after the end"
    if student.shape.normalise_query:  # the same direction; the length is that of the whole
        torch.testing.assert_close(
            torch.nn.functional.normalize(rest[:, :TEXT_DIM]),
            torch.nn.functional.normalize(alone[:, :TEXT_DIM]),
            rtol=1e-3,
            atol=1e-4,
        )
    else:
        torch.testing.assert_close(rest[:, :TEXT_DIM], alone[:, :TEXT_DIM], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rest[:, TEXT_DIM:], alone[:, TEXT_DIM:], rtol=1e-4, atol=1e-4)


def test_untrained_it_ranks_by_similarity_to_the_recent_past() -> None:
    student = made(trained=False)
    items = batch(HISTORIES[:1])
    pooled = recency_pool(student.text[items.items], 0.7)
    expected = torch.nn.functional.normalize(pooled, dim=-1) @ student.text.T
    with torch.inference_mode():
        torch.testing.assert_close(student(items), expected, rtol=1e-4, atol=1e-5)


def test_no_factors_and_a_window_of_one_are_allowed() -> None:
    student = made(item_dim=0, window=1)
    with torch.inference_mode():
        assert student(batch([[3], [4]], width=1), last_only=True).shape == (2, N_ITEMS)
    assert student.item_vectors.shape == (N_ITEMS, TEXT_DIM)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="width 8 cannot have 3 heads"):
        Shape(N_ITEMS, TEXT_DIM, ITEM_DIM, 6, 1, 8, 3, 16, 0.7, True)
    shape = Shape(N_ITEMS, TEXT_DIM, ITEM_DIM, 6, 1, 8, 2, 16, 0.7, True)
    with pytest.raises(ModelError, match=r"\(12, 9\)"):
        Student(shape, torch.zeros(N_ITEMS, 9))


def test_its_pool_weighs_as_a_loop_does(student: Student) -> None:
    history = np.array(HISTORIES[0])
    with torch.inference_mode():
        _, pooled = student.last_query(student.vectors_of(torch.from_numpy(history)[None]), torch.tensor([6]))
    weights = np.array([0.7 ** (5 - t) for t in range(6)])
    np.testing.assert_allclose(pooled[0].numpy() / float(pooled.sum()), weights / weights.sum(), rtol=1e-4)
