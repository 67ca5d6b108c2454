"""P6, P8: tables of the mistakes, and mirror TTA, on 10,000 pictures, against stock fastai."""
import contextlib
import io
import tempfile
from pathlib import Path
from statistics import median

import albumentations as A
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
from cifar_fastai.explain.predict import tta_probs

from .harness import Row, alternate, ratio
from .pictures import coloured, write_folder

N, BS = 10_000, 256


def net(n_out: int = 10, n_in: int = 3, norm: str = "bn") -> nn.Module:
    "A small stack of convolutions, 4 million multiplications a picture: 10,000 pictures take seconds"
    def block(i, o, s): return [nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*block(n_in, 16, 1), *block(16, 32, 2), *block(32, 64, 2), *block(64, 128, 2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, n_out))


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
        same, default, stock = learners(data, write_folder(data, Path(tmp)))
        with same.no_bar(), default.no_bar(), stock.no_bar():
            return [*_tables(same, default, stock, rounds), _mirror(same, rounds)]


def learners(data, folder):
    "Ours in fp32, ours with defaults and stock fastai on the files, all three with the same trained weights"
    flip = A.HorizontalFlip(p=.5)                     # so that a mirrored picture is one that the net knows
    dls = cifar_dataloaders(data, 64, flip, val_bs=BS, device="cpu")
    same, default = (cifar_learner(dls, net, precision=p, smoothing=0.0, seed=0) for p in ("fp32", "auto"))
    with default.no_bar(), default.no_logging(): default.fit_one_cycle(16, 0.02)
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                      splitter=GrandparentSplitter("train", "test"),
                      batch_tfms=[Flip(), Normalize.from_stats(data.mean, data.std, cuda=False)])
    files = block.dataloaders(folder, bs=BS, num_workers=0, device=torch.device("cpu"))
    stock = Learner(files, net(), CrossEntropyLossFlat(), metrics=accuracy)
    for learn in (same, stock): learn.model.load_state_dict(default.model.state_dict())
    return same, default, stock


def _tables(same, default, stock, rounds: int) -> list[Row]:
    ours, fastai = ImageInterpretation.from_learner, ClassificationInterpretation.from_learner
    differ = abs(tables(ours(same)) - tables(fastai(stock))).sum()
    assert differ <= 4, "the two interpretations do not count the same mistakes"
    times = alternate({"fp32": lambda: _ran(tables(ours(same))), "ours": lambda: _ran(tables(ours(default))),
                       "fastai": lambda: _ran(tables(fastai(stock)))}, rounds, warm=0)
    note = "ours fp32 {:.1f} s, defaults {:.1f} s, fastai {:.1f} s".format(*map(median, times.values()))
    against = "ClassificationInterpretation on files"
    return [Row("P6", f"four tables of {N:,} pictures, fp32", against, 4, ratio(times, "fastai", "fp32")),
            Row("P6", f"four tables of {N:,} pictures, defaults", against, 8, ratio(times, "fastai", "ours"),
                note=note)]


def _mirror(learn, rounds: int) -> Row:
    right = _accuracy(tta_probs(learn, views="mirror")), _accuracy(learn.tta())
    times = alternate({"ours": lambda: _ran(tta_probs(learn, views="mirror")),
                       "fastai": lambda: _ran(learn.tta())}, rounds)
    note = "accuracy {:.2%}, learn.tta {:.2%}; ours {:.1f} s, learn.tta {:.1f} s"
    return Row("P8", f"mirror TTA of {N:,} pictures, fp32", "learn.tta", 2.4, ratio(times, "fastai", "ours"),
               note=note.format(*right, *map(median, times.values())))


def _ran(_): "What was made is of no interest, only the time it took"


def _accuracy(found) -> float:
    probs, targs = found[:2]
    return (probs.argmax(1) == targs).float().mean().item()
