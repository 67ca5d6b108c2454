"""`ImageInterpretation`: fastai's `ClassificationInterpretation` that predicts once.

    interp = ImageInterpretation.from_learner(learn)      # any image-classification Learner
    interp.accuracy, interp.per_class(), interp.most_confused(5)
    interp.plot_misclassified(20)
    interp.plot_gradcam(9, layer="layer3", target=("pred", "true"))

Its methods mean what fastai's do. So do its losses: the learner's own, with label smoothing and weights."""
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from matplotlib.figure import Figure
from sklearn.metrics import classification_report, confusion_matrix
from torch import Tensor

from ..errors import InputError, UnknownName
from ..files import save_atomically
from ..plots import plot_bins, plot_matrix, plot_scores
from .gallery import Gallery, listed
from .predict import clean_dl, inputs_of, predict_once

__all__ = ["Calibration", "ImageInterpretation", "calibration", "per_class"]


class Calibration(NamedTuple):
    "How far the confidence of predictions can be believed"
    ece: float             # expected calibration error, 0…1 (Guo et al. 2017, eq. 3)
    bins: pd.DataFrame     # one row a bin: low, high, n, confidence, accuracy (NaN where n is 0)


def per_class(
    cm: np.ndarray,            # (C,C) as scikit-learn's `confusion_matrix` gives
    names: Sequence[str],
) -> pd.DataFrame:
    "class, n, correct, accuracy (of a class that is its recall), precision, recall; NaN where n is 0"
    n, correct, said = cm.sum(1), cm.diagonal(), cm.sum(0)
    found = _share(correct, n)
    return pd.DataFrame({"class": list(names), "n": n, "correct": correct, "accuracy": found,
                         "precision": _share(correct, said), "recall": found})


def calibration(
    confidence: np.ndarray,    # (N,) probability of the predicted class
    right: np.ndarray,         # (N,) bool
    bins: int = 15,            # of equal width, (low, high]
) -> Calibration:
    "Confidence against accuracy"
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, bins - 1)
    n, conf, acc = (np.bincount(which, w, bins) for w in (None, confidence, right))
    ece = np.abs(acc - conf).sum() / len(which)
    return Calibration(float(ece), pd.DataFrame({"low": edges[:-1], "high": edges[1:], "n": n,
                                                 "confidence": _share(conf, n), "accuracy": _share(acc, n)}))


