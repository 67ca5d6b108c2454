"""A Learner like fastai's, that trains like a loop written by hand and cleans up after itself.

The golden losses are made anew, after a change that is meant to change them, by
    python tests/training/test_learner.py
"""
import json
import math
import random
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_losses import losses
from fastai.callback.core import Callback, CancelBatchException, CancelFitException
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from stock import stock_dls
from tiny import tiny_net
from torch import nn
from torch.nn import functional as F

from cifar_fastai.errors import InputError
from cifar_fastai.loaders.block import cifar_block, cifar_dataloaders
from cifar_fastai.loaders.workers import LoaderError
from cifar_fastai.training.callbacks import EpochSeed
from cifar_fastai.training.learner import cifar_learner

HELPERS = Path(__file__).parents[1] / "helpers"

GOLDEN = HELPERS / "golden_losses.json"


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


# the same as a loop written by hand

def by_hand(learn, epochs, lr, nesterov=True):
    "The losses of a plain torch loop over the same batches, from the same weights"
    net, seen = deepcopy(learn.model).train(), []
    opt = torch.optim.SGD(net.parameters(), lr, momentum=.9, weight_decay=5e-4, nesterov=nesterov)
    for epoch in range(epochs):
        learn.dls.train.set_epoch(epoch)
        for x, y in learn.dls.train:
            loss = F.cross_entropy(net(x.as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor))
            loss.backward()
            opt.step()
            opt.zero_grad()
            seen.append(loss.item())
    return seen


def test_it_trains_like_a_loop_written_by_hand(learner):
    learn = learner(aug="pad_crop_flip_cutout")
    expected, other = by_hand(learn, 2, .1), by_hand(learn, 2, .1, nesterov=False)
    assert losses(learn, lambda learn: learn.fit(2, .1)) == pytest.approx(expected, abs=1e-5)
    assert other != pytest.approx(expected, abs=1e-3), "the control can fail"


AS_FASTAI = {"anneal": "cos", "div_final": 1e5}    # without these: as recipes have it


def golden(learn):
    return losses(learn, lambda learn: learn.fit_one_cycle(4, .1, **AS_FASTAI))


def test_F28_twenty_losses_are_those_on_record(learner):
    recorded = json.loads(GOLDEN.read_text())
    assert golden(learner(aug="pad_crop_flip_cutout")) == pytest.approx(recorded, abs=1e-5)


def test_losses_of_another_seed_are_others(learner):
    recorded = json.loads(GOLDEN.read_text())
    assert len(recorded) == 20
    assert golden(learner(aug="pad_crop_flip_cutout", seed=1)) != pytest.approx(recorded, abs=1e-3)


# what is refused

@pytest.mark.parametrize("kwargs, says", [
    ({"opt": "adm"}, "unknown optimiser 'adm'. Did you mean adam"),
    ({"arch": "resnet81"}, "Did you mean resnet18"), ({"arch": "resnet18", "norm": "batch"}, "unknown norm"),
    ({"n_out": 3}, "the head has 3 outputs but the data has 4 classes"),
    ({"arch": tiny_net(3)}, "the head has 3 outputs but the data has 4 classes"),
    ({"arch": tiny_net(10)}, "the head has 10 outputs but the data has 4 classes"),
    ({"precision": "bf61"}, "Did you mean bf16")])
def test_a_wrong_argument_is_refused_by_name(learner, kwargs, says):
    with pytest.raises(InputError, match=says): learner(**kwargs)


def test_further_arguments_of_fastais_learner_are_taken(learner):
    learn = learner(moms=(.95, .85, .95), wd=.01)
    learn.fit_one_cycle(1, .1)
    assert learn.moms == (.95, .85, .95) and .85 <= min(learn.recorder.hps["mom"]) < .88
    plain = learner(mom=.8)
    assert plain.moms == (.8, .8, .8)


def test_an_epoch_without_a_batch_has_no_loss(learnable):
    dls = cifar_block(learnable, None).dataloaders(learnable, bs=512, device="cpu")
    learn = cifar_learner(dls, tiny_net, precision="fp32")
    with learn.no_logging(): learn.fit(1)
    assert math.isnan(learn.recorder.values[-1][0]) and learn.recorder.values[-1][1] > 0


class TwoHeads(nn.Module):
    "Its head is registered before its body"
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(8, 4), nn.Sequential(nn.Flatten(), nn.Linear(768, 8))
    def forward(self, x): return self.head(self.body(x))


def test_a_net_is_not_refused_for_the_order_of_its_layers_or_for_a_loss_of_its_own(learner):
    learner(arch=TwoHeads()).fit(1)
    learner(arch=tiny_net(3), loss_func=lambda out, y: F.mse_loss(out[:, 0], y.float())).validate()


