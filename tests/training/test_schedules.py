"""Rates by the step, against torch's schedulers and by hand; and the same after a resume."""
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from torch import nn
from torch.optim import lr_scheduler

from cifar_fastai.checkpoints.checkpoint import Checkpoint
from cifar_fastai.errors import InputError
from cifar_fastai.recipe import SCHEDULES as KNOWN
from cifar_fastai.training import lr_finder
from cifar_fastai.training.lr_finder import peak
from cifar_fastai.training.optimizers import batches_a_step
from cifar_fastai.training.records import KeepBest
from cifar_fastai.training.schedules import (
    SCHEDULES,
    PlateauSchedule,
    create_schedule,
    flat_cos,
    one_cycle,
    plateau,
    step,
)
from cifar_fastai.tricks.regularisers import L1Loss, mixing


class Pretended(Callback):
    "Say that these were the validation losses of the epochs, and the accuracies"
    order = 51      # after the Recorder, before those who choose
    def __init__(self, losses, accuracies=None): self.said, self.accuracies = losses, accuracies

    def after_epoch(self):
        row = self.recorder.log         # epoch, training loss, validation loss, accuracy
        row[2] = self.said[self.epoch]
        if self.accuracies: row[3] = self.accuracies[self.epoch]


def rates(learn, schedule, epochs, cbs=()):
    "The rate of every step of a fit"
    learn.fit(epochs, 0.1, cbs=[schedule, *cbs])
    return np.array(learn.recorder.hps["lr"])


def torch_rates(make, steps, lr=0.1):
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    sched, found = make(opt), []
    for _ in range(steps):
        found.append((opt.param_groups[0]["lr"], opt.param_groups[0]["momentum"]))
        opt.step()
        sched.step()
    return np.array(found).T


def test_a_recipe_knows_the_schedules_that_there_are():
    assert set(KNOWN) == set(SCHEDULES)


def test_linear_one_cycle_is_torchs_with_its_last_rate_named_by_the_peak(learner):
    learn = learner()                                                       # 5 steps an epoch
    ours = rates(learn, one_cycle(0.1, 40, peak_epoch=10, div=10, div_final=10, anneal="linear",
                                  moms=(.95, .85, .95)), 40)
    lrs, moms = torch_rates(lambda o: lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=201, pct_start=51 / 201, anneal_strategy="linear", div_factor=10,
        final_div_factor=1), 200)
    assert ours == pytest.approx(lrs, rel=1e-5)
    assert learn.recorder.hps["mom"] == pytest.approx(moms, rel=1e-5)
    assert ours[0] == pytest.approx(0.01) and ours[-1] == pytest.approx(0.01, rel=0.07), "ends where it began"
    assert ours.argmax() == 50 and ours.max() == pytest.approx(0.1)


def test_cosine_one_cycle_goes_half_way_where_a_quarter_ends_and_down_to_the_peaks_share(learner):
    cycle = one_cycle(0.2, 8, pct_start=0.25, div=4, div_final=100, anneal="cos")
    ours = rates(learner(), cycle, 8)     # 40 steps
    assert ours[0] == pytest.approx(0.05) and ours[10] == pytest.approx(0.2)
    assert ours[5] == pytest.approx((0.05 + 0.2) / 2) and ours[25] == pytest.approx((0.2 + 0.002) / 2)
    down = 0.2 + (1 - np.cos(np.pi * np.arange(30) / 30)) * (0.002 - 0.2) / 2
    assert ours[10:] == pytest.approx(down, rel=1e-5)


def test_step_is_torchs_step_at_every_batch(learner):
    ours = rates(learner(), step(0.1, 7, step_every=2, drop=0.3), 7)
    lrs, _ = torch_rates(lambda o: lr_scheduler.StepLR(o, step_size=10, gamma=0.3), 35)     # 5 steps an epoch
    assert ours == pytest.approx(lrs, rel=1e-12)


def test_flat_cos_is_flat_then_a_half_cosine(learner):
    ours = rates(learner(), flat_cos(0.1, 4, pct_start=0.5, div_final=10), 4)
    assert ours[:11] == pytest.approx(np.full(11, 0.1)) and ours[15] == pytest.approx((0.1 + 0.01) / 2)


def test_constant_is_constant(learner):
    assert set(rates(learner(), create_schedule("constant", 0.03, 2), 2)) == {0.03}


@pytest.mark.parametrize("settings", [{}, {"patience": 0}, {"patience": 1, "cooldown": 2},
                                      {"patience": 1, "drop": 0.5, "min_lr": 0.03}])
def test_plateau_drops_where_torchs_does(learner, settings):
    losses = [3, 2.5, 2.6, 2.5, 2.5, 2.49999, 2.6, 2.4, 2.4, 2.4, 2.4, 2.4, 2.3, 2.3, 2.4, 2.5]
    learn = learner(valid="holdout")
    ours = rates(learn, plateau(0.1, len(losses), **settings), len(losses), [Pretended(losses)])
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    names = {"drop": "factor"}
    sched = lr_scheduler.ReduceLROnPlateau(
        opt, **{"patience": 3, **{names.get(k, k): v for k, v in settings.items()}})
    theirs = []
    for loss in losses:
        theirs += [opt.param_groups[0]["lr"]] * len(learn.dls.train)
        sched.step(loss)
    assert ours == pytest.approx(theirs, rel=1e-12, abs=2e-8), "torch stops at 1e-8"
    assert len(set(theirs)) > 1


