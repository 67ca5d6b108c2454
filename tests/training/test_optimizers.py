"""Optimisers by name: each learns, and decays what it is asked to."""
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from batch_losses import losses
from fastai.callback.core import Callback, CancelFitException
from fastai.optimizer import SGD, Adam, OptimWrapper, ranger
from stock import stock_dls
from tiny import tiny_net
from torch import nn

from cifar_fastai.errors import InputError
from cifar_fastai.training.learner import cifar_learner
from cifar_fastai.training.optimizers import OPTIMIZERS, TorchOptimizer, optimizer

ADAMW = partial(OptimWrapper, opt=torch.optim.AdamW)


@pytest.mark.parametrize("opt", [SGD, Adam, ranger, ADAMW, *OPTIMIZERS])
def test_any_optimiser_learns(learner, opt):
    learn = learner(opt=opt, lr=.1 if opt in ("adadelta", "adagrad", "asgd", "larc", "sgd", SGD) else .02)
    seen = losses(learn, lambda learn: learn.fit(4))
    assert np.mean(seen[-5:]) < np.mean(seen[:5]) - .005, "the loss falls"


class Nothing(nn.Module):
    "A loss whose gradient is zero everywhere: what moves then is weight decay"
    def forward(self, x, y): return 0 * x.sum()


@pytest.mark.parametrize("opt", ["sgd", "adamw", SGD, "lamb"])
@pytest.mark.parametrize("wd_norm_bias, norm", [(True, "bn"), (False, "bn"), (False, "gn")])
def test_norms_and_biases_decay_only_if_asked_to(learner, opt, wd_norm_bias, norm):
    learn = learner(opt=opt, wd=.5, wd_norm_bias=wd_norm_bias, norm=norm, loss_func=Nothing())
    with torch.no_grad():
        for p in learn.model.parameters(): p.fill_(1)
    learn.fit(1, .1)
    kept = {n for n, p in learn.model.named_parameters() if (p == 1).all()}
    norms = {"layer1.1.weight", "layer1.1.bias", "layer3.1.weight", "layer3.1.bias", "fc.bias"}
    assert kept == (set() if wd_norm_bias else norms)


def test_weight_decay_of_the_default_is_torchs():
    learn = cifar_learner(stock_dls(), tiny_net, precision="fp32")
    learn.create_opt()
    learn.opt.set_hypers(wd=learn.wd)
    assert isinstance(learn.opt.opt, torch.optim.SGD)
    for group in learn.opt.opt.param_groups:
        assert (group["weight_decay"], group["momentum"], group["nesterov"], group["foreach"]) == (
            5e-4, .9, True, True)


def test_momentum_is_the_first_beta_where_there_are_betas_and_more_can_be_given():
    params = list(tiny_net(4).parameters())
    assert optimizer("adam", mom=.8)(params).opt.param_groups[0]["betas"] == (.8, .999)
    assert optimizer("adamw", betas=(.7, .9))(params).opt.param_groups[0]["betas"] == (.7, .9)
    assert optimizer("sgd", mom=0.)(params).opt.param_groups[0]["nesterov"] is False
    assert optimizer(SGD) is SGD


def layers(learn) -> list[set]:
    "Names of the parameters of each layer group"
    names = {id(p): n for n, p in learn.model.named_parameters()}
    return [{names[id(p)] for p in group} for group in learn.opt.param_lists]