def test_momenta_may_be_an_array_as_in_fastai(learner):
    learn = learner()
    learn.fit_one_cycle(1, .1, moms=np.array([.95, .85, .95]))
    assert .85 <= min(learn.recorder.hps["mom"]) < .88


# schedule

def stock(dls):
    learn = Learner(dls, tiny_net(4), CrossEntropyLossFlat(), metrics=accuracy, moms=(.9, .9, .9),
                    opt_func=partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9, nesterov=True))
    return learn.remove_cb(learn.progress)


@pytest.mark.parametrize("kwargs", [{}, {"div": 10, "div_final": 100, "pct_start": .4},
                                    {"moms": (.95, .85, .95)}])
def test_one_cycle_is_fastais(learner, kwargs):
    ours = learner()
    theirs = stock(ours.dls)
    for learn in (ours, theirs):
        own = AS_FASTAI if learn is ours else {}
        with learn.no_logging(): learn.fit_one_cycle(2, .2, **own | kwargs)
    assert ours.recorder.hps["lr"] == pytest.approx(theirs.recorder.hps["lr"])
    assert ours.recorder.hps["mom"] == pytest.approx(theirs.recorder.hps["mom"])
    assert set(ours.recorder.hps["mom"]) == {.9} or kwargs.get("moms"), "constant unless asked otherwise"


def test_one_cycle_goes_up_and_down_in_straight_lines(learner):
    learn = learner()
    learn.fit_one_cycle(2, 1., div=5, div_final=10, pct_start=.4)
    assert learn.recorder.hps["lr"] == pytest.approx([.2, .4, .6, .8, 1., .85, .7, .55, .4, .25])
    with pytest.raises(InputError, match="Did you mean linear"): learn.fit_one_cycle(1, .1, anneal="liner")


# callbacks as in fastai

EVENTS = ["before_fit", "before_epoch", "before_train", "before_batch", "after_pred", "after_loss",
          "before_backward", "after_backward", "before_step", "after_step", "after_batch",
          "after_cancel_batch", "after_train", "before_validate", "after_validate", "after_epoch",
          "after_cancel_fit", "after_fit"]


def witness(log, name, **attrs):
    "A callback that notes each event"
    cb = Callback(**{e: partial(lambda self, e: log.append((name, e)), e=e) for e in EVENTS})
    for k, v in attrs.items(): setattr(cb, k, v)
    return cb


class Sleeper(Callback):
    "Stays out of each fit but the second, as many of fastai's own callbacks do"
    def __init__(self, log): self.log, self.fits = log, 0
    def before_fit(self): self.fits, self.run = self.fits + 1, self.fits == 1
    def after_batch(self): self.log.append("awake")


class Cancels(Callback):
    def before_batch(self):
        if self.iter == 2 and self.training: raise CancelBatchException
    def after_epoch(self):
        if self.epoch == 1: raise CancelFitException


def events(learn):
    log = []
    cbs = [witness(log, "last", order=90), witness(log, "first", order=-90),
           witness(log, "train", run_valid=False), witness(log, "valid", run_train=False),
           witness(log, "never", run=False), Sleeper(log), Cancels()]
    with learn.added_cbs(cbs), learn.no_logging():
        for _ in range(2): learn.fit(3)
        learn.validate()
        assert all(cb.run for cb in learn.cbs), "afterwards all run again"
    return log


def test_callbacks_are_called_in_the_order_and_under_the_conditions_of_fastai(learner):
    ours = learner()
    log = events(ours)
    assert log == events(stock(ours.dls)) and "awake" in log and len(log) > 500


def test_a_callback_that_ends_a_fit_with_an_error_leaves_all_ready_to_run_again(learner):
    learn, log = learner(), []
    def fail(self): raise InputError("enough")
    with pytest.raises(InputError, match="^enough$"):
        learn.fit(1, cbs=[witness(log, "a", run=False), Callback(after_fit=fail)])
    sleeper, late = witness(log, "sleeper"), Callback(after_fit=fail)
    late.order = 5
    learn.add_cb(sleeper)
    with pytest.raises(InputError):
        learn.fit(1, cbs=[Callback(before_epoch=lambda self: setattr(sleeper, "run", False)), late])
    assert sleeper.run


# cleaning up

class Interrupt(Callback):
    "Ctrl-C in the third batch, where autocast is on"
    order = 100
    def __init__(self, error=KeyboardInterrupt): self.error = error
    def after_pred(self):
        if self.iter == 2: raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_fit_leaves_nothing_behind(learner, error):
    learn = learner(precision="bf16")
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), learn.logger
    with pytest.raises(error): learn.fit(1, cbs=Interrupt(error))
    assert not torch.is_autocast_enabled("cpu") and learn.training is False
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert learn.logger is before[2] and all(cb.run for cb in learn.cbs)
    assert not any(isinstance(cb, Interrupt) for cb in learn.cbs)
    learn.fit(1)


