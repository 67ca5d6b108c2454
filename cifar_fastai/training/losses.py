"""Losses by name, as fastai losses with their activation and decoding.

    learn = cifar_learner(dls, my_net, loss_func="nll")      # a net that ends in log_softmax
"""
import torch
from fastai.losses import BaseLoss, CrossEntropyLossFlat
from torch import Tensor, nn

from ..errors import InputError, UnknownName

__all__ = ["CrossEntropyLoss", "LOSSES", "NLLLossFlat", "create_loss"]


class NLLLossFlat(BaseLoss):
    """Negative log-likelihood of a net that ends in log_softmax; of logits cross-entropy is the same.
    Raises: InputError at the first batch where the outputs are no logarithms of probabilities."""
    y_int, checked = True, False

    def __init__(self, *args, axis: int = -1, **kwargs):
        super().__init__(nn.NLLLoss, *args, axis=axis, **kwargs)

    def __call__(self, inp: Tensor, targ: Tensor, **kwargs):
        if not self.checked: self._check(inp.detach())
        return super().__call__(inp, targ, **kwargs)

    def _check(self, logs: Tensor):
        total = logs.float().exp().sum(self.axis)
        if not torch.allclose(total, torch.ones_like(total), atol=0.02):
            raise InputError("loss nll needs a net that ends in log_softmax: the probabilities of a picture "
                             f"sum to {total.flatten()[0]:.3g}, not to 1. Use loss ce, which takes logits.")
        self.checked = True

    def decodes(self, x: Tensor) -> Tensor: return x.argmax(dim=self.axis)
    def activation(self, x: Tensor) -> Tensor: return x.exp()


class CrossEntropyLoss(CrossEntropyLossFlat):
    "fastai's cross-entropy, on plain tensors for (N,C) and (N,): flattening and tensor class cost time"

    def __call__(self, inp: Tensor, targ: Tensor, **kwargs):
        if inp.ndim != 2 or targ.ndim != 1: return super().__call__(inp, targ, **kwargs)
        return self.func(inp.as_subclass(Tensor), targ.as_subclass(Tensor).long(), **kwargs)


LOSSES = {"ce": CrossEntropyLoss, "nll": NLLLossFlat}


def create_loss(
    loss="ce",                # a name of `LOSSES`, None (the same as "ce"), or any loss function
    smoothing: float = 0.0,   # label smoothing, 0…1 (Szegedy et al. 2016)
):
    "A loss by name. Raises: InputError for an unknown name, or label smoothing where the loss has none"
    loss = "ce" if loss is None else loss
    if smoothing and not isinstance(loss, str):
        raise InputError(f"smoothing={smoothing:g} does nothing to a loss function that is given. Give it "
                         "its own label_smoothing=, or its name: ce or nll.")
    if not isinstance(loss, str): return loss
    if loss not in LOSSES: raise UnknownName("loss", loss, LOSSES)
    if loss == "ce": return CrossEntropyLoss(label_smoothing=smoothing)
    if smoothing: raise InputError(f"loss nll has no smoothing, found {smoothing}. Give 0, or use loss ce.")
    return NLLLossFlat()
