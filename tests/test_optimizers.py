"""Optimisers by name: each learns, and decays what it is asked to."""
from functools import partial

import numpy as np
import pytest
import torch
from fastai.optimizer import SGD, Adam, OptimWrapper, ranger
from stock import stock_dls
from test_learner import losses
from tiny import tiny_net
from torch import nn

from cifar_fastai.learner import cifar_learner
from cifar_fastai.optimizers import OPTIMIZERS, decay_groups, optimizer

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
@pytest.mark.parametrize("wd_norm_bias", [True, False])
def test_norms_and_biases_decay_only_if_asked_to(learner, opt, wd_norm_bias):
    learn = learner(opt=opt, wd=.5, wd_norm_bias=wd_norm_bias, loss_func=Nothing())
    with torch.no_grad():
        for p in learn.model.parameters(): p.fill_(1)
    learn.fit(1, .1)
    kept = {n for n, p in learn.model.named_parameters() if (p == 1).all()}
    norms = {"layer1.1.weight", "layer1.1.bias", "layer3.1.weight", "layer3.1.bias", "fc.bias"}
    assert kept == (set() if wd_norm_bias else norms)


def test_weight_decay_of_the_default_is_torchs():
    learn = cifar_learner(stock_dls(), tiny_net, precision="fp32")
    learn.create_opt()
    assert isinstance(learn.opt.opt, torch.optim.SGD)
    group, = learn.opt.opt.param_groups
    assert (group["momentum"], group["nesterov"], group["foreach"]) == (.9, True, True)


def test_momentum_is_the_first_beta_where_there_are_betas_and_more_can_be_given():
    params = list(tiny_net(4).parameters())
    assert optimizer("adam", mom=.8)(params).opt.param_groups[0]["betas"] == (.8, .999)
    assert optimizer("adamw", betas=(.7, .9))(params).opt.param_groups[0]["betas"] == (.7, .9)
    assert optimizer("sgd", mom=0.)(params).opt.param_groups[0]["nesterov"] is False
    assert optimizer(SGD) is SGD


def test_every_parameter_that_trains_is_in_one_group():
    net = tiny_net(4)
    net.layer1[0].weight.requires_grad_(False)
    weights, others = decay_groups(net)
    assert {id(p) for p in [*weights, *others]} == {id(p) for p in net.parameters() if p.requires_grad}
    assert all(p.ndim > 1 for p in weights) and all(p.ndim == 1 for p in others) and len(others) == 5
