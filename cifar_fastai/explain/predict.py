"""One pass of a Learner over a set, kept on the device until its end.

    probs, targs = tta_probs(learn, views="mirror")    # as `learn.tta`, in two forward passes, not five

It runs inside fastai's own validation loop, so the callbacks that choose precision and memory layout do their
work; those that log, save or draw take it for a `get_preds`. The Recorder, which that empties, is spared."""
from collections.abc import Iterator, Sequence
from copy import copy
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import Datasets, TfmdLists
from fastai.data.transforms import IntToFloatTensor
from fastai.learner import Learner
from fasttransform import compose_tfms
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, UnknownName
from ..plots import as_picture

__all__ = ["VIEWS", "Predictions", "batch_of", "predict_once", "tta_probs", "clean_dl", "inputs_of",
           "decode_pictures"]

VIEWS = {"mirror": 2, "mirror+shift": 6}    # forward passes that each takes


class Predictions(NamedTuple):
    "What one pass over a set gives, in the order of its items, on the CPU"
    probs: Tensor            # (N,C) float32, each row adds up to 1
    targs: Tensor            # (N,) int64
    losses: Tensor           # (N,) float32, by the learner's own loss function
    tta: Tensor | None = None   # (N,C) float32, averaged over views; None where none were asked for


def _views(
    x: Tensor,               # (N,3,H,W)
    kind: str,
) -> Iterator[tuple[float, Tensor]]:
    "Weight and pictures of each view but the plain one; the weights and the plain one's add up to 1"
    own = .5 if kind == "mirror" else .25
    yield own, x.flip(-1)
    if kind == "mirror": return
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")     # Jordan 2024 (airbench): by a pixel, both ways
    for d in (0, 2):
        moved = padded[..., d:d + x.shape[-2], d:d + x.shape[-1]]
        yield from ((.125, moved), (.125, moved.flip(-1)))


class _OnePass(Callback):
    "Keep what the model says on the device, without a copy to the CPU a batch"
    name, order = "gather_preds", -100     # other callbacks look for this name and stay out of the way

    def __init__(self, views, act): self.views, self.act = views, act
    def before_validate(self): self.logits, self.averaged, self.labels = [], [], []

    def after_pred(self):
        logits = self._own(self.pred)
        self.logits.append(logits)
        if self.yb: self.labels.append(self._own(self.yb[-1]))
        if not self.views: return
        mean = self.act(logits.float()) * (.5 if self.views == "mirror" else .25)
        for weight, x in _views(self.xb[0].as_subclass(Tensor), self.views):
            mean += weight * self.act(self._own(self.learn.model(x, *self.xb[1:])).float())
        self.averaged.append(mean)

    def _own(self, x):     # gathered where processes share
        return self.learn.to_detach(x, cpu=False).as_subclass(Tensor)


def _distribution(loss_func, act, x: Tensor) -> Tensor:
    "`act`, or the loss function's own activation, or softmax where that gives no distribution (torch's)"
    if act: return act(x)
    probs = getattr(loss_func, "activation", lambda x: x)(x)
    one = torch.ones_like(probs[:, 0])
    return probs if (probs >= 0).all() and torch.allclose(probs.sum(-1), one, atol=1e-3) else x.softmax(-1)


def predict_once(
    learn: Learner,
    dl,                          # a fastai DataLoader with labels, as `clean_dl` gives
    act=None,                    # activation in place of the loss function's own
    views: str | None = None,    # also average over these `VIEWS`
) -> Predictions:
    """One pass over `dl`.
    Raises: InputError for no pictures, not one label a picture, or outputs that are not finite."""
    if views and views not in VIEWS: raise UnknownName("set of views", views, VIEWS)
    if not len(dl): raise InputError("nothing to predict: no pictures are in this set. Give another.")
    act, rec = partial(_distribution, learn.loss_func, act), getattr(learn, "recorder", Callback())
    cb = _OnePass(views, act)
    was, rec.run = rec.run, False           # its history would be emptied
    try:
        with learn.validation_context(cbs=[cb]), learn.loss_not_reduced():
            learn._do_epoch_validate(dl=dl)
            if not cb.labels:
                raise InputError("the pictures have no labels. Make the DataLoader with with_labels=True.")
            logits, targs = torch.cat(cb.logits), torch.cat(cb.labels)
            losses = learn.loss_func(logits.float(), targs)
    finally:
        rec.run = was
    _check(logits, targs, losses)
    res = [act(logits.float()), targs, losses.float(), *([torch.cat(cb.averaged)] if views else [])]
    return Predictions(*(o.detach().as_subclass(Tensor).cpu() for o in res))


