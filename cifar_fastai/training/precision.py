"""Mixed precision on any device, and which precision trains fastest here.

    learn.add_cb(Precision("bf16"))                      # on a CPU too, where fastai's `to_bf16` does nothing
    choose_precision("auto", torch.device("cpu"))        # "bf16" or "fp32", by its instructions
"""
import json
import logging
import os
import time
from pathlib import Path
from statistics import median

import torch
from fastai.callback.core import Callback, CancelStepException
from fastai.callback.fp16 import MixedPrecision
from fastai.torch_core import to_float
from torch import nn

from ..errors import InputError, UnknownName
from ..files import save_atomically
from ..machine import BF16_FLAGS, cache_dir, cpu_flags, machine_name
from .callbacks import inside_fit

__all__ = ["PRECISIONS", "Precision", "choose_precision", "probe"]

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
        "The autocast that this precision means on `device`"
        if self.precision == "fp16" and device.type == "cpu":
            raise InputError("precision fp16 needs a GPU: this CPU was asked for it. Use bf16 or fp32.")
        return torch.autocast(device.type, self.dtype, enabled=self.dtype is not None)

    def before_fit(self):
        if inside_fit(self.learn): return    # its scaler goes on
        self.cleanup()
        self.device = next(self.model.parameters()).device
        self.context(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def before_batch(self):
        if self.entered and not inside_fit(self.learn): self.cleanup()   # left by a batch that failed
        self.entered.append(self.context(self.device))
        self.entered[-1].__enter__()

    def after_pred(self):
        self.learn.pred = to_float(self.pred)
        if not len(self.learn.yb): self.after_loss()    # which fastai does not announce without labels

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
        if self.skipped:
            raise CancelStepException

    @property
    def param_groups(self): return self.opt.param_groups
    def step(self, *args, **kwargs): self.skipped = False

    def cleanup(self):
        "Leave the autocast, if one is entered"
        while self.entered: self.after_loss()


def choose_precision(
    precision: str,        # "auto", "fp32", "bf16" or "fp16"
    device: torch.device,
) -> str:                  # "fp32", "bf16" or "fp16"
    """What `auto` means here: bf16 where it is faster, fp32 otherwise. A processor that lists its
    instructions decides by them, so that a run has the same bytes again; another by a probe, which is kept"""
    if precision != "auto":
        if precision not in PRECISIONS: raise UnknownName("precision", precision, ["auto", *PRECISIONS])
        Precision(precision).context(device)
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type != "cpu": return "fp32"
    if flags := cpu_flags():
        found = sorted(flags & BF16_FLAGS)
        log.info("precision   %s: this CPU has %s", "bf16" if found else "fp32", found[0] if found else
                 "no bf16 instructions")
        return "bf16" if found else "fp32"
    known = _read_cache()
    key = f"{machine_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    if key not in known:
        known[key] = probe(device)
        _write_cache(known)
    ratio, best = known[key], "bf16" if known[key] > 1.05 else "fp32"
    log.info("precision   bf16 trains %.1f times as fast as fp32 on this CPU: %s", ratio, best)
    return best


def probe(
    device: torch.device,
    seconds: float = 1.0,   # roughly what the probe may take
) -> float:                 # time of a fp32 step / time of a bf16 step, medians
    "Train a small stack of the convolutions that a ResNet is made of in both precisions by turns"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1))
        x = torch.randn(32, 3, 32, 32)
    net, x = (o.to(device, memory_format=torch.channels_last) for o in (net, x))
    times, start = {"fp32": [], "bf16": []}, time.perf_counter()
    with torch.enable_grad():
        while len(times["bf16"]) < 4 or time.perf_counter() - start < seconds:
            for name, found in times.items():
                found.append(_step_seconds(net, x, PRECISIONS[name]))
    return median(times["fp32"][1:]) / median(times["bf16"][1:])


def _step_seconds(net: nn.Module, x: torch.Tensor, dtype: torch.dtype | None) -> float:
    start = time.perf_counter()
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        loss = net(x).float().square().mean()
    torch.autograd.grad(loss, list(net.parameters()))
    return time.perf_counter() - start


def _cache_file() -> Path:
    return (cache_dir() or Path(os.devnull)) / "precision.json"      # no home: cannot be kept, and is said


def _read_cache() -> dict:
    try: known = json.loads(_cache_file().read_text())
    except (OSError, ValueError): return {}   # never written, or not whole: probe again
    if not isinstance(known, dict): return {}
    return {k: v for k, v in known.items() if isinstance(v, float) and v > 0}


def _write_cache(known: dict) -> None:
    try:
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        save_atomically(_cache_file(), json.dumps(known, indent=1).encode())
    except (OSError, InputError) as e:
        log.info("precision   the probe's result could not be kept (%s): it runs again next time", e)