EARLY = {"layer1.0.weight", "layer1.1.weight", "layer1.1.bias"}
LATE = {"layer3.0.weight", "layer3.1.weight", "layer3.1.bias"}
HEAD = {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("opt", ["sgd", "adamw", ADAMW, SGD])
@pytest.mark.parametrize("wd_norm_bias", [True, False])
def test_what_does_not_decay_stays_in_its_layer_group(learner, opt, wd_norm_bias):
    learn = learner(opt=opt, wd_norm_bias=wd_norm_bias)
    learn.create_opt()
    assert layers(learn) == [EARLY, LATE, HEAD]
    learn.opt.set_hyper("lr", slice(1e-4, 1e-2))
    assert [h["lr"] for h in learn.opt.hypers] == pytest.approx([1e-4, 1e-3, 1e-2])
    if isinstance(learn.opt, TorchOptimizer):
        rates = {id(p): g["lr"] for g in learn.opt.opt.param_groups for p in g["params"]}
        for params, hypers in zip(learn.opt.param_lists, learn.opt.hypers):
            assert {rates[id(p)] for p in params} == {hypers["lr"]}
    learn.freeze()
    frozen = {n for n, p in learn.model.named_parameters() if not p.requires_grad}
    assert frozen == {"layer1.0.weight", "layer3.0.weight"}, "norms train on (`train_bn`)"


def test_decay_can_be_set_and_reaches_only_what_decays(learner):
    learn = learner(wd_norm_bias=False, wd=.3)
    learn.create_opt()
    learn.opt.set_hypers(wd=[.1, .2, .4])
    decays = {id(p): g["weight_decay"] for g in learn.opt.opt.param_groups for p in g["params"]}
    found = {n: decays[id(p)] for n, p in learn.model.named_parameters()}
    assert found == dict.fromkeys(found, 0.) | {
        "layer1.0.weight": .1, "layer3.0.weight": .2, "fc.weight": .4}


def test_an_optimiser_that_cannot_spare_norms_is_refused(learner):
    learn = learner(opt=lambda params, lr: OptimWrapper(params, torch.optim.SGD, lr=lr), wd_norm_bias=False)
    with pytest.raises(InputError, match="do nothing to fastai's optimisers"): learn.fit(1)


def test_groups_of_layers_train_like_one_group(learner):
    "Byte for byte: groups only tell which rate is whose"
    def end(**kwargs):
        learn = learner(**kwargs)
        learn.fit_one_cycle(2, .1)
        return [p.detach().numpy().tobytes() for p in learn.model.parameters()]
    assert end() == end(splitter=lambda m: list(m.parameters()))
    assert end() != end(wd_norm_bias=False), "the control can fail"


def test_hypers_are_numbers_that_can_be_set_and_copied():
    opt = optimizer("sgd")(list(tiny_net(4).parameters()), lr=.1)
    assert dict(opt.hypers[0]) == {"lr": .1, "mom": .9, "dampening": 0, "wd": 0}
    copied = deepcopy(opt.hypers)
    opt.hypers[0]["lr"] = .02
    assert opt.opt.param_groups[0]["lr"] == opt.hypers[0]["lr"] == .02 and copied[0]["lr"] == .1


def test_parameters_are_put_back_in_the_groups_they_came_from():
    params = list(tiny_net(4).parameters())
    opt = optimizer("sgd")([params[:3], params[3:]], lr=.1)
    opt.set_apart([p for p in params if p.ndim == 1], wd=0)
    opt.set_apart([params[-1]], lr=3)
    before = [g["params"] for g in opt.opt.param_groups]
    opt.param_lists = opt.param_lists
    assert [list(map(id, g["params"])) for g in opt.opt.param_groups] == [list(map(id, ps)) for ps in before]


def rates(learn):
    "Parameter → its rate and its decay, as torch has them"
    of = {id(p): (g["lr"], g["weight_decay"]) for g in learn.opt.opt.param_groups for p in g["params"]}
    return {n: of[id(p)] for n, p in learn.model.named_parameters()}


def test_biases_and_head_learn_at_rates_of_their_own_and_keep_their_product_with_the_decay(learner):
    learn = learner(wd=.01, bias_lr=64., head_lr=.5)
    learn.lr = .1
    learn.create_opt()
    learn.opt.set_hypers(lr=.2, wd=.01)
    found = rates(learn)
    assert found["layer1.1.bias"] == found["layer3.1.bias"] == pytest.approx((12.8, .01 / 64))
    assert found["fc.weight"] == found["fc.bias"] == pytest.approx((.1, .02))
    assert found["layer1.0.weight"] == found["layer1.1.weight"] == pytest.approx((.2, .01))


def test_the_ratio_of_the_rates_holds_at_every_step_of_a_schedule(learner):
    seen = []

    class Rates(Callback):
        order = 100
        def before_step(self): seen.append(rates(self.learn))
    learner(bias_lr=8., head_lr=.25).fit_one_cycle(2, .05, cbs=Rates())
    kernel, bias, head = ([s[n][0] for s in seen] for n in ("layer1.0.weight", "layer1.1.bias", "fc.weight"))
    assert bias == pytest.approx([8 * r for r in kernel]) and head == pytest.approx([r / 4 for r in kernel])
    assert len({round(r, 9) for r in kernel}) > 5, "the schedule moved"


def test_biases_that_do_not_decay_stay_so_at_a_rate_of_their_own(learner):
    learn = learner(wd=.01, bias_lr=64., head_lr=.5, wd_norm_bias=False)
    learn.create_opt()
    learn.opt.set_hypers(lr=.2, wd=.01)
    found = rates(learn)
    assert found["fc.bias"] == (.1, 0) and found["fc.weight"] == pytest.approx((.1, .02))
    assert found["layer1.1.bias"] == pytest.approx((12.8, 0)) and found["layer1.1.weight"] == (.2, 0)
    assert found["layer1.0.weight"] == (.2, .01)


def test_one_step_moves_biases_by_their_own_rate(learner):
    "Plain gradient descent: what a step changes is rate × gradient"
    def moved(**kwargs):
        learn = learner(aug=None, wd=0., opt="sgd", mom=0., **kwargs)
        before = {n: p.detach().clone() for n, p in learn.model.named_parameters()}

        class One(Callback):
            order = 999
            def after_batch(self): raise CancelFitException
        learn.fit(1, .01, cbs=One())
        return {n: p.detach() - before[n] for n, p in learn.model.named_parameters()}
    plain, fast = moved(), moved(bias_lr=16.)
    assert torch.allclose(fast["layer1.1.bias"], 16 * plain["layer1.1.bias"], rtol=1e-4)
    assert torch.equal(fast["layer1.0.weight"], plain["layer1.0.weight"]) and plain["layer1.1.bias"].any()
    assert torch.equal(fast["fc.bias"], plain["fc.bias"]), "the head is no norm"
