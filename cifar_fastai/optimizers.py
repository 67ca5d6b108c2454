"""Optimisers by name, as fastai's Learner takes them.

    Learner(dls, model, opt_func=optimizer("adamw"))
    optimizer("sgd", mom=0.9)                          # torch's own, with Nesterov's momentum
"""
import inspect
from functools import partial

import fastai.optimizer
import torch
from fastai.optimizer import OptimWrapper
from fastai.torch_core import norm_bias_params
from torch import nn

from .errors import unknown

__all__ = ["OPTIMIZERS", "decay_groups", "optimizer"]

TORCH = {n.lower(): getattr(torch.optim, n) for n in
         ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "ASGD")}
FASTAI = {n: getattr(fastai.optimizer, f) for n, f in
          {"ranger": "ranger", "lamb": "Lamb", "larc": "Larc", "qhadam": "QHAdam"}.items()}
OPTIMIZERS = (*TORCH, *FASTAI)


def optimizer(
    opt,               # "sgd" (Nesterov), another of `OPTIMIZERS`, or an `opt_func`, which is given back
    mom: float = 0.9,  # momentum, or beta1
    **kwargs,          # further arguments of the optimiser
):                     # an `opt_func`
    "An optimiser by name, as a fastai `opt_func`: torch's own through `OptimWrapper`, or fastai's"
    if callable(opt): return opt
    if opt in FASTAI: return partial(FASTAI[opt], mom=mom, **kwargs)
    if opt not in TORCH: raise unknown("optimiser", opt, OPTIMIZERS)
    known = inspect.signature(TORCH[opt]).parameters
    given = {"momentum": mom, "betas": (mom, 0.999), "foreach": True} | (
        {"nesterov": mom > 0} if opt == "sgd" else {})
    return partial(OptimWrapper, opt=TORCH[opt], **{k: v for k, v in given.items() if k in known} | kwargs)


def decay_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    "Trainable parameters in two groups: weights, then norms and biases"
    kept = {id(p) for p in norm_bias_params(model, with_bias=True)}
    params = [p for p in model.parameters() if p.requires_grad]
    return [[p for p in params if id(p) not in kept], [p for p in params if id(p) in kept]]
