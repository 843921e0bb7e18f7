"""The evaluation of a simulation: everybody's scores, the right items held out, only what is sold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.place import Place
from client.silo import open_silo
from common.config import Config
from common.data.population import load_population
from common.errors import DataError
from common.model.adapter import from_vector
from common.model.recommender import Batch
from common.model.resident import resident
from simulations.evaluate import Evaluator
from tests import tiny

NO_TEXT = torch.zeros((1, 0), dtype=torch.int64)


def evaluator(config: Config) -> Evaluator:
    home = resident(config)
    return Evaluator(config, load_population(config), home.model, home.manifest)


def some_adapter(judge: Evaluator) -> np.ndarray:
    """Away from the start, where many parameters are zero."""
    rng = np.random.default_rng(3)
    return (resident(judge.config).start + rng.normal(0, 0.2, judge.manifest.n_parameters)).astype(np.float32)


def by_time(config: Config) -> list[list[int]]:
    """Each user's items, oldest first, read row by row."""
    rows = load_population(config).dataset.interactions
    out: list[list[tuple[int, int]]] = [[] for _ in range(rows.n_users)]
    for user, item, time in zip(rows.user, rows.item, rows.time, strict=True):
        out[user].append((int(time), int(item)))
    return [[item for _, item in sorted(history)] for history in out]


def silo_data(config: Config, silo: int):
    return open_silo(config, Place.of({"partition-id": silo})).data


def test_scores_are_those_of_one_user_at_a_time() -> None:
    config = tiny.config()
    judge = evaluator(config)
    vector = some_adapter(judge)
    together = judge.scores(vector, judge.histories("test"))
    assert together.shape == (40, 24)
    from_vector(judge.model, vector, judge.manifest)
    for user, items in zip(judge.users, together, strict=True):
        known = by_time(config)[user][:-1][-config.model.window :]
        with torch.inference_mode():
            alone = judge.model(Batch(torch.tensor([known]), NO_TEXT))[0, -1].numpy()
        np.testing.assert_allclose(items, alone, atol=1e-4)
    backwards = judge.scores(vector, judge.histories("test")[::-1])[::-1]
    np.testing.assert_allclose(backwards, together, atol=1e-5)


@pytest.mark.parametrize(("held", "place"), [("validation", -2), ("test", -1)])
def test_a_judgement_is_that_of_a_loop_over_users_and_items(held, place: int) -> None:
    config = tiny.config()
    judge = evaluator(config)
    vector = some_adapter(judge)
    scores = judge.scores(vector, judge.histories(held))
    ndcg, ranks, losses = [], [], []
    for user, row in enumerate(scores.astype(np.float64)):
        history = by_time(config)[judge.users[user]]
        target, known = history[place], set(history[:place])
        rank = 1 + sum(row[i] > row[target] for i in range(24) if i not in known)
        ndcg.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
        ranks.append(1 / rank)
        losses.append(np.log(np.exp(row).sum()) - row[target])
    judged = judge.judge(vector, held)
    summary = judged.evaluation.summary(10)
    assert (summary["ndcg@10"], summary["mrr"]) == pytest.approx((np.mean(ndcg), np.mean(ranks)))
    assert judged.loss == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize("by", ["taste", "catalogue"])
def test_no_silo_learns_from_a_held_out_item(by: str) -> None:
    config = tiny.config(partition__by=by, data__synthetic__interactions_per_user=12.0)
    population, histories = load_population(config), by_time(config)
    measured = set(evaluator(config).users.tolist())
    learnt = 0
    for silo, members in enumerate(population.partition.silos):
        data = silo_data(config, silo)
        assert len(data.histories) == len(members.users)
        for user, history in zip(members.users.tolist(), data.histories, strict=True):
            assert history.tolist() == (histories[user][:-2] if user in measured else histories[user])
            learnt += len(history)
    assert learnt == len(population.dataset.interactions) - 2 * len(measured)


def test_only_what_the_users_silo_sells_is_ranked() -> None:
    config = tiny.config(partition__by="catalogue", partition__overlap=0.25, data__synthetic__interactions_per_user=12.0)
    judge = evaluator(config)
    silos = judge.population.partition.silos
    assert [int(silo.items.sum()) for silo in silos] == [15, 15]
    evaluation = judge.judge(some_adapter(judge), "test").evaluation
    for place, user in enumerate(judge.users):
        sold = set(np.flatnonzero(silos[judge.silo[place]].items).tolist())
        history = by_time(config)[user]
        assert set(history) <= sold
        assert evaluation.candidates[place] == len(sold - set(history[:-1]) | {history[-1]})
        shown = {int(item) for item in evaluation.lists[place] if item >= 0}
        assert shown
        assert shown <= sold - (set(history[:-1]) - {history[-1]})


def test_users_text_is_read_as_it_is_in_training_and_never_from_held_out_rows() -> None:
    config = tiny.config(model__user_text=True, model__text_tokens=64, data__synthetic__review_text=True)
    judge = evaluator(config)
    population = judge.population
    for silo, members in enumerate(population.partition.silos):
        data = silo_data(config, silo)
        for user, tokens in zip(members.users.tolist(), data.text, strict=True):
            assert judge._text[judge.users.tolist().index(user)] == tokens
    rows = population.dataset.interactions
    user = int(judge.users[0])
    own = sorted(np.flatnonzero(rows.user == user), key=lambda row: rows.time[row])
    assert rows.text is not None
    line = population.dataset.user_text[user] + ". " + ". ".join(rows.text[row] for row in own[:-2][::-1])
    first = judge.model.tokenizer(line, add_special_tokens=False)["input_ids"]
    assert list(judge._text[0][1:]) == list(first[:63])

    vector, histories = some_adapter(judge), judge.histories("test")
    with_text, without = judge.scores(vector, histories), judge.scores_of(histories, vector)
    assert np.abs(with_text - without).max() > 1e-3
    two = judge.scores_of([histories[5], histories[2]], vector, np.array([5, 2]))
    np.testing.assert_allclose(two, with_text[[5, 2]], atol=1e-5)


def test_padding_keeps_the_latest_items() -> None:
    batch = Batch.of_histories([np.arange(5), np.arange(1), np.arange(0)], 3, [(7, 8), (), (9,)])
    assert batch.items.tolist() == [[2, 3, 4], [0, -1, -1], [-1, -1, -1]]
    assert batch.text.tolist() == [[7, 8], [-1, -1], [9, -1]]


def test_a_population_that_cannot_be_measured_is_refused() -> None:
    config = tiny.config(partition__by="catalogue", partition__silos=12, partition__overlap=0.0)
    assert max(len(history) for history in by_time(config)) < 3
    with pytest.raises(DataError, match="three interactions that leave-one-out needs"):
        evaluator(config)