def test_an_interrupted_validation_leaves_no_autocast(learner):
    learn = learner(precision="bf16")
    def stop(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learn.validate(cbs=Callback(after_pred=stop))
    assert not torch.is_autocast_enabled("cpu")


def test_a_dead_worker_is_named_wherever_torch_reports_it(learner):
    def die(self):
        if self.iter == 3: raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(LoaderError, match="batch 3 of epoch 0: DataLoader worker .pid 7. is killed"):
        learner().fit(1, cbs=Callback(after_backward=die))


# draws

class Dropping(nn.Sequential):
    def __init__(self, n_out=4, n_in=3, norm="bn"):
        super().__init__(tiny_net(n_out, n_in, norm), nn.Dropout(.3))


def scramble():
    for seed in (random.seed, np.random.seed, torch.manual_seed): seed(999)


def test_four_epochs_are_two_and_two_whatever_happens_between(learner):
    whole = losses(learner(arch=Dropping), lambda learn: learn.fit(4, .05))
    learn = learner(arch=Dropping)
    first = losses(learn, lambda learn: learn.fit(2, .05))
    learn.validate(), learn.tta(), learn.get_preds(), learn.get_preds(ds_idx=0), learn.dls.one_batch()
    learn.predict(np.zeros((16, 16, 3), np.uint8))
    scramble()
    assert first + losses(learn, lambda learn: learn.fit(2, .05)) == whole


def test_control_starting_to_count_again_shows_the_first_epochs_twice(learner):
    learn = learner(arch=Dropping)
    whole = losses(learner(arch=Dropping), lambda learn: learn.fit(4, .05))
    first = losses(learn, lambda learn: learn.fit(2, .05))
    learn.epoch_seed.done = 0
    assert first + losses(learn, lambda learn: learn.fit(2, .05)) != whole


def test_a_fit_leaves_the_generators_as_they_were(learner):
    learn = learner(arch=Dropping)
    scramble()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    learn.fit(1)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_the_seed_alone_decides_the_first_weights(learnable):
    def made(seed):
        scramble()
        before = torch.get_rng_state()
        dls = cifar_dataloaders(learnable, 32, seed=seed, num_workers=0, device="cpu")
        learn = cifar_learner(dls, tiny_net, precision="fp32")
        assert torch.equal(torch.get_rng_state(), before), "without a trace"
        return weights(learn)
    assert torch.equal(made(0), made(0)) and not torch.equal(made(0), made(1))


# nets and data

@pytest.mark.parametrize("arch", ["tiny", tiny_net, lambda **kwargs: tiny_net(**kwargs), tiny_net(4)])
def test_a_net_is_taken_by_name_as_a_function_or_built(learner, tiny_registered, arch):
    learn = learner(arch=arch)
    assert learn.model.fc.out_features == 4 and learn.model is not None
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in learn.model.modules()
               if isinstance(m, nn.Conv2d))


def test_it_takes_stock_loaders_of_pictures(learner):
    dls = stock_dls()
    learn = learner(dls)
    learn.fit(1)
    assert learn.recorder.values[0][0] > 0 and learn.get_preds()[0].shape == (23, 4)
    assert isinstance(next(cb for cb in learn.cbs if cb.name == "epoch_seed"), EpochSeed)


def test_label_smoothing_is_torchs(learner):
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    smooth = F.cross_entropy(x, y, label_smoothing=.2)
    assert learner(smoothing=.2).loss_func(x, y).item() == pytest.approx(smooth.item())
    assert learner().loss_func(x, y).item() != pytest.approx(smooth.item())


if __name__ == "__main__":
    import sys
    sys.path.insert(0, str(HELPERS))
    from fastcore.basics import noop
    from tiny import learnable
    torch.set_num_threads(1)
    dls = cifar_dataloaders(learnable(), 32, "pad_crop_flip_cutout", num_workers=0, device="cpu")
    learn = cifar_learner(dls, tiny_net, precision="fp32")
    learn.logger = noop
    GOLDEN.write_text(json.dumps(golden(learn), indent=1) + "\n")


@pytest.mark.parametrize("loss", [CrossEntropyLossFlat(), nn.CrossEntropyLoss(), F.nll_loss])
def test_smoothing_that_a_given_loss_function_would_drop_is_refused(learner, loss):
    with pytest.raises(InputError, match="smoothing=0.3 does nothing to a loss function that is given"):
        learner(loss_func=loss, smoothing=.3)
