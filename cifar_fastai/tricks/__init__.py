"""Tricks: what a recipe adds to a plain fit, each as a callback that any fastai `Learner` can have.

In: numbers of a recipe's parts, or your own. Out: callbacks for `learn.fit_one_cycle(..., cbs=[...])`.

Read regularisers (L1, clipping, MixUp and CutMix), averaging (weights averaged over the last steps),
whitening (a first convolution that starts from the statistics of pictures) and compiled (`torch.compile`),
in any order.
"""
from .averaging import AverageWeights
from .compiled import Compiled
from .regularisers import ClipGradients, L1Loss, mixing
from .whitening import whiten_stem

__all__ = ["AverageWeights", "ClipGradients", "Compiled", "L1Loss", "mixing", "whiten_stem"]
