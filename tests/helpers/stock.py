"A stock fastai Learner on generated pictures: `predict`, `interpret`, `gallery` and `report` must work on it"
from functools import partial

import numpy as np
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter, Normalize
from fastai.learner import Learner
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from fasttransform import Transform
from torch import nn

CLASSES = ("cat", "dog", "cost_$5$, <b>net</b> of an unusually long name", "größe")
MEAN, STD = [.5, .4, .3], [.2, .25, .3]


class BlackOut(Transform):
    "An augmentation that nobody can miss"
    split_idx = 0
    def encodes(self, x: PILImage): return PILImage.create(np.zeros((16, 16, 3), np.uint8))


def items(n, seed=0, classes=CLASSES):
    "`n` pictures of noise; classes take turns"
    rng = np.random.default_rng(seed)
    return [[rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), classes[i % len(classes)]] for i in range(n)]


def first(o): return o[0]
def second(o): return o[1]


def stock_dls(n_train=12, n_valid=23, bs=8, classes=CLASSES, item_tfms=None):
    block = DataBlock((ImageBlock, CategoryBlock(vocab=list(classes), sort=False)), get_x=first, get_y=second,
                      splitter=IndexSplitter(range(n_train, n_train + n_valid)), item_tfms=item_tfms,
                      batch_tfms=Normalize.from_stats(MEAN, STD, cuda=False))
    return block.dataloaders(items(n_train + n_valid, classes=classes), bs=bs, num_workers=0, device="cpu")


class Net(nn.Module):
    "Says wrong things with confidence, each time the same"
    def __init__(self, n_out=len(CLASSES), scale=8.):
        super().__init__()
        torch.manual_seed(0)
        self.layer2 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.layer3 = nn.Sequential(nn.Conv2d(8, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.fc, self.scale = nn.Linear(12, n_out), scale
    def forward(self, x): return self.scale * self.fc(self.layer3(self.layer2(x)).mean((2, 3)))


def stock_learner(dls=None, model=None, **kwargs):
    dls = dls or stock_dls()
    learn = Learner(dls, model or Net(len(dls.vocab)), **kwargs)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    return learn


def clear(probs):
    "Whether the class said is far enough ahead in each row that it does not hang on rounding"
    first, second = probs.topk(2).values.T
    return bool((first - second).min() > 1e-4)


def count_calls(model):
    "A list that grows by one each time `model` is run"
    calls = []
    model.register_forward_hook(lambda m, i, o: calls.append(len(i[0])))
    return calls


smooth = partial(nn.CrossEntropyLoss, label_smoothing=.2)
