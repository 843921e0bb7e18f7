"""A student learns what its teacher says, from what the teacher made up, and from nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.config import Config, load, to_toml
from common.data.catalogue import Catalogue
from common.errors import DataError, ModelError
from common.model.finished import ADAPTER, CATALOGUE, CONFIG
from common.model.recommender import Batch, Recommender
from common.model.student import Student
from server.distill import Distilled, distil, main_axes, student_of
from server.student_store import ACCOUNT, FOLDER, WEIGHTS, student_in
from server.teachers import load_teachers, read_public_histories
from tests.common.model import small_model
from tests.server import small_run

LONGER = {"distillation__histories": 200, "distillation__epochs": 10, "distillation__batch_size": 8}


@pytest.fixture(scope="module")
def teacher(catalogue: Catalogue) -> Recommender:
    return small_model.moved(small_model.build_recommender(small_run.config(), catalogue), by=0.3)


@pytest.fixture(scope="module")
def distilled(teacher: Recommender) -> Distilled:
    return distil([teacher], small_run.config(**LONGER))


def divergence(student: Student, teacher: Recommender, seed: int = 9) -> float:
    """Mean KL(teacher ‖ student), nats, after random histories of all lengths, none of them the teacher's own."""
    rng = np.random.default_rng(seed)
    items = torch.from_numpy(np.stack([rng.permutation(teacher.n_items)[:6] for _ in range(200)]))
    batch = Batch(items, torch.zeros(200, 0, dtype=torch.long))
    with torch.inference_mode():
        theirs, mine = teacher(batch).log_softmax(-1), student(batch).log_softmax(-1)
    return float((theirs.exp() * (theirs - mine)).sum(-1).mean())


def test_it_learns_what_the_teacher_says(teacher: Recommender, distilled: Distilled) -> None:
    with torch.random.fork_rng(devices=[]):
        untrained = student_of(teacher, small_run.config(), None)
    assert divergence(distilled.student, teacher) < 0.25 * divergence(untrained, teacher)
    first, last = distilled.epochs[0], distilled.epochs[-1]
    assert last.held_out_divergence < 0.5 * first.held_out_divergence
    assert last.held_out_cosine < first.held_out_cosine
    assert [epoch.number for epoch in distilled.epochs] == list(range(1, 11))
    assert 0.85 < distilled.agreement <= 1.0


def test_a_seed_settles_the_student(teacher: Recommender) -> None:
    once, again = (distil([teacher], small_run.config()).student.state_dict() for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)
    other = distil([teacher], small_run.config(run__seed=1)).student.state_dict()
    assert not torch.equal(once["token.weight"], other["token.weight"])


def test_it_does_not_disturb_the_process(teacher: Recommender) -> None:
    state = torch.get_rng_state()
    distil([teacher], small_run.config())
    assert torch.equal(state, torch.get_rng_state())


def test_an_ensemble_is_learnt_as_one_distribution(catalogue: Catalogue) -> None:
    config = small_run.config(**LONGER)
    teachers = [small_model.moved(small_model.build_recommender(config, catalogue), seed=seed, by=0.3) for seed in (3, 4)]
    student = distil(teachers, config).student
    alone = distil(teachers[:1], config).student

    def to_both(one: Student) -> float:
        return divergence(one, teachers[0]) + divergence(one, teachers[1])

    assert to_both(student) < to_both(alone)


def test_cut_text_vectors_keep_the_products_that_matter(teacher: Recommender) -> None:
    vectors = teacher.item_vectors
    axes = main_axes(vectors, 5)
    assert axes is not None
    torch.testing.assert_close(axes.T @ axes, torch.eye(5), rtol=1e-4, atol=1e-5)
    values, _ = torch.linalg.eigh((vectors @ vectors.T).double())
    kept = float(((vectors @ axes) ** 2).sum())
    assert kept == pytest.approx(float(values[-5:].sum()), rel=1e-4), "the five largest eigenvalues of the Gram matrix"
    smaller = main_axes(vectors, 3)
    assert smaller is not None
    torch.testing.assert_close(smaller, axes[:, :3])
    for nothing_to_cut in (0, 12, 64, 500):  # of 12 items and 64 columns
        assert main_axes(vectors, nothing_to_cut) is None
    small = distil([teacher], small_run.config(distillation__text_dim=5))
    assert small.student.shape.text_dim == 5
    assert small.axes is not None
    assert small.axes.shape == (64, 5)


def test_pruned_weights_stay_away(teacher: Recommender) -> None:
    student = distil([teacher], small_run.config(distillation__pruning=0.5)).student
    weight = student.get_parameter("layers.0.up.weight")
    assert int((weight == 0).sum()) == weight.numel() // 2
    assert not (student.get_parameter("token.weight") == 0).any()


