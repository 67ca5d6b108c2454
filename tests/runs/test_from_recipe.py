"""What the values of a recipe become, and that the range test runs under what changes the steps."""
import pytest
import torch
from fastai.callback.mixup import CutMix, MixUp

from cifar_fastai import Recipe
from cifar_fastai.runs.from_recipe import extras_of, regularisers_of, schedule_of, suggestions_of
from cifar_fastai.training.lr_finder import SUGGESTIONS, peak_factor, slide
from cifar_fastai.training.optimizers import optimizer
from cifar_fastai.training.records import KeepBest
from cifar_fastai.training.schedules import PlateauSchedule, RecordedSchedule
from cifar_fastai.tricks.regularisers import ClipGradients, L1Loss


def recipe(**fields): return Recipe(name="r", epochs=4, **fields)


def test_a_plain_recipe_asks_for_no_further_callbacks(): assert extras_of(recipe()) == []


@pytest.mark.parametrize("fields, kind, says", [
    ({"l1": 1e-4, "l1_rule": "scaled"}, L1Loss, {"factor": 1e-4, "rule": "scaled"}),
    ({"clip_value": .1}, ClipGradients, {"value": .1, "norm": None}),
    ({"clip_norm": 2.}, ClipGradients, {"value": None, "norm": 2.}),
    ({"mixup": .4}, MixUp, {}), ({"cutmix": 1.}, CutMix, {})])
def test_each_regulariser_becomes_its_callback(fields, kind, says):
    one, = regularisers_of(recipe(regularise=fields))
    assert isinstance(one, kind) and {k: getattr(one, k) for k in says} == says
    assert [type(cb) for cb in extras_of(recipe(regularise=fields))] == [type(one)]


def test_other_schedules_become_their_callback_with_their_options():
    watching = recipe(schedule={"name": "plateau", "patience": 5}, keep="best", valid="holdout")
    assert [type(cb) for cb in extras_of(watching)] == [KeepBest]
    plateau = schedule_of(watching, .1)
    assert type(plateau) is PlateauSchedule and (plateau.lr, plateau.patience) == (.1, 5)
    step = schedule_of(recipe(schedule={"name": "step", "step_every": 2, "drop": .5}), .1)
    assert type(step) is RecordedSchedule and step.scheds["lr"](.5) == pytest.approx(.05)


REGULARISERS = [{"mixup": .4}, {"cutmix": 1.}, {"l1": 1e-3}, {"clip_value": .01}]


@pytest.mark.parametrize("fields", REGULARISERS, ids=str)
@pytest.mark.parametrize("on", ["train", "holdout"])
def test_the_range_test_runs_under_them_and_leaves_none_behind(learner, fields, on):
    learn = learner(valid="holdout")
    before, plain = learn.loss_func, learn.lr_find(num_it=40, on=on, show_plot=False)
    alone = [float(v) for v in learn.recorder.losses]
    with learn.added_cbs(regularisers_of(recipe(regularise=fields))):
        learn.lr_find(num_it=40, on=on, show_plot=False)
    assert [float(v) for v in learn.recorder.losses] != alone, "the steps are other ones"
    assert learn.loss_func is before and learn.lr_find(num_it=40, on=on, show_plot=False) == plain
    assert not any(isinstance(cb, (MixUp, CutMix, L1Loss, ClipGradients)) for cb in learn.cbs)


# how high the peak may be

@pytest.mark.parametrize("schedule, steps, factor", [
    ({}, 160, 4), ({}, 1000, 4), ({}, 80, 2), ({}, 40, 1), ({}, 5, .5),    # one epoch of warm-up, of the four
    ({"pct_start": .5}, 40, 2), ({"peak_epoch": 3.}, 40, 3),
    ({"name": "constant"}, 1000, .5), ({"name": "flat_cos", "pct_start": .75}, 1000, .5),
    ({"name": "step"}, 1000, .5)])
def test_the_peak_is_as_high_as_the_warm_up_allows(schedule, steps, factor):
    assert peak_factor(recipe(schedule=schedule).warm_up * steps) == factor


@pytest.mark.parametrize("opt, steps, factor", [
    ("sgd", 160, 4), ("adamw", 160, 4), ("ranger", 160, 4),
    ("muon", 160, 1.5), ("muon", 80, 1.5), ("muon", 40, 1), ("muon", 5, .5)])
def test_muon_takes_at_most_one_and_a_half_times_the_rate_with_the_lowest_loss(learner, opt, steps, factor):
    assert peak_factor(steps, optimizer(opt)) == factor
    assert peak_factor(steps, learner(opt=opt).opt_func) == factor


def test_a_recipe_asks_for_all_suggestions_but_slide_where_too_few_rates_are_tried_for_it():
    assert suggestions_of(recipe()) == list(SUGGESTIONS)
    assert suggestions_of(recipe(lr={"num_it": 20})) == [f for f in SUGGESTIONS if f is not slide]
    assert slide in suggestions_of(recipe(lr={"num_it": 20, "rule": "slide"})), "which then is refused"


def test_lr_find_for_a_fit_raises_its_peak_by_the_warm_up_and_tries_no_more_batches(learner):
    learn, peak = learner(), SUGGESTIONS[-1]
    alone = learn.lr_find(num_it=100, suggest_funcs=peak, show_plot=False).peak
    tried = len(learn.recorder.lrs)
    lrs, losses = torch.tensor(learn.recorder.lrs[10:-5]), torch.stack(learn.recorder.losses)[10:-5]
    for kwargs, epochs in (({"n_epoch": 24}, 6), ({"n_epoch": 40, "warm_up": 4}, 4)):
        found = learn.lr_find(num_it=100, suggest_funcs=peak, show_plot=False, **kwargs).peak
        assert found == peak(lrs, losses, factor=peak_factor(epochs * len(learn.dls.train)))[0]
        assert found < alone
    learn.lr_find(num_it=100, n_epoch=2, suggest_funcs=peak, show_plot=False)
    assert len(learn.recorder.lrs) <= 60 < tried


def losses_of(learnable, bs, accumulate):
    "Training loss of each step of a plain pass over the pictures, three epochs; and the end's weights"
    from tiny import recipe as tiny

    from cifar_fastai.runs import fit, learner_of
    r = tiny.but(epochs=3, bs=bs, build={"norm": "gn"}, aug=None, opt={"accumulate": accumulate})
    learn = learner_of(r, learnable, device="cpu", workers=0)
    with learn.no_logging(), learn.no_bar(): fit(learn.recipe, learn, .05)
    losses = [float(v) for v in learn.recorder.losses]
    return learn, losses, torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def test_accumulated_gradients_take_the_steps_of_a_batch_as_large(learnable, tiny_registered):
    learn, whole, end = losses_of(learnable, 32, 1)
    _, halves, same = losses_of(learnable, 16, 2)
    _, _, plain = losses_of(learnable, 16, 1)
    assert len(halves) == 2 * len(whole) == 30 and torch.allclose(end, same, atol=1e-5)
    assert (end - plain).abs().max() > 1e-2, "without accumulation it ends elsewhere"