def test_plateau_stays_while_the_loss_falls(learner):
    ours = rates(learner(valid="holdout"), plateau(0.1, 6, patience=0), 6, [Pretended([6, 5, 4, 3, 2, 1])])
    assert set(ours) == {0.1}


def test_plateau_refuses_the_test_set_as_judge(learner):
    with pytest.raises(InputError, match="the plateau schedule would choose by the test set"):
        learner(valid="test").fit(1, 0.1, cbs=PlateauSchedule(0.1))


@pytest.mark.parametrize("wrong, said", [
    (lambda: one_cycle(0.1, 5, peak_epoch=5), "peak_epoch=5 is not within 5 epochs"),
    (lambda: one_cycle(0.1, 5, pct_start=1), "pct_start=1. Give a share"),
    (lambda: one_cycle(0.1, 5, anneal="cosine"), "unknown annealing 'cosine'. Did you mean cos?"),
    (lambda: create_schedule("one_cycl", 0.1, 5), "unknown schedule 'one_cycl'. Did you mean one_cycle?")])
def test_a_wrong_schedule_says_what_is_wrong(wrong, said):
    with pytest.raises(InputError, match=said): wrong()


class Killed(Exception): pass


class KillAt(Callback):
    order = 950     # after the checkpoint of this batch would have been written
    def __init__(self, step): self.step = step
    def after_batch(self):
        if self.training and self.train_iter == self.step: raise Killed


def fit(learner, name, folder, *cbs, resume=False):
    opt = "adamw" if name == "one_cycle" else "sgd"
    learn = learner(valid="holdout", opt=opt, wd_norm_bias=name != "step")
    steps = len(learn.dls.train)
    options = {"one_cycle": {"moms": (.95, .85, .95)}, "flat_cos": {"pct_start": 0.25}, "constant": {},
               "step": {"step_every": 2, "drop": 0.5}, "plateau": {"patience": 0, "drop": 0.5}}
    sched, best = create_schedule(name, 0.05, 5, **options[name]), KeepBest()
    saved = Checkpoint(folder, resume=resume)
    losses = Pretended([3, 3, 2, 2, 1], [.2, .5, .6, .3, .4])
    rest = L1Loss(1e-4), mixing(mixup=0.4), *(c(steps) for c in cbs)
    learn.fit(5, 0.05, cbs=[sched, best, saved, losses, *rest])
    return learn, best


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_killed_fit_ends_in_the_same_bytes_under_every_schedule(learner, tmp_path, name):
    whole, best = fit(learner, name, tmp_path / "whole")
    with pytest.raises(Killed): fit(learner, name, tmp_path / "cut", lambda steps: KillAt(3 * steps + 2))
    again, best_again = fit(learner, name, tmp_path / "cut", resume=True)
    for (key, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(a, b), key
    assert whole.recorder.hps == again.recorder.hps
    assert len(again.recorder.hps["lr"]) == 5 * len(whole.dls.train)
    assert best.best_epoch == best_again.best_epoch == 3, "from before the kill"
    other, _ = fit(learner, "constant" if name != "constant" else "step", tmp_path / "other")
    assert not torch.equal(other.model.fc.weight, whole.model.fc.weight), "another schedule ends elsewhere"


def test_a_plateau_schedule_of_a_learner_leaves_its_range_test_alone(learner):
    learn = learner(valid="holdout", cbs=plateau(.1, 3))
    plain = learner(valid="holdout")
    assert learn.lr_find(num_it=40, show_plot=False) == plain.lr_find(num_it=40, show_plot=False)
    learn.fit(1)


def test_F6_a_plateau_schedule_is_resumed_by_its_own_numbers_alone(learner, tmp_path):
    def fit(patience, resume):
        saved = Checkpoint(tmp_path, resume=resume)
        learner(valid="holdout").fit(3, cbs=[plateau(.1, 3, patience=patience), saved])
    fit(2, False)
    with pytest.raises(InputError, match="the plateau's patience was 2, is now 1"): fit(1, True)
    fit(2, True)


@pytest.mark.parametrize("gathered, share", [(32, 1), (64, 2), (80, 3), (16, 1)])
def test_batches_of_a_step_are_counted_as_fastai_gathers_them(learner, gathered, share):
    learn, steps = learner(bs=32), []
    class Steps(Callback):
        def after_step(self): steps.append(self.train_iter)
    learn.fit(3, cbs=[GradientAccumulation(gathered), Steps()])
    assert {b - a for a, b in zip(steps, steps[1:])} == {share}
    with learn.added_cbs([GradientAccumulation(gathered)]): assert batches_a_step(learn) == share
    assert batches_a_step(learn) == 1


def test_the_factor_of_the_peak_goes_by_steps_not_by_batches(learner, monkeypatch):
    seen = []
    monkeypatch.setattr(lr_finder, "peak_factor", lambda steps, opt_func: seen.append(steps) or 1.)
    for accumulated in (1, 4):
        cbs = [GradientAccumulation(32 * accumulated)]
        with (learn := learner(bs=32)).added_cbs(cbs):
            learn.lr_find(n_epoch=40, warm_up=8, show_plot=False, suggest_funcs=peak)
    assert seen == [8 * 5, 8 * 5 / 4]
