"""Which training pictures a net takes for nearly the same as a mistake: the nearest by its last features.

    recorder = FeatureRecorder()                     # a callback: the last epoch's features, at no cost
    learn.fit_one_cycle(20, .1, cbs=recorder)
    nearest(features_of(learn, dl, mistakes), recorder.features, 5)
"""
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.torch_core import get_model
from torch import Tensor, nn

from ..gradcam import undisturbed
from ..models import last_linear
from ..processes import summed, world
from ..training import fitting, precision_of

__all__ = ["FeatureRecorder", "features_of", "nearest"]


@contextmanager
def _watched(model: nn.Module):
    "The list into which each forward pass puts its features"
    kept, layer = [], last_linear(model)
    hook = layer and layer.register_forward_pre_hook(lambda m, args: kept.append(args[0].detach().half()))
    try: yield kept
    finally:
        if hook: hook.remove()


class FeatureRecorder(Callback):
    """Keep the features of every training picture in the last epoch: as augmented, and of a net that still
    learns, but by then hardly. For a page about a net that was just trained; another pass over the training
    set would take minutes. None after a resume within that epoch, whose first pictures are not seen again"""
    remove_on_fetch = True

    def __init__(self): self.features, self.watch = None, None     # (N,D) half; zeros: a picture not seen

    def before_fit(self): self.cleanup()

    def before_train(self):
        "In the last epoch of a loader that tells its order"
        last = fitting(self.learn) and self.epoch == self.n_epoch - 1
        if not last or not hasattr(self.dl, "places"): return
        self.places = np.asarray(self.dl.get_idxs())
        self.watch = _watched(get_model(self.learn.model))
        self.kept = self.watch.__enter__()

    def after_pred(self):
        if self.watch is None or not self.training or not self.kept: return
        if self.features is None and self.iter:
            self.cleanup()
            return
        found = self.kept[-1]
        self.kept.clear()
        if self.features is None:
            self.features = found.new_zeros(len(self.dl.dataset), found.shape[1])
        at = self.places[self.dl.places(self.iter)[0]:][:len(found)]
        self.features[torch.as_tensor(at, device=found.device)] = found

    def after_train(self):
        "Of processes that train together, each has seen a part"
        self.cleanup()
        if self.features is not None and world() > 1: self.features = summed(self.features.float()).half()

    def cleanup(self):
        "Take the hook off, also where an epoch is interrupted"
        if self.watch is not None: self.watch.__exit__(None, None, None)
        self.watch = None


def features_of(learn, batches) -> Tensor:      # (N,D) half, on the CPU
    "The features of the pictures in `batches`, as the net predicts them"
    model = get_model(learn.model)
    device = next(model.parameters()).device
    with undisturbed(model, device), _watched(model) as kept, torch.no_grad(), precision_of(learn):
        for batch in batches: model(batch[0].as_subclass(Tensor).to(device))
    return torch.cat(kept).cpu() if kept else torch.zeros(0, 0)


def nearest(
    queries: Tensor,     # (Q,D)
    known: Tensor,       # (N,D); rows of zeros are nobody's neighbours
    k: int = 5,
) -> tuple[Tensor, Tensor]:     # (Q,k) places in `known` and cosines, the nearest first
    "By the angle between features"
    rows = F.normalize(known.float(), dim=1)
    empty, found = (known == 0).all(1), []
    for part in F.normalize(queries.float(), dim=1).split(256):
        found.append((part @ rows.T).masked_fill(empty, -2).topk(min(k, len(known)), 1))
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])
