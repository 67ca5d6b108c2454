"""Tricks: what a recipe adds to a plain fit, each as a callback that any fastai `Learner` can have.

In: numbers of a recipe's parts, or your own. Out: callbacks for `learn.fit_one_cycle(..., cbs=[...])`.

Read regularisers (L1, clipping, MixUp and CutMix), averaging (weights averaged over the last steps),
whitening (a first convolution that starts from the statistics of pictures) and compiled (`torch.compile`),
in any order.
"""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "averaging": ["AverageWeights"], "compiled": ["Compiled"], "regularisers": ["ClipGradients", "L1Loss",
    "mixing"], "whitening": ["whiten_stem"]})
