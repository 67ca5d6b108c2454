"""The range test suggests what fastai would, and leaves no trace."""
import logging
import random
from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD, Adam
from fastcore.foundation import L
from stock import Net, stock_dls
from tiny import tiny_net

from cifar_fastai.errors import InputError
from cifar_fastai.parts import LRFind
from cifar_fastai.training.lr_finder import (
    SUGGESTIONS,
    explain_rate,
    find_rate,
    minimum,
    peak,
    slide,
    steep,
    valley,
)

FOUR = (valley, slide, minimum, steep)


def trace(learn, folder):
    "All that a range test must not change, in values that can be compared"
    model, opt = learn.model, learn.opt
    moved = {k: v.numpy().tobytes() for k, v in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()]
    states = None if opt is None else [(k, v.numpy().tobytes() if torch.is_tensor(v) else v)
                                       for s in opt.opt.state.values() for k, v in s.items()]
    hypers = None if opt is None else [dict(h) for h in opt.hypers]
    return {"weights": moved, "grads": grads, "states": states, "hypers": hypers,
            "flags": [m.training for m in model.modules()], "cbs": [cb.name for cb in learn.cbs],
            "done": learn.epoch_seed.done, "epochs": [(dl.epoch, dl.skip) for dl in learn.dls.loaders],
            "torch": torch.get_rng_state().tolist(), "python": random.getstate(),
            "numpy": np.random.get_state()[1].tolist(), "files": sorted(folder.rglob("*")),
            "hooks": [len(m._forward_hooks) for m in model.modules()]}


class Stops(Callback):
    "Ends the test in its thirtieth batch"
    def __init__(self, error): self.error = error
    def after_backward(self):
        if self.train_iter == 29: raise self.error


@pytest.fixture(params=["fresh", "trained", "frozen batch norm"])
def learn(request, learner, tmp_path, monkeypatch):
    "A Learner in three states, and an empty working folder"
    monkeypatch.chdir(tmp_path)
    for seed in (random.seed, np.random.seed, torch.manual_seed): seed(5)
    learn = learner()
    if request.param != "fresh": learn.fit(1, .05)
    if request.param == "frozen batch norm":
        learn.model.layer1.eval()
        learn.model.fc.weight.grad = torch.ones_like(learn.model.fc.weight)
    return learn


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ZeroDivisionError, InputError("no")])
def test_nothing_is_changed_whether_it_ends_well_or_not(learn, tmp_path, error):
    before = trace(learn, tmp_path)
    if error is None: learn.lr_find(num_it=40, show_plot=False)
    else:
        with pytest.raises(error if isinstance(error, type) else InputError), learn.added_cbs(Stops(error)):
            learn.lr_find(num_it=40, show_plot=False)
    after = trace(learn, tmp_path)
    for name in before: assert before[name] == after[name], name


def test_control_the_sweep_itself_changes_all_of_it(learn, tmp_path):
    before = trace(learn, tmp_path)
    learn.fit(2, .1)
    after = trace(learn, tmp_path)
    assert all(before[k] != after[k] for k in ("weights", "states", "done", "epochs"))



@pytest.mark.parametrize("opt", [SGD, Adam])
def test_it_leaves_no_trace_on_a_stock_learner_either(opt, tmp_path):
    def fit(find):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        dls = stock_dls(n_train=32, bs=8)
        learn = Learner(dls, Net(), CrossEntropyLossFlat(), opt_func=opt, path=tmp_path)
        learn.remove_cb(learn.progress)
        with learn.no_logging():
            learn.fit(1, 1e-3)
            if find: find_rate(learn, num_it=40, show_plot=False)
            learn.fit(1, 1e-3)
        return torch.cat([p.flatten() for p in learn.model.parameters()]).tolist()
    assert fit(True) == fit(False) and not list(tmp_path.iterdir())


# what it suggests