def test_a_finished_student_is_not_made_again(tmp_path: Path, catalogue: Catalogue) -> None:
    run = small_run.write(tmp_path / "run", catalogue)
    config, teachers = small_run.config(), load_teachers(run)
    student, account = student_in(run, teachers, config)
    written = (run / FOLDER / WEIGHTS).stat().st_mtime_ns
    loaded, same = student_in(run, teachers, config)
    assert (run / FOLDER / WEIGHTS).stat().st_mtime_ns == written
    assert same == account
    batch = small_model.batch([[1, 2, 3], [4]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(batch), student(batch))
    assert account == json.loads((run / FOLDER / ACCOUNT).read_text())
    assert len(account["epochs"]) == config.distillation.epochs
    for change in ({"distillation__epochs": 2}, {"run__seed": 5}, {"distillation__text_dim": 4}):
        _, other = student_in(run, teachers, small_run.config(**change))
        assert other["made_of"] != account["made_of"]
    student_in(run, teachers, config)
    written = (run / FOLDER / WEIGHTS).stat().st_mtime_ns
    student_in(run, teachers, config, again=True)
    assert (run / FOLDER / WEIGHTS).stat().st_mtime_ns > written


def test_a_turned_student_comes_back_as_it_was(tmp_path: Path, catalogue: Catalogue) -> None:
    run = small_run.write(tmp_path / "run", catalogue, distillation__text_dim=5)
    teachers = load_teachers(run)
    first, _ = student_in(run, teachers, teachers.config)
    second, _ = student_in(run, teachers, teachers.config)
    torch.testing.assert_close(first.item_vectors, second.item_vectors)


def test_a_damaged_student_is_named(tmp_path: Path, catalogue: Catalogue) -> None:
    run = small_run.write(tmp_path / "run", catalogue)
    teachers = load_teachers(run)
    student_in(run, teachers, teachers.config)
    (run / FOLDER / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"student\.safetensors: not this run's student, or damaged"):
        student_in(run, teachers, teachers.config)


def test_other_teachers_must_fit(tmp_path: Path, catalogue: Catalogue) -> None:
    run = small_run.write(tmp_path / "run", catalogue)
    other = small_run.write(tmp_path / "other", catalogue, seed=4, model__backbone="tiny-llama")
    teachers = load_teachers(run, [other, run / ADAPTER])
    assert len(teachers.models) == len(set(teachers.digests)) + 1 == 3
    smaller = small_run.write(tmp_path / "smaller", catalogue.select(range(1, 12)))
    with pytest.raises(ModelError, match="teachers must share both"):
        load_teachers(run, [smaller])
    with pytest.raises(ModelError, match="neither a run's folder nor an adapter"):
        load_teachers(run, [run / CONFIG])
    with pytest.raises(ModelError, match="backbone is"):
        load_teachers(run, [other / ADAPTER])


def test_checkpoints_are_teachers_too(tmp_path: Path, catalogue: Catalogue) -> None:
    from common.model.adapter import load_adapter
    from server.checkpoint import Checkpoint, save, save_final

    run = small_run.write(tmp_path / "run", catalogue)
    vector, manifest = load_adapter(run / ADAPTER)
    state = Checkpoint("0" * 64, manifest.hash, vector + 1, round=2)
    for path in (save(tmp_path, state), save_final(tmp_path, state)):
        weight = load_teachers(run, [path]).models[1].bias.weight.detach()
        torch.testing.assert_close(weight, load_teachers(run).models[0].bias.weight.detach() + 1)
    strange = save(tmp_path, Checkpoint("0" * 64, "1" * 64, vector))
    with pytest.raises(ModelError, match="another model"):
        load_teachers(run, [strange])


def test_public_histories_are_read_by_id(tmp_path: Path, catalogue: Catalogue) -> None:
    path = tmp_path / "public.csv"
    path.write_text("i3,i1,i4\n\ni7\n")
    assert [history.tolist() for history in read_public_histories(path, catalogue)] == [[3, 1, 4], [7]]
    path.write_text("i3\ni3,nowhere\n")
    with pytest.raises(DataError, match=r"public\.csv:2: item 'nowhere' is not in the catalogue"):
        read_public_histories(path, catalogue)
    with pytest.raises(DataError, match="not a file of histories"):
        read_public_histories(tmp_path / "absent.csv", catalogue)


ALONE = """
import os, sys
run, forbidden = sys.argv[1], os.path.realpath(sys.argv[2])
opened = []

def watch(event, arguments):
    if event.startswith("sqlite3"):
        raise SystemExit("a ledger was opened")
    if event == "open" and isinstance(arguments[0], str):
        path = os.path.realpath(arguments[0])
        opened.append(path)
        if path.startswith(forbidden + os.sep):
            raise SystemExit(f"a silo's file was opened: {path}")

sys.addaudithook(watch)
from pathlib import Path
from server.bundle_cli import signing_key
from server.bundling import make_bundle
made = make_bundle(Path(run), Path(run) / "shop.bundle", signing_key(Path(run) / "bundle.key"))
assert not any(name.startswith(("client", "simulations")) for name in sys.modules), "a silo's code was loaded"
assert any(path.endswith("adapter.safetensors") for path in opened), "the hook sees what is opened"
print(made.digest)
"""


def test_no_private_record_is_read(tmp_path: Path, catalogue: Catalogue) -> None:
    """From three files, in a process that ends if it opens anything of a silo, with an empty cache."""
    private = tmp_path / "silos"
    private.mkdir()
    (private / "shop.csv").write_text("user,item,time\nu1,i1,1\n")
    run = small_run.write(tmp_path / "original", catalogue, data__source=str(private / "shop.csv"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (CONFIG, CATALOGUE, ADAPTER):
        shutil.copy(run / name, copy / name)
    private.rename(tmp_path / "elsewhere")
    environment = os.environ | {"SILOREC_CACHE": str(tmp_path / "cache"), "SILOREC_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ALONE, str(copy), str(tmp_path / "elsewhere")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) == 64
    assert sorted(path.name for path in copy.iterdir()) == sorted(
        [CONFIG, CATALOGUE, ADAPTER, FOLDER, "bundle.key", "bundle.key.pub", "shop.bundle"]
    )


def test_the_settings_of_a_run_are_read_back(catalogue: Catalogue, tmp_path: Path) -> None:
    run = small_run.write(tmp_path / "run", catalogue)
    config: Config = load(run / CONFIG)
    assert config == small_run.config()
    assert to_toml(config) == (run / CONFIG).read_text()
