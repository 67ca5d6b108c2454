"""Recipes are compared by the plain cross-entropy, whatever label smoothing their losses hold."""
import json
import shutil

import numpy as np
import pytest
import tiny

from cifar_fastai.runs.compare import grouped, read_runs, table
from cifar_fastai.runs.one_run import train
from cifar_fastai.runs.seeds import summary


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "A run with label smoothing and one without"
    tiny.register()
    root = tmp_path_factory.mktemp("losses")
    with pytest.MonkeyPatch.context() as patch:
        tiny.undrawn(patch.setattr)
        made = {}
        for s in (0., .3):
            recipe = tiny.recipe.but(lr=.1, epochs=1, loss={"smoothing": s})
            made[s] = train(recipe, tiny.learnable(), root / str(s), quiet=True, device="cpu")
    return made


def shown(*paths) -> list[str]:
    return table(grouped(read_runs(paths)))["cross-entropy"].tolist()


def test_it_is_what_the_probabilities_say(folders):
    for smoothing, run in folders.items():
        probs = run.interp.preds.numpy().astype(float)
        plain = float(np.mean([-np.log(p[y]) for p, y in zip(probs, run.interp.targs.tolist())]))
        assert run.results["cross_entropy"] == pytest.approx(plain, rel=1e-5)
        same = run.results["loss"] == pytest.approx(plain, rel=1e-4)
        assert same == (smoothing == 0), "the loss is another number where labels are smoothed"


def test_runs_are_compared_by_it_and_seeds_sum_it_up(folders):
    plain, smooth = folders.values()
    kept = [f"{r.results['cross_entropy']:.4f}" for r in (plain, smooth)]
    assert shown(plain.folder, smooth.folder) == kept
    assert summary([smooth.results])["cross_entropy"]["mean"] == smooth.results["cross_entropy"]


def test_a_run_that_kept_the_loss_alone_is_compared_where_that_is_the_same(folders, tmp_path):
    for smoothing, run in folders.items():
        old = shutil.copytree(run.folder, tmp_path / str(smoothing))
        left = {k: v for k, v in run.results.items() if k != "cross_entropy"}
        (old / "results.json").write_text(json.dumps(left))
    assert shown(tmp_path / "0.0", tmp_path / "0.3") == [f"{folders[0.].results['loss']:.4f}", "-"]