def test_rates_go_from_the_first_to_the_last_by_a_factor_or_by_a_step(learner):
    learn = learner()
    learn.lr_find(1e-4, 1., num_it=41, stop_div=False, show_plot=False)
    assert learn.recorder.lrs == pytest.approx(np.geomspace(1e-4, 1e-4 * 1e4 ** (40 / 41), 41).tolist())
    learn.lr_find(0., 1., num_it=40, mode="linear", stop_div=False, show_plot=False)
    assert learn.recorder.lrs == pytest.approx((np.arange(40) / 40).tolist())


def test_the_four_suggestions_are_fastais_on_the_same_curve(learner):
    learn = learner()
    found = learn.lr_find(num_it=60, suggest_funcs=FOUR, show_plot=False)
    lrs, losses = torch.tensor(learn.recorder.lrs[6:-5]), torch.stack(learn.recorder.losses[6:-5])
    assert found._fields == ("valley", "slide", "minimum", "steep")
    assert [float(v) for v in found] == pytest.approx([float(f(lrs, losses, 60)[0]) for f in FOUR])
    assert len({float(v) for v in found}) > 1, "they differ"


def test_peak_is_a_multiple_of_the_bottom_but_not_where_the_loss_explodes():
    lrs = torch.logspace(-5, 1, 200)
    dip = 2.3 - .2 * torch.exp(-((lrs.log10() + 1.4) / .5) ** 2)
    bottom = float(lrs[dip.argmin()])
    four = pytest.approx(4 * bottom, rel=.04)
    rate, (x, y) = peak(lrs, dip, factor=4)
    assert rate == four and x == rate and dip.min() < y < 2.3
    assert peak(lrs, dip)[0] == bottom and peak(lrs, dip, factor=.5)[0] == pytest.approx(bottom / 2, rel=.04)
    back = torch.where(lrs > .3, 3., dip)            # it climbs …
    back[-5:] = 2.0                                  # … and ends below everything before
    assert peak(lrs, back, factor=4)[0] == four
    explodes = torch.where(lrs > 1.5 * bottom, 9., dip)
    assert peak(lrs, explodes, factor=4)[0] == lrs[lrs <= 1.5 * bottom][-1], "the last rate before"
    noisy = dip + .1 * (torch.arange(200) == 10)
    assert peak(lrs, noisy, factor=4)[0] == four, "a bump of 4 % is no divergence"
    assert peak(lrs[:120], dip[:120], factor=4)[0] == lrs[119], "no rate that was not tried"
    assert minimum(lrs, dip, 200)[0] == pytest.approx(bottom / 10), "fastai's is a tenth"


def test_its_curve_is_that_of_fastais_own_lr_find(learner, tmp_path):
    "What is suggested on a curve stands above: where two places are as good, rounding chooses between them"
    ours = learner(aug=None)
    theirs = Learner(deepcopy(ours.dls), deepcopy(ours.model), CrossEntropyLossFlat(), opt_func=ours.opt_func,
                     moms=(.9, .9, .9), wd=5e-4, path=tmp_path)
    theirs.remove_cb(theirs.progress)
    theirs.dls.train.set_epoch(0)
    for learn in (ours, theirs): learn.lr_find(1e-5, 10, num_it=60, suggest_funcs=FOUR, show_plot=False)
    assert ours.recorder.lrs == pytest.approx(theirs.recorder.lrs)
    mine, fastais = ([float(v) for v in learn.recorder.losses] for learn in (ours, theirs))
    assert mine == pytest.approx(fastais, abs=1e-4)


@pytest.mark.parametrize("funcs, fields", [(None, ("valley",)), (steep, ("steep",)), ([slide], ("slide",)),
                                           (L(minimum, valley), ("minimum", "valley"))])
def test_functions_are_taken_alone_or_listed(learner, funcs, fields):
    assert learner().lr_find(num_it=40, suggest_funcs=funcs, show_plot=False)._fields == fields


def test_it_stops_where_the_loss_explodes_and_ignores_what_is_no_number(learner):
    learn = learner(arch=lambda **kwargs: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4)))
    found = learn.lr_find(1e-5, 1e6, num_it=100, show_plot=False)
    assert len(learn.recorder.losses) < 100 and 0 < found.valley < 10


