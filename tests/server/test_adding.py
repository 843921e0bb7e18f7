"""New items are recommended at once, old ones stay as they were, and what is not known is predicted from what is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.linear_model

from common.bundle.contents import Bundle
from common.bundle.files import read_bundle, write_bundle
from common.data.catalogue import Catalogue
from common.engine import Engine, Request
from common.errors import BundleError
from common.privacy.signing import SigningKey, create_key
from server.adding import PENALTIES, add_items, fit_ridge, joined, shortfall
from server.bundling import make_bundle
from tests.server import small_run

WORDS = ("harbour", "meadow", "lantern", "orchard", "signal", "winter", "compass", "thistle", "ferry", "granite")


def big(n: int = 150) -> Catalogue:
    """Enough items to fit a ridge on: three made-up words and a category each."""
    rng = np.random.default_rng(0)
    return Catalogue(
        ids=tuple(f"i{i}" for i in range(n)),
        titles=tuple(" ".join(WORDS[j] for j in rng.choice(10, 3, replace=False)) + f" {i}" for i in range(n)),
        categories=tuple((("drama", "comedy", "western")[i % 3],) for i in range(n)),
        fields={"year": tuple(str(1980 + i % 40) for i in range(n))},
    )


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return create_key(tmp_path_factory.mktemp("keys") / "bundle.key")


@pytest.fixture(scope="module", params=[0, 40], ids=["whole", "cut"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, key: SigningKey) -> Bundle:
    """Of a run whose text vectors are as the encoder made them, and of one where they are turned and cut."""
    folder = tmp_path_factory.mktemp("run")
    run = small_run.write(folder / "run", big(), distillation__text_dim=request.param, distillation__epochs=1)
    made = make_bundle(run, folder / "shop.bundle", key)
    return read_bundle(made.path, {key.public_key})


def new(*titles: str) -> Catalogue:
    n = len(titles)
    return Catalogue(tuple(f"n{i}" for i in range(n)), titles, (("drama",),) * n, {"description": ("",) * n})


def test_the_ridge_is_scikit_learn_s() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 8))
    y = x @ rng.normal(size=(8, 3)) + rng.normal(0, 0.5, (60, 3)) + 2.0
    mine = fit_ridge(x, y)
    theirs = sklearn.linear_model.RidgeCV(alphas=PENALTIES).fit(x, y)  # its criterion is the same mean over rows and targets
    assert mine.penalty == theirs.alpha_
    np.testing.assert_allclose(mine(x[:5]), theirs.predict(x[:5]), rtol=1e-6)


def test_the_leave_one_out_error_is_that_of_leaving_one_out() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(25, 4)), rng.normal(size=(25, 2))
    for penalty in (0.01, 3.0):
        errors = []
        for row in range(25):
            others = np.arange(25) != row
            one = sklearn.linear_model.Ridge(alpha=penalty).fit(x[others], y[others])
            errors.append((one.predict(x[row : row + 1])[0] - y[row]) ** 2)
        fitted = fit_ridge(x, y, [penalty])
        assert fitted.error == pytest.approx(np.mean(errors), rel=1e-6)
        np.testing.assert_allclose((fitted.left_out - y) ** 2, errors, rtol=1e-6)


def test_a_new_item_is_near_its_twin_and_old_ones_stay_to_the_bit(bundle: Bundle, key: SigningKey, tmp_path: Path) -> None:
    twin = replace(bundle.catalogue.select([17]), ids=("twin",))
    digest = add_items(bundle, joined(twin, new("granite ferry thistle")), tmp_path / "more.bundle", key)
    more = read_bundle(tmp_path / "more.bundle", {key.public_key})
    assert more.digest == digest != bundle.digest
    n = len(bundle.items)
    assert len(more.items) == n + 2
    assert more.card.added_items == 2
    for name in ("vectors", "scales", "biases"):
        assert np.array_equal(getattr(more.items, name)[:n], getattr(bundle.items, name))
    assert more.catalogue.select(range(n)).texts == bundle.catalogue.texts
    assert more.catalogue.titles[n:] == (bundle.catalogue.titles[17], "granite ferry thistle")
    text = more.items.rows(np.arange(n + 2))[:, : more.items.text_dim]
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    assert int((text[:n] @ text[n]).argmax()) == 17


def test_new_items_are_recommended_at_once(bundle: Bundle, key: SigningKey, tmp_path: Path) -> None:
    titles = tuple(bundle.catalogue.titles[i] for i in range(0, 150, 10))
    add_items(bundle, new(*titles), tmp_path / "more.bundle", key)
    engine = Engine(read_bundle(tmp_path / "more.bundle", {key.public_key}), search="exact")
    shown = [item.id for start in range(150) for item in engine.recommend(Request(history=(start, (start + 7) % 150), k=10))]
    assert any(name.startswith("n") for name in shown)


def test_items_can_be_added_twice(bundle: Bundle, key: SigningKey, tmp_path: Path) -> None:
    add_items(bundle, new("winter signal"), tmp_path / "one.bundle", key)
    one = read_bundle(tmp_path / "one.bundle", {key.public_key})
    late = replace(new("compass orchard"), ids=("late",))
    add_items(one, late, tmp_path / "two.bundle", key)
    two = read_bundle(tmp_path / "two.bundle", {key.public_key})
    assert (two.card.added_items, two.catalogue.ids[-2:]) == (2, ("n0", "late"))
    direct = tmp_path / "direct.bundle"
    add_items(bundle, joined(new("winter signal"), late), direct, key)
    both = read_bundle(direct, {key.public_key})
    np.testing.assert_allclose(two.items.rows(np.arange(152)), both.items.rows(np.arange(152)), atol=1e-3)
    np.testing.assert_allclose(two.items.biases, both.items.biases, atol=1e-5)


def test_the_prediction_is_better_than_the_mean(bundle: Bundle) -> None:
    """Factors that follow from the text are found; scored on items that were left out of the fit."""
    text = bundle.items.rows(np.arange(150))[:, : bundle.items.text_dim].astype(np.float64)
    rng = np.random.default_rng(3)
    factor = text @ rng.normal(size=(text.shape[1], 4)) + rng.normal(0, 0.05, (150, 4))
    fitted = fit_ridge(text[:100], factor[:100])
    wrong = ((fitted(text[100:]) - factor[100:]) ** 2).mean()
    assert wrong < 0.3 * factor[100:].var(axis=0).mean()


def test_what_guesses_lack_in_probability_is_made_up_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    n = len(bundle.items)
    rows, biases = bundle.items.rows(np.arange(n)).astype(np.float64), bundle.items.biases.astype(np.float64)
    assert shortfall(bundle, rows, biases) == pytest.approx(0.0, abs=1e-6)
    assert shortfall(bundle, rows, biases - 1.7) == pytest.approx(1.7, abs=1e-6)
    # Against the engine's own scores: guesses at half the popularity, and what share of the probability they keep.
    asked = [[i, i + 1] for i in range(9)]
    monkeypatch.setattr("server.adding.walks", lambda model, count: asked)
    mean = biases.mean()
    more = shortfall(bundle, rows, mean + (biases - mean) / 2)
    scores = Engine(bundle, search="exact").scores(asked).astype(np.float64)
    guessed = scores - biases + mean + (biases - mean) / 2
    assert np.mean(np.exp(guessed + more).sum(1) / np.exp(scores).sum(1)) == pytest.approx(1.0, abs=1e-4)
    assert more > 0, "the middle is too low"


def test_new_items_get_as_many_nats_as_known_ones_would_need(
    bundle: Bundle, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_items(bundle, new("winter signal", "ferry"), tmp_path / "more.bundle", key)
    monkeypatch.setattr("server.adding.shortfall", lambda *_: 0.0)
    add_items(bundle, new("winter signal", "ferry"), tmp_path / "plain.bundle", key)
    more, plain = (read_bundle(tmp_path / f"{name}.bundle", {key.public_key}).items for name in ("more", "plain"))
    gained = more.biases - plain.biases
    assert not gained[:150].any()
    assert gained[150] == pytest.approx(gained[151], abs=1e-5)
    assert np.array_equal(more.vectors, plain.vectors)


def test_what_cannot_be_added_is_refused(bundle: Bundle, key: SigningKey, tmp_path: Path) -> None:
    path = tmp_path / "more.bundle"
    with pytest.raises(BundleError, match="item 'i3' is in the bundle already"):
        add_items(bundle, replace(new("ferry"), ids=("i3",)), path, key)
    with pytest.raises(BundleError, match="no item to add"):
        add_items(bundle, new(), path, key)
    with pytest.raises(BundleError, match="does not give this bundle's vectors"):
        add_items(bundle, new("ferry"), path, key, encoder="tiny-bert")
    assert not path.exists()


def test_a_catalogue_keeps_its_columns() -> None:
    old = replace(big(3), fields={"year": ("1", "2", "3")})
    both = joined(old, new("ferry"))
    assert both.fields == {"year": ("1", "2", "3", ""), "description": ("", "", "", "")}
    assert both.texts[:3] == old.texts


def test_a_bundle_by_somebody_else_is_signed_anew(bundle: Bundle, tmp_path: Path) -> None:
    other = create_key(tmp_path / "other.key")
    add_items(bundle, new("ferry"), tmp_path / "more.bundle", other)
    assert read_bundle(tmp_path / "more.bundle", {other.public_key}).signer == other.public_key
    with pytest.raises(BundleError):
        read_bundle(tmp_path / "more.bundle", {bundle.signer})


def test_writing_again_gives_the_same_bundle(bundle: Bundle, key: SigningKey, tmp_path: Path) -> None:
    digest = write_bundle(
        tmp_path / "same.bundle", card=bundle.card, catalogue=bundle.catalogue, items=bundle.items, model=bundle.model, key=key
    )
    assert digest == bundle.digest
