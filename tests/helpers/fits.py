"""A small fit on a stock fastai Learner that has all that makes resuming hard, and ways to break it off."""
import hashlib
import os
from functools import partial

import torch
from fastai.callback.schedule import ParamScheduler  # noqa: F401  (patches `fit_one_cycle`)
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Callback, Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam, OptimWrapper, ranger
from torch import nn
from torch.utils.data import TensorDataset

from cifar_fastai.checkpoints.checkpoint import Checkpoint

EPOCHS, BATCHES = 6, 4
NESTEROV = partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9, nesterov=True, foreach=True)
OPTIMISERS = {"sgd": partial(SGD, mom=0.9), "adam": Adam, "nesterov": NESTEROV, "ranger": ranger}


class Noise(Callback):
    "Augmentation from the generator of the process, as stock fastai does it"
    run_valid = False
    def before_batch(self): self.learn.xb = (self.xb[0] + 0.1 * torch.randn_like(self.xb[0]),)


def tiny(opt="nesterov", seed=0, cbs=(), **kwargs):
    "A Learner with what makes resuming hard: shuffling, noise, dropout, running means, momentum"
    torch.manual_seed(seed)
    x, y = torch.randn(32, 8), torch.arange(32) % 4
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
    train, valid = [DataLoader(TensorDataset(x, y), bs=8, shuffle=shuffle) for shuffle in (True, False)]
    train.rng.seed(seed)
    learn = Learner(DataLoaders(train, valid), net, CrossEntropyLossFlat(), opt_func=OPTIMISERS[opt],
                    metrics=accuracy, cbs=[Noise(), *cbs], **kwargs)
    return learn.remove_cb(learn.progress)


def end_of(learn):
    "sha256 of weights, running means and optimiser; and all that the Recorder has"
    rec, momenta = learn.recorder, learn.opt.state_dict()["state"]
    momenta = [v for s in (momenta.values() if isinstance(momenta, dict) else momenta) for v in s.values()]
    tensors = [v for v in [*learn.model.state_dict().values(), *momenta] if torch.is_tensor(v)]
    return {"sha256": hashlib.sha256(b"".join(v.detach().numpy().tobytes() for v in tensors)).hexdigest(),
            "values": [list(v) for v in rec.values], "losses": [float(v) for v in rec.losses],
            "lrs": [float(v) for v in rec.lrs], "iters": list(rec.iters),
            "moms": [float(v) for v in getattr(rec, "hps", {}).get("mom", [])],
            "train_iter": learn.train_iter, "smooth": float(learn.smooth_loss)}


def fit(learn, folder=None, cbs=(), resume=False, epochs=EPOCHS, **kwargs):
    checkpoint = [Checkpoint(folder, fingerprint={"seed": 0}, resume=resume, **kwargs)] if folder else []
    with learn.no_logging(): learn.fit_one_cycle(epochs, 0.1, cbs=[*cbs, *checkpoint])
    return end_of(learn)


class Killed(BaseException):
    "As SIGKILL: no callback hears of it"


class KillAt(Callback):
    "Ends the fit at `event` of the n-th batch or epoch, after `Checkpoint`"
    order = 1100
    def __init__(self, event, n):
        self.n = n
        setattr(self, event, self.count)

    def count(self):
        self.n -= 1
        if self.n < 0: raise Killed


class SignalAt(KillAt):
    "Sends `signals` to this process there"
    order = 0

    def __init__(self, event, n, *signals):
        super().__init__(event, n)
        self.signals = signals

    def count(self):
        self.n -= 1
        if self.n == -1:
            for signum in self.signals: os.kill(os.getpid(), signum)


def resumed_alike(end, folder) -> bool:
    """Whether a fit that is killed in its second epoch and resumed ends as one that nobody disturbed.
    `end(checkpoint, cbs)` fits on and gives its tensors by name"""
    whole = end(Checkpoint(folder / "whole"), [])
    try: end(Checkpoint(folder / "killed"), [KillAt("before_validate", 1)])
    except Killed: pass
    else: return False
    found = end(Checkpoint(folder / "killed", resume=True), [])
    return found.keys() == whole.keys() and all(torch.equal(v, whole[k]) for k, v in found.items())


def scramble():
    "A new process has other generators"
    torch.manual_seed(999)
