"""P3, P4: the training step of ResNet-18, and the Learner's overhead on a tiny net.

Against loops written by hand and the stock Learner. Only steps are measured: the loader gives one batch again
and again.
"""
from dataclasses import replace
from statistics import median

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from torch import nn
from torch.nn import functional as F

from cifar_fastai import cifar_learner, resnet18
from cifar_fastai.training.precision import PRECISIONS, choose_precision

from .harness import Row, alternate, ratio

BS = 128


class Batches:
    "A loader that gives the same batches again and again: only the step is measured"
    def __init__(self, n: int, bs: int, size: int = 32, channels_last: bool = True):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(bs, 3, size, size, generator=g)
        if channels_last: x = x.contiguous(memory_format=torch.channels_last)
        self.batch = x, torch.randint(10, (bs,), generator=g)
        self.n, self.bs, self.dataset = n, bs, range(n * bs)
    def __len__(self): return self.n
    def __iter__(self): return iter([self.batch] * self.n)
    def new(self, **_): return self
    def to(self, device): self.batch = tuple(t.to(device) for t in self.batch)


def learner(arch, n: int, bs: int, ours: bool, precision: str = "fp32", device: str = "cpu"):
    dl = Batches(n, bs)
    empty = Batches(0, bs)
    dls = DataLoaders(dl, empty)
    dls.device, dls.vocab, dls.c = torch.device(device), list("0123456789"), 10
    if ours: return cifar_learner(dls, arch, precision=precision, seed=0, smoothing=0.0)
    torch.manual_seed(0)
    return Learner(dls, arch(10), CrossEntropyLossFlat(), metrics=accuracy)


def hand_written(arch, n: int, bs: int, precision: str, channels_last: bool, device: str = "cpu"):
    "The best loop that one writes by hand: returns the function of one epoch"
    torch.manual_seed(0)
    x, y = (t.to(device) for t in Batches(n, bs, channels_last=channels_last).batch)
    net = arch(10).to(device).train()
    if channels_last: net = net.to(memory_format=torch.channels_last)
    opt = torch.optim.SGD(net.parameters(), .01, .9, weight_decay=5e-4, nesterov=True, foreach=True)
    dtype = PRECISIONS[precision]

    def epoch():
        for _ in range(n):
            with torch.autocast(device, dtype, enabled=dtype is not None): loss = F.cross_entropy(net(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
        if device == "cuda": torch.cuda.synchronize()
    return epoch, net


def fit(learn):
    "The function of one epoch of a Learner, without lines or bars"
    def epoch():
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.01)
        if learn.dls.device.type == "cuda": torch.cuda.synchronize()
    return epoch


def tiny(n_out: int = 10, n_in: int = 3, norm: str = "bn") -> nn.Module:
    "64 small layers"
    layers = [nn.Conv2d(n_in, 4, 3, 2, 1)]
    for _ in range(31): layers += [nn.Conv2d(4, 4, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, n_out))


def check_equal(arch, n: int = 4, bs: int = 16):
    "Five steps of our Learner and of the hand-written loop end in the same weights"
    learn = learner(arch, n, bs, ours=True)
    epoch, net = hand_written(arch, n, bs, "fp32", True)
    net.load_state_dict(learn.model.state_dict())
    fit(learn)(), epoch()
    for p, q in zip(learn.model.parameters(), net.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def run(rounds: int = 5, device: str = "cpu", n: int = 2) -> list[Row]:
    check_equal(tiny)
    rows = [*_resnet(rounds, device, n), *_overhead(rounds, device)]
    return rows if device == "cpu" else [replace(r, work=f"{r.work}, {device}") for r in rows]


def _resnet(rounds: int, device: str, n: int) -> list[Row]:
    precision = choose_precision("auto", torch.device(device))
    a = fit(learner(resnet18, n, BS, True, precision, device))
    b, _ = hand_written(resnet18, n, BS, "fp32", False, device)
    c, _ = hand_written(resnet18, n, BS, precision, True, device)
    times = alternate({"ours": a, "plain": b, "best": c}, rounds)
    goal = 3.3 if precision == "bf16" and device == "cpu" else 1.0
    speed = "ours {:.0f}, plain fp32 NCHW {:.0f}, best by hand {:.0f} pictures/s"
    note = speed.format(*(n * BS / median(t) for t in times.values()))
    return [Row("P3", f"ResNet-18 step, defaults ({precision})", "plain loop, fp32 NCHW", goal,
                ratio(times, "plain", "ours"), note=note),
            Row("P3", "ResNet-18 step", "best hand-written loop", 1.03, ratio(times, "ours", "best"),
                at_most=True)]


def _overhead(rounds: int, device: str, n: int = 100) -> list[Row]:
    "What a Learner adds to each batch: on a tiny net nothing else is to be seen"
    a, b = (fit(learner(tiny, n, 8, mine, device=device)) for mine in (True, False))
    c, _ = hand_written(tiny, n, 8, "fp32", True, device)
    times = alternate({"ours": a, "fastai": b, "loop": c}, rounds)
    per = {k: median((t - s) / n * 1e3 for t, s in zip(times[k], times["loop"])) for k in ("ours", "fastai")}
    bare = 1e3 * median(times["loop"]) / n
    note = f"ours {per['ours']:.2f} ms, fastai {per['fastai']:.2f} ms, on top of the loop's {bare:.2f} ms"
    return [Row("P4", "Learner's overhead a batch, tiny net", "plain loop", 1, per["ours"], at_most=True,
                unit="ms"),
            Row("P4", "Learner's overhead a batch, tiny net", "stock fastai's overhead", 1 / 3,
                per["ours"] / per["fastai"], at_most=True, note=note)]
