"""A fit that is stopped or spoiled loses nothing, on a stock fastai Learner."""
import os
import signal
import threading
from contextlib import nullcontext

import pytest
import torch
from fastai.callback.schedule import ParamScheduler  # noqa: F401  (patches `fit_one_cycle`)
from fastai.callback.training import GradientAccumulation
from fastai.learner import Callback
from fits import OPTIMISERS, SignalAt, fit, scramble, tiny

from cifar_fastai.checkpoints.stop_on_nonfinite import NonFiniteLoss, StopOnNonFinite
from cifar_fastai.checkpoints.stop_on_signal import StopOnSignal, Stopped

pytestmark = pytest.mark.no_rounding

# not a number

class SpoilBatch(Callback):
    "Puts `value` into the n-th training batch: a broken picture"
    run_valid = False
    def __init__(self, n, value=float("nan")): self.n, self.value = n, value
    def before_batch(self):
        if self.learn.train_iter != self.n: return
        self.learn.xb = (self.xb[0].index_fill(0, torch.tensor([2]), self.value),)


class SpoilLoss(SpoilBatch):
    def before_batch(self): pass
    def after_loss(self):
        if self.learn.train_iter != self.n: return
        self.learn.loss = self.learn.loss * self.value
        self.learn.loss_grad = self.learn.loss_grad * self.value


class SpoilGradient(SpoilBatch):
    def before_batch(self): pass
    def before_step(self):
        if self.learn.train_iter == self.n: next(self.learn.model.parameters()).grad[0, 0] = self.value


class Weights(Callback):
    "The weights and running means as they are after each step"
    run_valid = False
    states = ()
    def before_fit(self): self.after_batch()
    def after_batch(self):
        self.states = [*self.states, {k: v.clone() for k, v in self.learn.model.state_dict().items()}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("spoil", [SpoilBatch, SpoilLoss, SpoilGradient])
@pytest.mark.parametrize("opt, batch, late", [("adam", 0, False), ("sgd", 2, True), ("nesterov", 3, True)])
def test_F13_what_is_no_number_stops_before_the_step(tmp_path, spoil, value, opt, batch, late):
    learn, weights = tiny(opt), Weights()
    found = f"epoch 1, batch {batch}: stopped before the step.*checkpoint: .*epoch-0001.pt"
    with pytest.raises(NonFiniteLoss, match=found) as error:
        fit(learn, tmp_path, [StopOnNonFinite(late), spoil(4 + batch, value), weights])
    assert error.value.exit_status == 1 and "\n" not in str(error.value)
    assert all(v.equal(weights.states[4 + batch][k]) for k, v in learn.model.state_dict().items())
    assert "nan" not in str(fit(learn, cbs=[StopOnNonFinite()])), "it can go on at once"


@pytest.mark.parametrize("rate", [1e4, 1e12, 1e31, 1e38])
@pytest.mark.parametrize("wd", [0., 0.01])
@pytest.mark.parametrize("opt, late", [*((opt, False) for opt in OPTIMISERS), ("nesterov", True)])
def test_F13_an_absurd_learning_rate_leaves_finite_weights(opt, late, rate, wd):
    learn = tiny(opt, wd=wd)
    try:
        with learn.no_logging(): learn.fit(4, rate, cbs=StopOnNonFinite(late))
    except NonFiniteLoss as error: assert "stopped before the step" in str(error)
    assert all(v.isfinite().all() for v in learn.model.state_dict().values())


def test_F13_control_without_the_callback_the_weights_are_spoiled():
    learn = tiny()
    fit(learn, cbs=[SpoilBatch(6)])
    assert not all(v.isfinite().all() for v in learn.model.state_dict().values())


def test_F13_spoiled_weights_never_replace_a_good_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLoss, match="not saved. Last good checkpoint: .*epoch-0002.pt"):
        fit(tiny(), tmp_path, [SpoilBatch(10)])
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["epoch-0001.pt", "epoch-0002.pt"]


def test_an_infinity_that_a_model_keeps_for_a_reason_is_left_alone(tmp_path):
    learn = tiny()
    learn.model.register_buffer("mask", torch.tensor([0., float("-inf")]))
    fit(learn, tmp_path, [StopOnNonFinite()])
    assert learn.model.mask.tolist() == [0., float("-inf")]


