"""Averaged weights by hand, in validation, at the end, and after a stop."""
import signal

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from fits import BATCHES, KillAt, Killed, SignalAt, fit, scramble, tiny
from torch.nn import functional as F

from cifar_fastai.checkpoints import StopOnSignal
from cifar_fastai.checkpoints.stop_on_signal import Stopped
from cifar_fastai.errors import InputError
from cifar_fastai.tricks import AverageWeights


def values(model): return {k: v.detach().clone() for k, v in model.state_dict().items()}


class Watch(Callback):
    "The net's values after each step, before any averaging and after it"
    def __init__(self, order): self.order, self.seen = order, []
    def before_fit(self): self.start = values(self.model)
    def after_batch(self):
        if self.training: self.seen.append((values(self.model), float(self.pct_train)))


def same(a, b, **kwargs): return all(torch.allclose(a[k].double(), b[k].double(), **kwargs) for k in a)


def trained(average, *cbs, epochs=3, **kwargs):
    learn, steps = tiny(), Watch(69)
    fit(learn, cbs=[average, steps, *cbs], epochs=epochs, **kwargs)
    return learn, steps


@pytest.mark.parametrize("every", [1, 3])
def test_the_net_ends_with_the_exponential_average_of_its_weights_and_running_statistics(every):
    learn, steps = trained(AverageWeights(decay=.8, every=every))
    average = steps.start
    for now, _ in steps.seen[every - 1::every]:
        average = {k: .8 * average[k] + .2 * v if v.is_floating_point() else v for k, v in now.items()}
    assert same(learn.model.state_dict(), average, atol=1e-6)
    assert not same(average, steps.seen[-1][0], atol=1e-3), "the average is not the last net"


def test_the_net_trains_on_as_if_there_were_no_average():
    plain, averaged = Watch(69), Watch(69)
    fit(tiny(), cbs=[plain], epochs=2)
    fit(tiny(), cbs=[averaged, AverageWeights()], epochs=2)
    assert all(torch.equal(a[k], b[k]) for (a, _), (b, _) in zip(plain.seen, averaged.seen) for k in a)


def test_lookahead_goes_on_from_the_average_whose_memory_grows_with_the_cube_of_the_fit():
    learn, before = trained(AverageWeights(decay=.9, every=2, lookahead=True), after := Watch(71))
    average = before.start
    for k, ((net, share), (gone_on, _)) in enumerate(zip(before.seen, after.seen)):
        if k % 2 == 0:
            assert same(net, gone_on, atol=0)
            continue
        left = .9 * share ** 3
        average = {n: average[n].lerp(v, 1 - left) if v.is_floating_point() else v for n, v in net.items()}
        assert same(gone_on, average, atol=1e-6)
        average = gone_on
    assert same(learn.model.state_dict(), average, atol=0) and before.seen[-1][1] > .9


def test_the_log_shows_what_the_average_comes_to():
    class Look(Callback):
        order = 75
        def __init__(self): self.losses = []
        def before_validate(self): self.model_then = values(self.model)
        def after_validate(self):
            net, batch = tiny().model, list(self.dls.valid)
            net.load_state_dict(self.model_then)
            net.eval()
            with torch.no_grad():
                self.losses.append(float(F.cross_entropy(torch.cat([net(x) for x, _ in batch]),
                                                         torch.cat([y for _, y in batch]))))
    learn, steps = trained(AverageWeights(decay=.8, every=1), look := Look())
    assert [row[1] for row in learn.recorder.values] == pytest.approx(look.losses, rel=1e-5)
    average = steps.start
    for now, _ in steps.seen:
        average = {k: .8 * average[k] + .2 * v if v.is_floating_point() else v for k, v in now.items()}
    assert same(look.model_then, average, atol=1e-6)


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("event, n", [("after_batch", 7), ("after_batch", 2 * BATCHES + 3),
                                      ("after_epoch", 2)])
