"""What each of our own ways buys, beside what a library has: one switched off at a time, by turns.

    python -m benchmarks choices

The step is that of a net of 64 small layers (P4), where nothing hides what a Learner adds, on tensors of the
types that fastai's loaders give. What buys less than 1 % of it is not kept.
"""
from functools import partial

import torch
from fastai.learner import AvgMetric, Recorder
from fastai.torch_core import TensorCategory, TensorImage

from cifar_fastai import StopOnNonFinite, resnet18
from cifar_fastai.loaders import augment
from cifar_fastai.training.learner import ImageLearner
from cifar_fastai.training.optimizers import KernelMuon

from .harness import alternate, spread
from .loader import crop_flip, cutout
from .pictures import coloured
from .step import fit, learner, tiny

OVERRIDES = ("_call_one", "_split")


def run(rounds: int = 9) -> str:
    make = lambda: typed(learner(tiny, 100, 8, True))
    contenders = {"whole": fit(make()), "the same again (noise)": fit(make())}
    for name in OVERRIDES: contenders[f"ImageLearner.{name}"] = partial(without, name, make())
    contenders["DeviceRecorder and its means"] = fit(stock_recorder(make()))
    times = alternate(contenders, rounds, warm=2)
    lines = ["CPU time of a step of the tiny net without it, in % of one with it: median (lowest … highest)"]
    lines += [f"    {name:36}{spread(times, name, 'whole')}" for name in [*contenders][1:]]
    lines += ["", "with StopOnNonFinite, in % of a step without it"]
    for net, n, bs in ((tiny, 100, 8), (resnet18, 3, 64)): lines += _guards(net, n, bs, rounds)
    lines += ["", "Albumentations' own calls, in % of the augmenter's time"]
    for name, tfms in (("policy", "pad_crop_flip_cutout"), ("a list", [*crop_flip(), cutout()])):
        lines.append(f"    {name:36}{augmenting(tfms, rounds)}")
    lines += ["", "Muon's step of the kernels of resnet18, in % of KernelMuon's time",
              f"    {'torch.optim.Muon':36}{muon(rounds)}"]
    return "\n".join(lines)


def _guards(net, n: int, bs: int, rounds: int) -> list[str]:
    guarded = {name: learner(net, n, bs, True) for name in ("none", "at once", "late")}
    for name, late in (("at once", False), ("late", True)): guarded[name].add_cb(StopOnNonFinite(late))
    times = alternate({name: fit(learn) for name, learn in guarded.items()}, rounds)
    names = ("at once", "late")
    return [f"    {f'{net.__name__}, {name}':36}{spread(times, name, 'none')}" for name in names]


def typed(learn):
    "With batches of fastai's tensor types, as a DataBlock gives them"
    for dl in learn.dls.loaders: dl.batch = TensorImage(dl.batch[0]), TensorCategory(dl.batch[1])
    return learn


def without(name: str, learn):
    "An epoch by fastai's own method of that name"
    own = vars(ImageLearner)[name]
    delattr(ImageLearner, name)
    try: fit(learn)()
    finally: setattr(ImageLearner, name, own)


def stock_recorder(learn):
    "fastai's Recorder and its metrics"
    recorder = learn.recorder
    learn.remove_cb(recorder)
    learn.add_cb(Recorder())
    learn._metrics = learn._metrics.map(lambda m: AvgMetric(m.func))
    return learn


def augmenting(tfms, rounds: int) -> str:
    aug, pictures = augment.build_augmentation(tfms, 32), coloured(2000, 100).x_train
    ours = augment.augmenter(aug)
    steps = list(aug.transforms)

    def bare():
        for image in pictures:
            for t in steps: image = t(image=image)["image"]
    def own():
        for image in pictures: ours(image)
    with augment.one_thread(): times = alternate({"bare": bare, "ours": own}, rounds)
    return spread(times, "bare", "ours")


def muon(rounds: int) -> str:
    kernels = [p for p in resnet18(10).parameters() if p.ndim == 4]
    flat = [torch.nn.Parameter(p.detach().flatten(1)) for p in kernels]
    for p in (*kernels, *flat): p.grad = torch.randn_like(p)
    theirs = torch.optim.Muon(flat, lr=.1, weight_decay=0., momentum=.6, ns_steps=3)
    times = alternate({"theirs": theirs.step, "ours": KernelMuon(kernels, lr=.1).step}, rounds)
    return spread(times, "theirs", "ours")