def _check(logits: Tensor, targs: Tensor, losses: Tensor) -> None:
    if logits.ndim != 2 or targs.shape != logits.shape[:1] or losses.shape != targs.shape:
        shapes = f"outputs {tuple(logits.shape)}, labels {tuple(targs.shape)}"
        raise InputError(f"not one label a picture: {shapes}. Give a Learner that classifies pictures.")
    bad = (~logits.isfinite().all(1)).sum().item()
    if bad: raise InputError(f"the model's outputs are not finite for {bad} of {len(logits)} pictures. "
                             "Its training has diverged: take earlier weights or a lower learning rate.")


def tta_probs(
    learn: Learner,
    dl=None,                  # None: the validation set
    views: str = "mirror",    # "mirror": 2 views; "mirror+shift": 6, some moved by a pixel (Jordan 2024)
) -> tuple[Tensor, Tensor]:   # probabilities (N,C), labels (N,), on the CPU in the order of the items
    "Probabilities averaged over views of each picture, as `learn.tta` gives; each batch is loaded once"
    preds = predict_once(learn, clean_dl(learn, dl=dl), views=views)
    return preds.tta, preds.targs


def clean_dl(
    learn: Learner,
    ds_idx: int = 1,    # which of `learn.dls` where `dl` is None
    dl=None,            # a DataLoader
):                      # a new one
    "All the same items in their own order, without augmentation: training pictures as validation sees them"
    dl = learn.dls[ds_idx] if dl is None else dl
    dl = vars(dl).get("dl", dl)            # what fastai's `DistributedDL` wraps
    ds = dl.dataset
    if getattr(ds, "split_idx", None) == 0:
        if isinstance(ds, Datasets): ds = type(ds)(tls=[_unaugmented(tl) for tl in ds.tls], n_inp=ds.n_inp)
        else: ds = _unaugmented(ds)
    return dl.new(dataset=ds, shuffle=False, drop_last=False)


def _unaugmented(ds):
    if isinstance(ds, TfmdLists): return ds._new(ds.items, split_idx=1)
    ds = copy(ds)
    ds.split_idx = 1
    return ds


def batch_of(
    dl,                    # as `clean_dl` gives
    idxs: Sequence[int],   # items
) -> tuple:                # inputs and labels, on the DataLoader's device, as the Learner gets them
    "The batch of chosen items, without another look at the rest"
    idxs = [int(i) for i in idxs]
    return next(iter(dl.new(get_idxs=partial(list, idxs), n=len(idxs), bs=len(idxs), num_workers=0)))


def inputs_of(dl, idxs: Sequence[int]) -> Tensor:
    "The first input of `batch_of`"
    return batch_of(dl, idxs)[0]


def decode_pictures(
    dl,                # whose transforms made the batch
    xb: Tensor,        # (N,3,H,W) as the model gets it
) -> np.ndarray:       # (N,H,W,3) float in 0…1
    "What a batch of inputs looks like: normalisation undone, for our loaders and fastai's own"
    fs = [f for f in dl.after_batch.fs if not isinstance(f, IntToFloatTensor)]   # its way back rounds down
    xb = compose_tfms(xb, tfms=fs, is_enc=False, reverse=True, split_idx=1)
    return np.stack([as_picture(x) for x in xb])