def test_a_killed_fit_ends_like_an_undisturbed_one(tmp_path, lookahead, event, n):
    def make(): return AverageWeights(decay=.8, every=3, lookahead=lookahead)
    whole = fit(tiny(), cbs=[make()])
    with pytest.raises(Killed):
        fit(tiny(), tmp_path, cbs=[make(), KillAt(event, n)], every_minutes=0)
    scramble()
    assert fit(tiny(), tmp_path, cbs=[make()], resume=True, every_minutes=0) == whole


def test_a_fit_that_is_stopped_in_validation_saves_the_nets_own_weights(tmp_path):
    def make(): return AverageWeights(decay=.8, every=3)
    whole = fit(tiny(), cbs=[make()])

    class InValidation(SignalAt):
        def count(self):
            if not self.learn.training: super().count()
    learn = tiny()
    with pytest.raises(Stopped), StopOnSignal() as stop:
        fit(learn, tmp_path, cbs=[make(), stop, InValidation("after_batch", 5, signal.SIGTERM)])
        stop.check()
    scramble()
    assert fit(tiny(), tmp_path, cbs=[make()], resume=True) == whole


def test_a_validation_that_fails_gives_the_net_its_own_weights_back():
    from cifar_fastai.training.learner import ImageLearner

    class Fails(Callback):
        order = 80
        def after_batch(self):
            if not self.training: raise KeyboardInterrupt
    stock = tiny()
    learn = ImageLearner(stock.dls, stock.model, stock.loss_func, opt_func=stock.opt_func, wd_bn_bias=True)
    steps = Watch(69)
    with pytest.raises(KeyboardInterrupt), learn.no_logging(), learn.no_bar():
        learn.fit_one_cycle(1, .1, cbs=[AverageWeights(every=1), steps, Fails()])
    assert same(learn.model.state_dict(), steps.seen[-1][0], atol=0)


def test_running_statistics_belong_to_the_averaged_weights(learner):
    "As if batch norm had been measured anew, with the averaged weights, over the training pictures"
    from torch.optim.swa_utils import update_bn
    learn = learner(aug=None)
    learn.fit_one_cycle(8, .05, cbs=AverageWeights(decay=.8, every=1))
    x, _ = learn.dls.valid.one_batch()
    learn.model.eval()
    with torch.no_grad(): kept = learn.model(x).softmax(1)
    update_bn([(b[0],) for b in learn.dls.train], learn.model)
    learn.model.eval()
    with torch.no_grad(): anew = learn.model(x).softmax(1)
    assert (kept - anew).abs().mean() < .03


def test_predictions_and_range_tests_are_left_alone(learner):
    learn, average = learner(), AverageWeights(every=1)
    plain = learn.lr_find(num_it=40, show_plot=False), learn.recorder.losses
    learn.add_cb(average)
    before = values(learn.model)
    assert (learn.lr_find(num_it=40, show_plot=False), learn.recorder.losses) == plain
    learn.validate()
    assert average.average is None and average.done == 0
    assert same(learn.model.state_dict(), before, atol=0)


def test_what_is_kept_after_an_epoch_is_the_average_that_was_validated(tmp_path):
    "fastai's `SaveModelCallback`: the file has the loss that it was chosen by"
    learn = tiny(path=tmp_path)
    fit(learn, cbs=[AverageWeights(decay=.9, every=1), SaveModelCallback(every_epoch=True)], epochs=2)
    shown = [row[1] for row in learn.recorder.values]
    for epoch in (0, 1):
        learn.load(f"model_{epoch}", with_opt=False)
        with learn.no_logging(): assert learn.validate()[0] == pytest.approx(shown[epoch], abs=1e-6)
    assert abs(shown[0] - shown[1]) > 1e-3


@pytest.mark.parametrize("wrong", [{"decay": 0}, {"decay": 1.}, {"every": 0}])
def test_an_average_of_nothing_is_refused(wrong):
    with pytest.raises(InputError, match="Give"): AverageWeights(**wrong)
