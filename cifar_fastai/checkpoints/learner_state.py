"""The state of a fastai `Learner` that a checkpoint holds, as tensors and plain values.

    state = learner_state(learn)          # at a batch's edge or an epoch's end
    restore_learner(learn, state)         # in a learner that was built the same way
"""
import hashlib
import logging
import random
import warnings

import numpy as np
import torch
from fastai.callback.schedule import ParamScheduler
from fastai.optimizer import OptimWrapper
from fastai.torch_core import get_model, to_device
from fastcore.foundation import L

from ..processes import world
from .store import plain_values

__all__ = ["learner_state", "restore_learner", "generators", "restore_generators", "run_fields", "fit_fields"]

log = logging.getLogger("cifar_fastai")
# what fastai's own callbacks keep from batch to batch; our own have `state_dict` and `load_state_dict`
MEMORY = ("lrs", "iters", "losses", "values", "hps", "best", "wait", "new_best", "count", "nb_batches")


def learner_state(
    learn,
    pending: bool = False,   # whether gradients wait for a later step (accumulation)
) -> dict:
    "Weights, optimiser, gradient scaler, callbacks, metrics and counters of `learn`"
    scaler = _scaler(learn)
    return plain_values({
        "model": get_model(learn.model).state_dict(),
        "opt": learn.opt.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "callbacks": {key: _remember(cb) for key, cb in _by_name(learn)},
        "grads": [p.grad for p in learn.model.parameters()] if pending else None,
        "metrics": [_metric_state(m) for m in _running(learn)],
        "train_iter": learn.train_iter, "pct_train": float(learn.pct_train)})


def restore_learner(learn, state: dict) -> None:
    "Put `state` into `learn`, whose fit has begun: callbacks have reset themselves, now they remember"
    get_model(learn.model).load_state_dict(state["model"])
    device = next(learn.model.parameters()).device
    opt = state["opt"] if isinstance(learn.opt, OptimWrapper) else to_device(state["opt"], device)
    learn.opt.load_state_dict(dict(opt))
    if state["grads"] is not None:
        for p, grad in zip(learn.model.parameters(), state["grads"]): p.grad = to_device(grad, p.device)
    if state["scaler"]: _scaler(learn).load_state_dict(state["scaler"])
    known = dict(_by_name(learn))
    for key, memory in state["callbacks"].items():
        if key in known: _recall(known[key], memory)
        elif memory: log.warning(f"the checkpoint has the state of {key}, which this run does not use")
    for metric, memory in zip(_running(learn), state["metrics"]):
        for name, (value, moved) in memory.items():
            setattr(metric, name, to_device(value, device) if moved else value)
    learn.train_iter, learn.pct_train = state["train_iter"], state["pct_train"]
    if not hasattr(learn, "recorder"): return
    recorder = learn.recorder                             # leaves a loss and a row on the learner
    recorder.values = [L(row) for row in recorder.values]
    if recorder.smooth_loss.count: learn.smooth_loss = recorder.smooth_loss.value
    if recorder.values: learn.final_record = recorder.values[-1]


def _scaler(learn) -> torch.amp.GradScaler | None:
    "fp16's; fastai keeps it on the learner, `Precision` on itself"
    found = [getattr(learn, "scaler", None), *(vars(cb).get("scaler") for cb in learn.cbs)]
    return next((s for s in found if isinstance(s, torch.amp.GradScaler)), None)


def _by_name(learn):
    "(key, callback) for every callback: its name, numbered where two share one"
    seen = {}
    for cb in learn.cbs:
        n = seen[cb.name] = seen.get(cb.name, 0) + 1
        yield (cb.name if n == 1 else f"{cb.name}_{n}"), cb


def _remember(cb) -> dict:
    "A callback's own state; asked of its class, since an instance also answers with the model's `state_dict`"
    if hasattr(type(cb), "state_dict"): return cb.state_dict()
    if hasattr(type(cb), "fetch"): cb.fetch()             # losses that are still on the device
    return _savable(cb.name, {k: _packed(v) for k, v in vars(cb).items() if k in MEMORY})


