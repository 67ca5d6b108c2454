"""A recipe's fields become callbacks, and the range test runs under those that change the steps."""
import pytest
import torch
from fastai.callback.mixup import CutMix, MixUp

from cifar_fastai import Recipe
from cifar_fastai.runs.from_recipe import callbacks_of, peak_factor, regularisers_of, suggestions_of
from cifar_fastai.training.keep_best import KeepBest
from cifar_fastai.training.lr_finder import SUGGESTIONS
from cifar_fastai.training.regularisers import ClipGradients, L1Loss
from cifar_fastai.training.schedules import Plateau, Schedule


def recipe(**fields): return Recipe(name="r", epochs=4, **fields)


def test_a_plain_recipe_has_a_schedule_and_nothing_else():
    only, = callbacks_of(recipe(), 0.1)
    assert type(only) is Schedule and only.scheds["lr"](0.25) == pytest.approx(0.1)
    assert regularisers_of(recipe()) == []


@pytest.mark.parametrize("fields, kind, says", [
    ({"l1": 1e-4, "l1_rule": "scaled"}, L1Loss, {"factor": 1e-4, "rule": "scaled"}),
    ({"clip_value": .1}, ClipGradients, {"value": .1, "norm": None}),
    ({"clip_norm": 2.}, ClipGradients, {"value": None, "norm": 2.}),
    ({"mixup": .4}, MixUp, {}), ({"cutmix": 1.}, CutMix, {})])
def test_each_field_becomes_its_callback(fields, kind, says):
    one, = regularisers_of(recipe(**fields))
    assert isinstance(one, kind) and {k: getattr(one, k) for k in says} == says
    assert [type(cb) for cb in callbacks_of(recipe(**fields), .1)] == [Schedule, type(one)]


def test_what_watches_the_holdout_comes_with_the_fields_that_ask_for_it():
    cbs = callbacks_of(recipe(schedule="plateau", keep="best", valid="holdout"), .1)
    assert [type(cb) for cb in cbs] == [Plateau, KeepBest]


@pytest.mark.parametrize("fields", [{"mixup": .4}, {"cutmix": 1.}, {"l1": 1e-3}, {"clip_value": .01}])
@pytest.mark.parametrize("on", ["train", "holdout"])
def test_the_range_test_runs_under_them_and_leaves_none_behind(learner, fields, on):
    learn = learner(valid="holdout")
    before, plain = learn.loss_func, learn.lr_find(num_it=40, on=on, show_plot=False)
    alone = [float(v) for v in learn.recorder.losses]
    with learn.added_cbs(regularisers_of(recipe(**fields))):
        learn.lr_find(num_it=40, on=on, show_plot=False)
    assert [float(v) for v in learn.recorder.losses] != alone, "the steps are other ones"
    assert learn.loss_func is before and learn.lr_find(num_it=40, on=on, show_plot=False) == plain
    assert not any(isinstance(cb, (MixUp, CutMix, L1Loss, ClipGradients)) for cb in learn.cbs)


# how high the peak may be

@pytest.mark.parametrize("fields, steps, factor", [
    ({}, 160, 4), ({}, 1000, 4), ({"norm": "gn"}, 160, 4),       # an epoch of warm-up, of the four
    ({}, 80, 2), ({}, 40, 1), ({}, 5, .5), ({"pct_start": .5}, 40, 2), ({"peak_epoch": 3.}, 40, 3),
    ({"schedule": "constant"}, 1000, .5), ({"schedule": "flat_cos", "pct_start": .75}, 1000, .5),
    ({"schedule": "step", "peak_epoch": 3.}, 1000, .5)])
def test_the_peak_is_as_high_as_the_warm_up_allows(fields, steps, factor):
    assert peak_factor(recipe(**fields), steps) == factor


def test_a_recipes_suggestions_are_all_there_are_with_its_own_peak():
    lrs = torch.logspace(-5, 1, 200)
    dip = 2.3 - .2 * torch.exp(-((lrs.log10() + 1.4) / .5) ** 2)
    found = suggestions_of(recipe(), 80)
    assert [getattr(f, "func", f) for f in found] == list(SUGGESTIONS)
    plain, ours = ([f(lrs, dip, 200)[0] for f in fs] for fs in (SUGGESTIONS, found))
    assert ours[:-1] == plain[:-1] and ours[-1] == pytest.approx(2 * plain[-1], rel=.05)
