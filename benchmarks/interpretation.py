"""P6, P8: tables of the mistakes, and mirror TTA, on 10,000 pictures, against stock fastai."""
import contextlib
import io
import tempfile
from pathlib import Path
from statistics import median

import torch
from fastai.callback.schedule import Learner
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import GrandparentSplitter, Normalize, get_image_files, parent_label
from fastai.interpret import ClassificationInterpretation
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.vision.augment import Flip
from fastai.vision.data import ImageBlock
from torch import nn

from cifar_fastai import ImageInterpretation, cifar_dataloaders, cifar_learner
from cifar_fastai.predict import tta_probs

from .harness import Row, alternate, ratio
from .pictures import coloured, write_folder

N, BS = 10_000, 256


def net(n_out: int = 10, n_in: int = 3, norm: str = "bn") -> nn.Module:
    "A small ResNet-like stack: large enough to be a net, small enough that 10,000 pictures take seconds"
    def block(i, o, s): return [nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*block(n_in, 32, 1), *block(32, 64, 2), *block(64, 128, 2), *block(128, 256, 2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, n_out))


def tables(interp):
    "Confusion, most confused, report and top losses"
    with contextlib.redirect_stdout(io.StringIO()):
        m = interp.confusion_matrix()
        interp.most_confused(min_val=2)
        interp.print_classification_report()
        interp.top_losses(9)
    return m


def run(rounds: int = 5) -> list[Row]:
    data = coloured(2000, N)
    with tempfile.TemporaryDirectory() as tmp:
        folder = write_folder(data, Path(tmp))
        dls = cifar_dataloaders(data, BS, "pad_crop", val_bs=BS, device="cpu")
        same, default = (cifar_learner(dls, net, precision=p, seed=0) for p in ("fp32", "auto"))
        with same.no_bar(), same.no_logging(): same.fit_one_cycle(2, 0.1)
        default.model.load_state_dict(same.model.state_dict())
        block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                          splitter=GrandparentSplitter("train", "test"),
                          batch_tfms=[Flip(), Normalize.from_stats(data.mean, data.std, cuda=False)])
        stock = Learner(block.dataloaders(folder, bs=BS, num_workers=0, device=torch.device("cpu")), net(), CrossEntropyLossFlat(),
                        metrics=accuracy)
        stock.model.load_state_dict(same.model.state_dict())
        return _measured(same, default, stock, rounds)


def _measured(same, default, stock, rounds: int) -> list[Row]:
    with same.no_bar(), default.no_bar(), stock.no_bar():
        a = tables(ImageInterpretation.from_learner(same))
        b = tables(ClassificationInterpretation.from_learner(stock))
        assert abs(a - b).sum() <= 4, "the two interpretations do not count the same mistakes"
        p6 = alternate({"fp32": lambda: _ran(tables(ImageInterpretation.from_learner(same))),
                        "ours": lambda: _ran(tables(ImageInterpretation.from_learner(default))),
                        "fastai": lambda: _ran(tables(ClassificationInterpretation.from_learner(stock)))}, max(3, rounds - 2), 0)
        stock32 = cifar_learner(same.dls, same.model, precision="fp32", seed=0)
        right = {"ours": _accuracy(tta_probs(same, views="mirror")), "fastai": _accuracy(stock32.tta())}
        with stock32.no_bar():
            p8 = alternate({"ours": lambda: _ran(tta_probs(same, views="mirror")), "fastai": lambda: _ran(stock32.tta())}, rounds, 1)
    return [Row("P6", "four tables of 10,000 pictures, fp32", "ClassificationInterpretation on files", 4, ratio(p6, "fastai", "fp32")),
            Row("P6", "four tables of 10,000 pictures, defaults", "ClassificationInterpretation on files", 8,
                ratio(p6, "fastai", "ours"), note="ours fp32 {:.1f} s, defaults {:.1f} s, fastai {:.1f} s".format(*map(median, p6.values()))),
            Row("P8", "mirror TTA of 10,000 pictures, fp32", "learn.tta", 2.4, ratio(p8, "fastai", "ours"),
                note=f"accuracy {right['ours']:.2%}, learn.tta {right['fastai']:.2%}")]


def _ran(_): return None


def _accuracy(found) -> float:
    probs, targs = found[:2]
    return (probs.argmax(1) == targs).float().mean().item()