def _share(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.where(total > 0, part / np.maximum(total, 1), np.nan)


class ImageInterpretation(Gallery, ClassificationInterpretation):
    "fastai's interpretation of a classifier of pictures, from predictions made once"

    def __init__(
        self,
        learn: Learner,
        dl,                          # DataLoader the predictions were made from, in the order of its items
        losses: Tensor,              # (N,), by the learner's loss function
        act=None,
        *,
        preds: Tensor,               # (N,C) probabilities
        targs: Tensor,               # (N,) true classes
        tta: Tensor | None = None,   # (N,C) averaged over views
    ):
        super().__init__(learn, dl, losses, act)
        if isinstance(self.vocab, str): self.vocab = dl.vocab     # fastai takes a tuple for a list of vocabs
        self.preds, self.targs, self.tta = preds, targs, tta
        if preds.shape[1] != len(self.vocab):
            raise InputError(f"the model has {preds.shape[1]} outputs, the data {len(self.vocab)} classes. "
                             "Give a Learner whose model was made for these classes.")

    @classmethod
    def from_learner(
        cls,
        learn: Learner,
        ds_idx: int = 1,             # which of `learn.dls` where `dl` is None; 0 is not augmented either
        dl=None,                     # DataLoader with labels
        act=None,                    # activation in place of the loss function's own
        tta: bool | str = False,     # views to average over, too: "mirror" (True), "mirror+shift", "none"
    ):
        "Predict once; everything else is read off"
        dl = clean_dl(learn, ds_idx, dl)
        p = predict_once(learn, dl, act, {True: "mirror", False: None, "none": None}.get(tta, tta))
        return cls(learn, dl, p.losses, act, preds=p.probs, targs=p.targs, tta=p.tta)

    def __len__(self): return len(self.targs)

    def __getitem__(self, idxs):
        "Inputs, probabilities, targets, predicted classes and losses at `idxs`, without predicting again"
        idxs = listed(idxs)
        known = (self.preds, self.targs, self.decoded, self.losses)
        return inputs_of(self.dl, idxs).cpu(), *(o[idxs] for o in known)

    @cached_property
    def names(self) -> tuple[str, ...]: return tuple(str(o) for o in self.vocab)
    @cached_property
    def decoded(self) -> Tensor: return self.preds.argmax(1)
    @cached_property
    def confidence(self) -> Tensor: return self.preds.amax(1)
    @cached_property
    def correct(self) -> Tensor: return self.decoded == self.targs
    @property
    def accuracy(self) -> float: return self.correct.double().mean().item()
    @property
    def loss(self) -> float: return self.losses.double().mean().item()

    @property
    def accuracy_tta(self) -> float | None:
        "Accuracy of the probabilities averaged over views, where `from_learner` was asked for them"
        return None if self.tta is None else (self.tta.argmax(1) == self.targs).double().mean().item()

    def top_losses(self, k: int | None = None, largest: bool = True, items: bool = False):
        "The `k` largest (smallest) losses and their indices: all by default, fewer where there are fewer"
        losses, idx = self.losses.topk(len(self) if k is None else min(k, len(self)), largest=largest)
        if not items: return losses, idx
        known = self.dl.items
        rows = getattr(known, "iloc", None)
        return losses, idx, [known[i] for i in idx.tolist()] if rows is None else rows[idx.tolist()]

    def misclassified(
        self,
        n: int | None = None,     # at most so many
        by: str = "loss",         # worst first, "confidence": surest first, or "index"
    ) -> Tensor:                  # (≤ n,) indices
        "Pictures whose predicted class is not the true one"
        keys = {"loss": self.losses, "confidence": self.confidence, "index": -torch.arange(len(self))}
        if by not in keys: raise UnknownName("order", by, keys)
        wrong = (~self.correct).nonzero().flatten()
        return wrong[keys[by][wrong].argsort(descending=True, stable=True)][:n]

    def confusion_matrix(self) -> np.ndarray:     # (C,C) counts
        "Counts: row true class, column predicted class"
        return confusion_matrix(self.targs, self.decoded, labels=range(len(self.names)))

    def most_confused(self, min_val: int = 1) -> list[tuple[str, str, int]]:
        "true class, predicted class, count; the most frequent first, from `min_val` on"
        return [(true, said, int(n)) for true, said, n in super().most_confused(min_val)]

    def per_class(self) -> pd.DataFrame:
        "class, n, correct, accuracy, precision, recall"
        return per_class(self.confusion_matrix(), self.names)

    def print_classification_report(self) -> None:
        "Print scikit-learn's classification report"
        print(classification_report(self.targs, self.decoded, labels=range(len(self.names)),
                                    target_names=self.names, zero_division=0))

    def calibration(self, bins: int = 15) -> Calibration:
        "Expected calibration error, and confidence against accuracy in bins"
        return calibration(self.confidence.double().numpy(), self.correct.numpy(), bins)

    def rows(self) -> pd.DataFrame:
        "One row a picture: index, true, predicted, confidence, loss"
        names = np.array(self.names, dtype=object)
        said = {"true": names[self.targs], "predicted": names[self.decoded]}
        how = {"confidence": self.confidence, "loss": self.losses}
        return pd.DataFrame({"index": range(len(self)), **said, **how})

    def to_csv(self, path: str | Path) -> Path:
        "Write `rows()` atomically"
        save_atomically(path, self.rows().to_csv(index=False, float_format="%.6g"))
        return Path(path)

    def plot_confusion_matrix(
        self,
        normalize: bool = False,             # shares of each row instead of counts
        title: str = "Confusion matrix",
        cmap: str = "Blues",
        norm_dec: int = 2,                   # decimals of shares
        plot_txt: bool | None = None,        # write the numbers; None: where they can be read
        **kwargs,                            # for the figure: figsize, dpi
    ) -> Figure:
        "Counts: row true class, column predicted class"
        cm = self.confusion_matrix()
        shares = cm / np.maximum(cm.sum(1, keepdims=True), 1)
        texts = np.vectorize(lambda v: f"{v:.{norm_dec}f}")(shares) if normalize else cm.astype(str)
        write = len(cm) <= 30 if plot_txt is None else plot_txt
        return plot_matrix(shares, self.names, texts if write else None, title, cmap, **kwargs)

    def plot_per_class(self, **kwargs) -> Figure:
        "Accuracy and precision of each class"
        return plot_scores(self.per_class(), self.accuracy, **kwargs)

    def plot_calibration(self, bins: int = 15, **kwargs) -> Figure:
        "Accuracy against confidence, and how many pictures stand behind each bin"
        return plot_bins(*self.calibration(bins), **kwargs)