def test_F13_lr_find_ends_where_the_loss_does(tmp_path):
    learn = tiny(cbs=[StopOnNonFinite()], path=tmp_path)
    with learn.no_logging(): learn.lr_find(num_it=40, show_plot=False, suggest_funcs=(), end_lr=1e3)
    with learn.no_logging(), learn.added_cbs(SpoilBatch(25)):
        learn.lr_find(num_it=40, show_plot=False, suggest_funcs=(), stop_div=False)
    assert len(learn.recorder.losses) == 25


def test_a_good_run_is_not_changed_by_being_watched(tmp_path, undisturbed):
    for late in (False, True):
        with StopOnSignal() as stop: end = fit(tiny(), tmp_path / str(late), [StopOnNonFinite(late), stop])
        assert end == undisturbed["nesterov"]


# signals

def handlers(): return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


class Closed(Callback):
    "Whether `after_fit` came"
    def before_fit(self): self.done = False
    def after_fit(self): self.done = True


@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("event, n", [("after_pred", 0), ("before_step", 9), ("after_epoch", 1),
                                      ("before_validate", 1)])
@pytest.mark.parametrize("block", [True, False])
def test_F3_a_signal_stops_and_loses_nothing(tmp_path, undisturbed, signum, status, event, n, block):
    before, closed, stop = handlers(), Closed(), StopOnSignal()
    with pytest.raises(Stopped, match=signal.Signals(signum).name + ".*checkpoint: .*epoch-000") as error, \
         stop if block else nullcontext():
        fit(tiny(), tmp_path, [stop, closed, SignalAt(event, n, signum)])
    assert error.value.exit_status == status and closed.done and handlers() == before
    learn = tiny()
    scramble()
    assert fit(learn, tmp_path, resume=True) == undisturbed["nesterov"]


@pytest.mark.parametrize("block", [True, False])
def test_F3_a_second_ctrl_c_stops_at_once(tmp_path, block):
    before, stop, learn = handlers(), StopOnSignal(), tiny()
    with pytest.raises(KeyboardInterrupt), stop if block else nullcontext():
        fit(learn, tmp_path, [stop, SignalAt("after_pred", 9, signal.SIGINT, signal.SIGINT)])
    assert handlers() == before and learn.train_iter == 5
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]


def test_F3_a_signal_in_lr_find_leaves_the_weights_as_they_were(tmp_path):
    learn = tiny(path=tmp_path)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with pytest.raises(Stopped), StopOnSignal() as stop, learn.no_logging():
        learn.add_cbs([stop, SignalAt("after_pred", 7, signal.SIGTERM)])
        learn.lr_find(num_it=40, show_plot=False)
        pytest.fail("it went on")
    assert all(v.equal(before[k]) for k, v in learn.model.state_dict().items())
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_F3_a_signal_in_a_prediction_pass_or_between_two_stops_there():
    learn = tiny()
    with pytest.raises(Stopped), StopOnSignal() as stop:
        learn.add_cbs([stop, SignalAt("after_pred", 2, signal.SIGTERM)])
        learn.get_preds()
        pytest.fail("it went on")
    with pytest.raises(Stopped), StopOnSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.check()
        raise AssertionError("went on")
    with pytest.raises(Stopped), StopOnSignal():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("not at once")


def test_F3_after_a_fit_that_failed_the_handlers_are_the_old_ones_or_let_the_signal_pass():
    class Fail(Callback):
        def after_pred(self): raise RuntimeError("broken")
    before, stop, learn = handlers(), StopOnSignal(), tiny()
    with pytest.raises(RuntimeError): fit(learn, cbs=[stop, Fail()])
    assert handlers() == before
    with pytest.raises(RuntimeError), learn.added_cbs([Fail(), stop]):
        try: learn.fit(1)
        finally:
            with pytest.raises(KeyboardInterrupt): os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_F3_outside_the_main_thread_nothing_is_installed():
    before, seen = handlers(), []
    thread = threading.Thread(target=lambda: (fit(tiny(), cbs=[StopOnSignal()]), seen.append(True)))
    thread.start(), thread.join()
    assert seen and handlers() == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopOnSignal(): assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally: signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("late", [False, True])
def test_F13_running_averages_are_as_before_also_where_gradients_of_several_batches_are_gathered(late):
    "The broken picture is in the first batch of a step; its averages are spoiled before the step is judged"
    learn, weights = tiny(), Weights()
    with pytest.raises(NonFiniteLoss):
        fit(learn, None, [StopOnNonFinite(late), GradientAccumulation(16), SpoilBatch(4), weights])
    for name, v in learn.model.state_dict().items(): assert torch.equal(v, weights.states[4][name]), name
