"""Made-up histories are the teacher's own: drawn from what it says, labelled with what it says, and read in one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from common.data.catalogue import Catalogue
from common.errors import ModelError
from common.model.recommender import Batch, Recommender
from server.sampling import merged, sample_histories
from tests.common.model.small_model import BACKBONES, build, moved

LENGTH = 6


@pytest.fixture(scope="module", params=[*BACKBONES, "private"])
def teacher(request: pytest.FixtureRequest, catalogue: Catalogue) -> Recommender:
    """As after training; once with the few parameters of a private run."""
    if request.param == "private":
        settings = {"item_dim": 0, "input_map": False, "correction_rank": 2, "normalise_query": False, "lora_layers": 1}
        return moved(build(catalogue, **{f"model__{key}": value for key, value in settings.items()}))
    return moved(build(catalogue, model__backbone=request.param))


def whole(teacher: Recommender, items: np.ndarray) -> torch.Tensor:
    """Log-probabilities after every item by one pass without a cache."""
    with torch.inference_mode():
        return teacher(Batch(torch.from_numpy(items).long(), torch.zeros(len(items), 0, dtype=torch.long))).log_softmax(-1)


def test_one_item_at_a_time_gives_the_scores_of_all_at_once(teacher: Recommender) -> None:
    items = torch.from_numpy(np.random.default_rng(0).integers(0, teacher.n_items, (5, LENGTH)))
    batch = Batch(items, torch.zeros(5, 0, dtype=torch.long))
    read = None
    with torch.inference_mode():
        queries, hidden = teacher.query(batch)
        scores = teacher(batch)
        for position in range(LENGTH):
            query, state, read = teacher.read(items[:, position], read)
            torch.testing.assert_close(query[:, 0], queries[:, position], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(state[:, 0], hidden[:, position], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(teacher.score(query, state)[:, 0], scores[:, position], rtol=1e-4, atol=1e-4)


def test_labels_are_what_the_teacher_says_of_the_history(teacher: Recommender) -> None:
    histories = sample_histories([teacher], 20, LENGTH, top_k=4, seed=1)
    log_shares = whole(teacher, histories.items)
    best = log_shares.topk(4, dim=-1)
    said = torch.from_numpy(histories.log_shares).float()
    torch.testing.assert_close(said, best.values, rtol=2e-3, atol=2e-3)  # kept as float16
    at_items = log_shares.gather(-1, torch.from_numpy(histories.best).long())
    torch.testing.assert_close(at_items, best.values, rtol=1e-4, atol=1e-4)
    left = (1.0 - best.values.exp().sum(-1)).log()
    torch.testing.assert_close(torch.from_numpy(histories.tail).float(), left, rtol=5e-3, atol=5e-3)
    with torch.inference_mode():
        items = torch.from_numpy(histories.items).long()
        queries, _ = teacher.query(Batch(items, torch.zeros(20, 0, dtype=torch.long)))
        queries = teacher.scale(queries)
    torch.testing.assert_close(torch.from_numpy(histories.queries).float(), queries, rtol=2e-3, atol=2e-3)


def test_no_history_holds_an_item_twice_and_a_seed_settles_all(teacher: Recommender) -> None:
    histories = sample_histories([teacher], 40, 12, top_k=3, seed=5)  # as many items as there are
    assert all(sorted(row) == list(range(12)) for row in histories.items.tolist())
    again = sample_histories([teacher], 40, 12, top_k=3, seed=5)
    other = sample_histories([teacher], 40, 12, top_k=3, seed=6)
    assert np.array_equal(histories.items, again.items)
    assert not np.array_equal(histories.items, other.items)


def test_first_items_follow_the_biases_and_next_ones_the_teacher(catalogue: Catalogue) -> None:
    """Chi-squared tests with a false-alarm rate of 1e-4 each; the seed is fixed."""
    teacher = moved(build(catalogue), by=0.3)
    n = 4000
    histories = sample_histories([teacher], n, 2, top_k=3, seed=0)
    popular = teacher.bias.weight.detach().softmax(0).double().numpy()
    counts = np.bincount(histories.items[:, 0], minlength=12)
    assert stats.chisquare(counts, n * popular / popular.sum()).pvalue > 1e-4
    first = int(counts.argmax())
    chances = whole(teacher, np.array([[first]]))[0, 0].exp().double().numpy()
    chances[first] = 0.0
    chances /= chances.sum()
    followers = np.bincount(histories.items[histories.items[:, 0] == first, 1], minlength=12)
    assert followers[first] == 0
    others = np.arange(12) != first
    assert stats.chisquare(followers[others], followers.sum() * chances[others]).pvalue > 1e-4


def test_a_high_temperature_and_exploration_spread_the_items(catalogue: Catalogue) -> None:
    teacher = moved(build(catalogue, model__scale=60.0), by=0.3)

    def spread(**options: float) -> float:
        """Entropy of the second item, nats."""
        items = sample_histories([teacher], 1500, 2, top_k=3, seed=0, **options).items[:, 1]
        return float(stats.entropy(np.bincount(items, minlength=12)))

    assert spread(temperature=8.0) > spread() + 0.05
    cold = sample_histories([teacher], 1500, 2, top_k=2, seed=0, temperature=0.01)
    best = np.where(cold.best[:, 0, 0] == cold.items[:, 0], cold.best[:, 0, 1], cold.best[:, 0, 0])
    assert np.array_equal(cold.items[:, 1], best), "nearly no temperature: always the best new item"
    drawn = sample_histories([teacher], 1500, 2, top_k=2, seed=0, temperature=0.01, exploration=0.5)
    differing = float((drawn.items[:, 1] != np.where(drawn.best[:, 0, 0] == drawn.items[:, 0], *drawn.best[:, 0, ::-1].T)).mean())
    assert 0.3 < differing < 0.5, "half are drawn by popularity, and some of these are the best by chance"


def test_several_teachers_are_averaged_as_probabilities(catalogue: Catalogue) -> None:
    teachers = [moved(build(catalogue), seed=1, by=0.3), moved(build(catalogue, model__backbone="tiny-llama"), seed=2, by=0.3)]
    histories = sample_histories(teachers, 10, LENGTH, top_k=12, seed=3)
    mean = torch.stack([whole(teacher, histories.items).exp() for teacher in teachers]).mean(0)
    said = torch.from_numpy(histories.log_shares).float().exp()
    torch.testing.assert_close(said, mean.topk(12, dim=-1).values, rtol=3e-3, atol=1e-4)


def test_public_histories_begin_made_up_ones(catalogue: Catalogue) -> None:
    teacher = moved(build(catalogue))
    starts = [np.array([3, 1, 3, 4]), np.arange(11), np.array([7])]
    items = sample_histories([teacher], 5, LENGTH, top_k=2, seed=0, starts=starts).items
    assert items[0, :3].tolist() == [3, 1, 4], "each item once"
    assert items[1].tolist() == list(range(5, 11)), "its end"
    assert items[2, 0] == 7
    assert all(len(set(row)) == LENGTH for row in items.tolist())
    more = [np.array([i]) for i in range(9)]
    assert len(sample_histories([teacher], 5, LENGTH, top_k=2, seed=0, starts=more)) == 9, "all public ones are used"


def test_sampling_leaves_the_teacher_as_it_was(catalogue: Catalogue) -> None:
    teacher = moved(build(catalogue))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    plain = whole(teacher, np.array([[1, 2, 3]]))
    with merged(teacher):
        assert any(not torch.equal(value, before[name]) for name, value in teacher.state_dict().items()), "merging shows"
        torch.testing.assert_close(whole(teacher, np.array([[1, 2, 3]])), plain, rtol=1e-4, atol=1e-4)
    sample_histories([teacher], 4, 3, top_k=2, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_what_cannot_be_sampled_is_refused(catalogue: Catalogue) -> None:
    teacher = build(catalogue)
    with pytest.raises(ModelError, match="13 different items cannot be made from a catalogue of 12"):
        sample_histories([teacher], 4, 13, top_k=2, seed=0)
    with pytest.raises(ModelError, match="no teacher"):
        sample_histories([], 4, 3, top_k=2, seed=0)
    with pytest.raises(ModelError, match="share one catalogue"):
        sample_histories([teacher, build(catalogue.select(range(1, 12)))], 4, 3, top_k=2, seed=0)
