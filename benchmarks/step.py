"""P3, P4: the training step of ResNet-18 and the Learner's overhead on a tiny net, against loops written by hand."""
from statistics import median

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from torch import nn
from torch.nn import functional as F

from cifar_fastai import cifar_learner, resnet18
from cifar_fastai.precision import PRECISIONS, choose_precision

from .harness import Row, alternate, ratio

BS = 128


class Batches:
    "A loader that gives the same batches again and again: only the step is measured"
    def __init__(self, n: int, bs: int, size: int = 32, channels_last: bool = True):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(bs, 3, size, size, generator=g)
        self.batch = x.contiguous(memory_format=torch.channels_last) if channels_last else x, torch.randint(10, (bs,), generator=g)
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
    if ours: return cifar_learner(dls, arch, precision=precision, seed=0)
    torch.manual_seed(0)
    return Learner(dls, arch(10), CrossEntropyLossFlat(), metrics=accuracy)


def hand_written(arch, n: int, bs: int, precision: str, channels_last: bool, device: str = "cpu"):
    "The best loop that one writes by hand: returns the function of one epoch"
    torch.manual_seed(0)
    x, y = (t.to(device) for t in Batches(n, bs, channels_last=channels_last).batch)
    net = arch(10).to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format).train()
    opt = torch.optim.SGD(net.parameters(), lr=.01, momentum=.9, weight_decay=5e-4, nesterov=True, foreach=True)
    dtype = PRECISIONS[precision]

    def epoch():
        for _ in range(n):
            with torch.autocast(device, dtype, enabled=dtype is not None): loss = F.cross_entropy(net(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
        if device == "cuda": torch.cuda.synchronize()
        return None
    return epoch, net


def fit(learn):
    "The function of one epoch of a Learner, without lines or bars"
    def epoch():
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.01)
        if learn.dls.device.type == "cuda": torch.cuda.synchronize()
        return None
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
    for p, q in zip(learn.model.parameters(), net.parameters()): torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def run(rounds: int = 5, device: str = "cpu", n: int = 3) -> list[Row]:
    check_equal(tiny)
    precision = choose_precision("auto", torch.device(device))
    a = fit(learner(resnet18, n, BS, True, precision, device))
    b, _ = hand_written(resnet18, n, BS, "fp32", False, device)
    c, _ = hand_written(resnet18, n, BS, precision, True, device)
    p3 = alternate({"ours": a, "plain": b, "best": c}, rounds)
    m = 100
    d, e = fit(learner(tiny, m, 8, True, device=device)), fit(learner(tiny, m, 8, False, device=device))
    f, _ = hand_written(tiny, m, 8, "fp32", True, device)
    p4 = alternate({"ours": d, "fastai": e, "loop": f}, rounds)
    per = {k: median((t - s) / m * 1e3 for t, s in zip(p4[k], p4["loop"])) for k in ("ours", "fastai")}
    goal = 3.3 if precision == "bf16" and device == "cpu" else 1.0
    speed = "ours {:.0f}, plain fp32 NCHW {:.0f}, best by hand {:.0f} pictures/s".format(*(n * BS / median(t) for t in p3.values()))
    return [Row("P3", f"ResNet-18 step, defaults ({precision})", "plain loop, fp32 NCHW", goal, ratio(p3, "plain", "ours"), note=speed),
            Row("P3", "ResNet-18 step", "best hand-written loop", 1.03, ratio(p3, "ours", "best"), at_most=True),
            Row("P4", "Learner's overhead a batch, tiny net", "plain loop", 1, per["ours"], at_most=True, unit="ms"),
            Row("P4", "Learner's overhead a batch, tiny net", "stock fastai's overhead", 1 / 3, per["ours"] / per["fastai"],
                at_most=True, note=f"ours {per['ours']:.2f} ms, fastai {per['fastai']:.2f} ms")]
