"""A Learner's state comes back whole, and says by name what does not fit."""
import logging
import random

import numpy as np
import pytest
import torch
from fastai.callback.training import GradientAccumulation
from fastai.learner import Callback
from fits import OPTIMISERS, KillAt, Killed, fit, scramble, tiny

from cifar_fastai.checkpoints.learner_state import (
    fit_fields,
    generators,
    learner_state,
    restore_generators,
    restore_learner,
    run_fields,
)


def broken_off(opt="nesterov", cbs=(), event="after_step"):
    "A Learner in the middle of its second epoch"
    learn = tiny(opt)
    with pytest.raises(Killed): fit(learn, cbs=[KillAt(event, 6), *cbs])
    return learn


def tensors(value):
    "All tensors in a state, as bytes"
    if isinstance(value, dict): value = list(value.values())
    if isinstance(value, (list, tuple)): return [b for v in value for b in tensors(v)]
    return [value.detach().numpy().tobytes()] if isinstance(value, torch.Tensor) else []


def test_the_scale_of_fp16_comes_back():
    learn, other = broken_off(), broken_off()
    for one, scale in ((learn, 8.), (other, 2.)): one.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    restore_learner(other, learner_state(learn))
    assert other.scaler.get_scale() == 8.


@pytest.mark.parametrize("opt", OPTIMISERS)
def test_a_state_that_is_put_into_another_learner_is_read_off_it_again(opt):
    state, other = learner_state(broken_off(opt)), broken_off(opt)
    with torch.no_grad():
        for p in other.model.parameters(): p.add_(1)
    assert tensors(learner_state(other)["model"]) != tensors(state["model"])
    restore_learner(other, state)
    again = learner_state(other)
    assert tensors(again) == tensors(state) and len(tensors(state)) > 15
    assert (again["train_iter"], again["pct_train"]) == (6, pytest.approx(6 / 24)) == \
        (state["train_iter"], pytest.approx(state["pct_train"]))


def test_gradients_are_kept_only_while_they_wait():
    learn = broken_off(cbs=[GradientAccumulation(1000)], event="after_backward")
    assert learner_state(learn)["grads"] is None
    kept = learner_state(learn, pending=True)["grads"]
    assert [g.shape for g in kept] == [p.shape for p in learn.model.parameters()]


def test_a_callback_that_is_gone_is_named(caplog):
    class Counter(Callback):
        def state_dict(self): return {"n": 3}
        def load_state_dict(self, state): self.n = state["n"]
    learn, other = broken_off(), broken_off()
    learn.add_cb(Counter())
    state = learner_state(learn)
    with caplog.at_level(logging.WARNING): restore_learner(other, state)
    assert "the state of counter, which this run does not use" in caplog.text
    other.add_cb(Counter())
    restore_learner(other, state)
    assert other.counter.n == 3


def test_generators_stand_again_where_they_stood():
    learn = tiny()
    state, first = generators(learn), [torch.rand(1), learn.dls.train.rng.random()]
    restore_generators(learn, state)
    assert [torch.rand(1), learn.dls.train.rng.random()] == first


def test_generators_of_python_and_numpy_too():
    learn = tiny()
    state, first = generators(learn), (random.random(), np.random.rand())
    scramble(), random.seed(4), np.random.seed(4)
    assert (random.random(), np.random.rand()) != first
    restore_generators(learn, state)
    assert (random.random(), np.random.rand()) == first


def test_fields_tell_runs_and_fits_apart():
    a, b = broken_off(), broken_off("adam")
    same = run_fields(a) == run_fields(broken_off()) and fit_fields(a) == fit_fields(broken_off())
    assert same and run_fields(a)["optimiser"] == "SGD" != run_fields(b)["optimiser"]
    n = sum(v.numel() for v in a.model.state_dict().values())
    assert f"of {n} values" in run_fields(a)["architecture"]
    longer = tiny()
    with pytest.raises(Killed): fit(longer, cbs=[KillAt("after_step", 2)], epochs=7)
    assert fit_fields(longer)["epochs"] == 7 and fit_fields(a)["epochs"] == 6
