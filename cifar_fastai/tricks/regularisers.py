"""Regularisers as callbacks: L1 penalty, gradient clipping, MixUp and CutMix.

    learn.fit_one_cycle(24, 0.4, cbs=[L1Loss(1e-5), ClipGradients(value=0.1), mixing(mixup=0.4)])
"""
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation
from torch import nn

from ..errors import InputError, UnknownName
from ..training import Precision

__all__ = ["ClipGradients", "L1Loss", "mixing"]


class L1Loss(Callback):
    """Add an L1 penalty (Tibshirani 1996) on the weights, not on norms and biases, to what is differentiated;
    the loss that is shown stays the plain one. By the rule "sum" the penalty is `factor` · Σ|w|, its gradient
    `factor` · sign(w).

    By the rule "scaled" each tensor's share is multiplied by its own mean |w|, taken as a constant. The
    gradient is then `factor` · mean|w| · sign(w): the weights of a tensor are pulled as hard, on average, as
    by a weight decay of `factor`, however many they are and whatever their size. Where they measure 0.02, as
    they do in these nets, that is a 50th of the rule "sum"."""
    order = GradientAccumulation.order - 1   # of which each batch has its share; autocast ends later

    def __init__(
        self,
        factor: float,
        rule: str = "sum",        # "sum" or "scaled"
    ):
        if rule not in ("sum", "scaled"): raise UnknownName("rule of the L1 penalty", rule, ["sum", "scaled"])
        self.factor, self.rule = factor, rule

    def after_loss(self):
        if not self.training: return
        sizes = [p.float().abs() for p in self.model.parameters() if p.ndim > 1 and p.requires_grad]
        parts = [a.sum() * a.detach().mean() if self.rule == "scaled" else a.sum() for a in sizes]
        self.learn.loss_grad = self.loss_grad + self.factor * torch.stack(parts).sum()


class ClipGradients(Callback):
    """Clip gradients by value, then by norm, just before the step: after fp16's scale was taken off, before
    `StopOnNonFinite` looks at them."""
    order, run_valid = Precision.order + 5, False

    def __init__(
        self,
        value: float | None = None,   # each element into ±value
        norm: float | None = None,    # all of them together to this length (Pascanu et al. 2013)
    ):
        for name, limit in (("value", value), ("norm", norm)):
            if limit is not None and not limit > 0:
                raise InputError(f"clipping by {name}={limit}. Give a number above 0.")
        self.value, self.norm = value, norm

    def before_step(self):
        params = [p for group in self.opt.param_lists for p in group]
        if self.value is not None: nn.utils.clip_grad_value_(params, self.value)
        if self.norm is not None: nn.utils.clip_grad_norm_(params, self.norm)


class _GivesBack:
    "Puts the loss function back also where a fit is interrupted, which fastai's classes do not"
    def before_train(self):
        self.old_lf = None
        super().before_train()

    def cleanup(self):
        if getattr(self, "old_lf", None) is not None: self.learn.loss_func = self.old_lf


class _MixUp(_GivesBack, MixUp): "fastai's `MixUp`"
class _CutMix(_GivesBack, CutMix): "fastai's `CutMix`"


def mixing(
    mixup: float = 0.0,    # α of the Beta distribution of the shares (Zhang et al. 2018); 0: off
    cutmix: float = 0.0,   # the same of the areas (Yun et al. 2019); 0: off
) -> Callback | None:
    """fastai's `MixUp` or `CutMix`. They draw from torch's generator alone, which `EpochSeed` sets by (seed,
    epoch, batch). Raises: InputError where both are asked for."""
    if mixup and cutmix: raise InputError(f"mixup={mixup} and cutmix={cutmix} were given. Give one of them.")
    return _MixUp(mixup) if mixup else _CutMix(cutmix) if cutmix else None
