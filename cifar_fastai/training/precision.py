"""Mixed precision on any device, and the precision that `auto` means on this one.

    learn.add_cb(Precision("bf16"))                      # on a CPU too, where fastai's `to_bf16` does nothing
    choose_precision("auto", torch.device("cpu"))        # "bf16" or "fp32", by its instructions
"""
import logging
from contextlib import AbstractContextManager, nullcontext

import torch
from fastai.callback.core import Callback, CancelStepException
from fastai.callback.fp16 import MixedPrecision
from fastai.torch_core import to_float

from ..errors import InputError, UnknownName
from ..machine import fast_bf16
from .callbacks import inside_fit, loops

__all__ = ["PRECISIONS", "Precision", "ToPrecision", "choose_precision", "precision_of"]

log = logging.getLogger("cifar_fastai")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision(Callback):
    """Run the forward pass and the loss under autocast on whatever device the model is on, as fastai's
    `MixedPrecision` does on CUDA. Weights, gradients and predictions stay float32; fp16 scales its loss."""
    order = MixedPrecision.order

    def __init__(self, precision: str = "bf16"):
        if precision not in PRECISIONS: raise UnknownName("precision", precision, PRECISIONS)
        self.precision, self.dtype, self.entered = precision, PRECISIONS[precision], []

    def context(self, device: torch.device) -> torch.autocast:
        "The autocast that this precision means on `device`; of fp16 on a CPU, which only predicts, none"
        if _only_predicts(self.precision, device): return torch.autocast(device.type, enabled=False)
        return torch.autocast(device.type, self.dtype, enabled=self.dtype is not None)

    def before_fit(self):
        if inside_fit(self.learn): return    # its scaler goes on
        self.cleanup()
        self.device = next(self.model.parameters()).device
        if "fit" in loops(self.learn): _refuse_fp16(self.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def before_batch(self):
        if self.entered and not inside_fit(self.learn): self.cleanup()   # left by a batch that failed
        self.entered.append(self.context(self.device))
        self.entered[-1].__enter__()

    def after_pred(self): self.learn.pred = to_float(self.pred)
    def after_loss(self): self.entered.pop().__exit__(None, None, None)
    def after_cancel_batch(self): self.cleanup()
    def after_fit(self):
        if not inside_fit(self.learn): self.cleanup()

    def before_backward(self):
        if self.scaler.is_enabled(): self.learn.loss_grad = self.scaler.scale(self.loss_grad)

    def before_step(self):
        "Unscale; skip the step where a gradient overflowed (`GradScaler` takes `self` for the optimiser)"
        if not self.scaler.is_enabled(): return
        self.skipped = True
        self.scaler.step(self)
        self.scaler.update()
        if self.skipped: raise CancelStepException

    @property
    def param_groups(self): return self.opt.param_groups
    def step(self, *args, **kwargs): self.skipped = False

    def cleanup(self):
        "Leave the autocast, if one is entered"
        while self.entered: self.after_loss()


class ToPrecision:
    "fastai's `to_fp32`, `to_fp16` and `to_bf16` for a Learner that may have our `Precision`: they replace it"

    def to_fp32(self): return self.remove_cb(Precision).remove_cb(MixedPrecision)

    def to_fp16(self, **kwargs):
        self.remove_cb(Precision)
        return super().to_fp16(**kwargs)

    def to_bf16(self, **kwargs):
        "Ours stays where it is bf16: fastai's does nothing on a CPU"
        if "bf16" in [vars(cb).get("precision") for cb in self.cbs]: return self
        self.remove_cb(Precision)
        return super().to_bf16(**kwargs)


def _only_predicts(precision: str, device: torch.device) -> bool:
    return precision == "fp16" and device.type == "cpu"


def _refuse_fp16(precision: str, device: torch.device) -> None:
    if _only_predicts(precision, device):
        raise InputError("precision fp16 needs a GPU: this CPU was asked for it. Use bf16 or fp32.")


def precision_of(learn) -> AbstractContextManager:
    "The autocast that a Learner computes under, for passes outside of its loop"
    for cb in learn.cbs:
        if isinstance(cb, Precision): return cb.context(next(learn.model.parameters()).device)
    return nullcontext()


def choose_precision(
    precision: str,        # "auto", "fp32", "bf16" or "fp16"
    device: torch.device,
) -> str:                  # "fp32", "bf16" or "fp16"
    """What `auto` means here: bf16 where it is faster, by the instructions of GPU or CPU, else fp16 on CUDA
    and fp32 on a CPU. Raises: InputError"""
    if precision != "auto":
        if precision not in PRECISIONS: raise UnknownName("precision", precision, ["auto", *PRECISIONS])
        _refuse_fp16(precision, device)
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type != "cpu": return "fp32"
    found = fast_bf16()
    log.info("precision   %s: this CPU %s", "bf16" if found else "fp32",
             f"has {found}" if found else "lists no instructions that make bf16 faster")
    return "bf16" if found else "fp32"