def test_too_few_rates_are_refused(learner):
    said = "only 12 rates to judge by, of which 17 are needed by slide. Raise num_it"
    with pytest.raises(InputError, match=said):
        learner().lr_find(num_it=18, suggest_funcs=FOUR, show_plot=False)


def test_the_plot_marks_each_suggestion(learner):
    plt.close("all")
    learn = learner()
    found = learn.lr_find(num_it=40, suggest_funcs=FOUR)
    legends = [ax.get_legend() for ax in plt.gcf().axes if ax.get_legend()]
    said = [t.get_text() for legend in legends for t in legend.get_texts()]
    assert all(any(name in text for text in said) for name in found._fields), said
    assert learn.lr_find(num_it=40, show_plot=False) and len(plt.get_fignums()) == 1
    plt.close("all")


# who judges

def test_the_test_set_never_judges(learner):
    with pytest.raises(InputError, match='which is the test set here. Keep a holdout .valid="holdout"'):
        learner().lr_find(on="holdout", show_plot=False)
    for wrong, says in (({"on": "holdot"}, "holdout"), ({"mode": "linaer"}, "linear")):
        with pytest.raises(InputError, match=f"Did you mean {says}"): learner().lr_find(**wrong)


def test_a_holdout_judges_by_its_own_loss_and_leaves_no_trace(learner, tmp_path):
    learn = learner(valid="holdout")
    before = trace(learn, tmp_path)
    learn.lr_find(num_it=40, show_plot=False)
    training = [float(v) for v in learn.recorder.losses]
    assert learn.lr_find(num_it=40, on="holdout", show_plot=False).valley > 0
    held = [float(v) for v in learn.recorder.losses]
    assert len(held) > 20 and held[:20] != pytest.approx(training[:20], abs=1e-3)
    assert trace(learn, tmp_path) == before


def test_a_recipe_knows_every_suggestion_by_its_name():
    for f in SUGGESTIONS: assert LRFind(getattr(f, "func", f).__name__)
    with pytest.raises(InputError, match="unknown rule of LRFind: 'median'"): LRFind("median")


def test_the_choice_is_told_with_the_others(learner, caplog):
    found = learner().lr_find(num_it=60, suggest_funcs=FOUR, show_plot=False)
    with caplog.at_level(logging.INFO): line = explain_rate(found, "slide", found.slide)
    assert line.startswith(f"{found.slide:.3g} (slide) of valley ") and "\n" not in line
    assert all(name in line for name in ("minimum", "steep"))


def test_a_net_without_batch_norm_and_a_part_that_is_frozen_are_left_alone(learner):
    net = tiny_net(4, norm="gn")
    for p in net.layer1.parameters(): p.requires_grad_(False)
    learn = learner(arch=net)
    before = deepcopy(net.state_dict())
    learn.lr_find(num_it=40, show_plot=False)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(p.requires_grad for p in net.layer1.parameters())


def test_a_rate_among_the_first_ones_tried_gives_way_to_the_median(caplog):
    from collections import namedtuple

    from cifar_fastai.training.lr_finder import plausible_rate
    Rates = namedtuple("Rates", "valley slide minimum steep")
    noisy, clear = Rates(0.02, 0.04, 4e-6, 0.3), Rates(0.02, 0.04, 0.01, 0.3)
    assert plausible_rate(noisy, "minimum", 1e-5) == pytest.approx(0.04) and "hardly moved" in caplog.text
    none_moved = Rates(2e-5, 4e-5, 3e-5, 5e-5)
    assert plausible_rate(none_moved, "slide", 1e-5) == pytest.approx(3.5e-5)
    said = explain_rate(noisy, "minimum", 0.04)
    assert said.startswith("0.04 (median, not minimum) of valley 0.02") and "minimum 4e-06" in said
    caplog.clear()
    assert plausible_rate(clear, "minimum", 1e-5) == 0.01 and not caplog.text