def _savable(name: str, values: dict) -> dict:
    "Without what no checkpoint takes: a callback of somebody else may have anything under these names"
    found = {}
    for k, v in values.items():
        try: found[k] = plain_values(v, f"{name}.{k}")
        except TypeError as error: warnings.warn(f"{error}: a resumed fit begins without it", stacklevel=2)
    return found


def _recall(cb, memory: dict) -> None:
    if hasattr(type(cb), "load_state_dict"):
        cb.load_state_dict(memory)
        return
    for name, value in memory.items():
        packed = isinstance(value, torch.Tensor) and isinstance(getattr(cb, name, None), list)
        setattr(cb, name, list(value.unbind()) if packed else value)


def _packed(value):
    "A list of numbers in tensors as one tensor: thousands of tensors take seconds to save"
    if isinstance(value, list) and value and all(isinstance(v, torch.Tensor) and v.ndim == 0 for v in value):
        return torch.stack([v.detach().as_subclass(torch.Tensor) for v in value])
    return value


def _running(learn) -> list:
    "The metrics that `Recorder` accumulates over the training batches; the first is the smoothed loss"
    return list(learn.recorder._train_mets) if hasattr(learn, "recorder") else []


def _metric_state(metric) -> dict:
    "What a metric has summed up so far: (value, whether it was on an accelerator) by name"
    state = {}
    for name, value in vars(metric).items():
        try: state[name] = plain_values(value), isinstance(value, torch.Tensor) and value.device.type != "cpu"
        except TypeError: continue                        # its function, not its sum
    return state


def generators(learn) -> dict:
    "Where every generator of random numbers stands: torch, CUDA, numpy, Python, the training loader's own"
    device = next(learn.model.parameters()).device
    loader = getattr(learn.dls.train, "rng", None)
    return plain_values({
        "torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "loader": loader.getstate() if isinstance(loader, random.Random) else None,
        "epoch": learn.dls.train.epoch if hasattr(type(learn.dls.train), "set_epoch") else None})


def restore_generators(learn, state: dict) -> None:
    "Put every generator back where `state` says"
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    device = next(learn.model.parameters()).device
    if state["cuda"] is not None and device.type == "cuda": torch.cuda.set_rng_state(state["cuda"], device)
    if state["loader"] is not None: learn.dls.train.rng.setstate(state["loader"])


def run_fields(learn) -> dict:
    "What must be the same to resume: net, classes, data, optimiser; as JSON values"
    opt, state = learn.opt, get_model(learn.model).state_dict()
    shapes = hashlib.sha256(str([(k, tuple(v.shape)) for k, v in state.items()]).encode()).hexdigest()[:8]
    values = sum(v.numel() for v in state.values())
    steps = [getattr(cb, "__name__", str(cb)) for cb in getattr(opt, "cbs", [])]
    fields = {"architecture": f"{type(get_model(learn.model)).__name__} of {values:,} values ({shapes})",
              "optimiser": type(opt.opt).__name__ if isinstance(opt, OptimWrapper) else ", ".join(steps),
              "classes": [str(c) for c in getattr(learn.dls, "vocab", None) or []],
              "batch size": learn.dls.train.bs * world() if hasattr(learn.dls.train, "bs") else None}
    if len(opt.param_lists) > 1: fields["layer groups"] = [len(group) for group in opt.param_lists]
    data = getattr(learn.dls, "data", None)
    return fields | ({"data": data.fingerprint} if hasattr(data, "fingerprint") else {})


def fit_fields(learn) -> dict:
    "What one fit must share: its length and its schedule, sampled at eleven points; JSON values"
    schedules = [cb.scheds for cb in learn.cbs if isinstance(cb, ParamScheduler)]
    rules = {k: v for cb in learn.cbs if hasattr(type(cb), "fit_rule") for k, v in cb.fit_rule().items()}
    sampled = {k: [np.ravel(f(i / 10)).tolist() for i in range(11)] for s in schedules for k, f in s.items()}
    hypers = {k: [float(h[k]) for h in learn.opt.hypers] for k in ("lr", "wd") if k in learn.opt.hypers[0]}
    return {"epochs": learn.n_epoch, "batches": len(learn.dls.train), "schedule": hypers | sampled} | rules
