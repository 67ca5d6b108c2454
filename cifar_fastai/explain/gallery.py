"""Galleries of `ImageInterpretation`: misclassified pictures, top losses, and Grad-CAM maps of them.

    interp.plot_misclassified(20)
    interp.plot_gradcam(9, layer=["layer2", "layer3"], target=("pred", "true"))
"""
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from fastai.torch_core import get_model
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import InputError
from ..gradcam import Evidence, cam_of, compare_maps, measure_maps
from ..plots import BAD, GOOD, Tile, overlay, short, show_message, show_tiles
from ..training import precision_of
from .any_picture import add_maps, label_text, show_groups, target_of
from .predict import decode_pictures, inputs_of

__all__ = ["Gallery", "listed"]


class Gallery:
    "The half of `ImageInterpretation` that draws pictures: predictions, top losses, Grad-CAM"

    def pictures(self, idxs: Sequence[int]) -> np.ndarray:     # (n,H,W,3) float in 0…1
        "The pictures at `idxs` as the model sees them: not augmented, not normalised"
        return decode_pictures(self.dl, inputs_of(self.dl, listed(idxs)))

    def picture(self, i: int) -> np.ndarray:     # (H,W,3) float in 0…1
        "The picture at `i`"
        return self.pictures([i])[0]

    def gradcam(
        self,
        idxs: Sequence[int],
        layer=None,                       # name, pattern, module or a list of these; None: `default_layer`
        target: str | int = "pred",       # "pred" (the predicted class), "true", a class or its name
        method: str = "gradcam",          # one of `gradcam.METHODS`
        signed: bool = False,             # keep what speaks against the class, as negative numbers
    ) -> dict[str, np.ndarray]:           # layer → (n,H,W) in 0…1; in -1…1 where signed
        "Grad-CAM maps of the pictures at `idxs`, on one scale with those of their predicted classes"
        if not (idxs := self._known(idxs)): raise InputError("no pictures were given. Give one or more.")
        return self._gradcams(idxs, layer, [target], method, signed)[0]

    def _gradcams(self, idxs: list[int], layer, targets: Sequence, method: str, signed: bool) -> list[dict]:
        "The maps for each target, those of one picture and layer on one scale"
        asked, found = [self._classes(idxs, t) for t in targets], []
        cam = cam_of(get_model(self.learn.model), layer)
        for i in range(0, len(idxs), 64):
            xb = inputs_of(self.dl, idxs[i:i + 64]).to(next(cam.model.parameters()).device)
            classes = [c[i:i + 64].to(xb.device) for c in asked]
            found.append(cam.together(xb, classes, method=method, signed=signed))
        return [{name: torch.cat([outs[t].maps_by_layer[name] for outs in found]).cpu().numpy()
                 for name in cam.names} for t in range(len(targets))]

    def _known(self, idxs) -> list[int]:
        idxs, last = listed(idxs), len(self) - 1
        for i in idxs:
            if not 0 <= i <= last: raise InputError(f"no picture {i}. Choose 0 to {last}.")
        return idxs

    def _classes(self, idxs: list[int], target: str | int) -> Tensor:
        target, known = "pred" if target is None else target, {"pred": self.decoded, "true": self.targs}
        if isinstance(target, str) and target in known: return known[target][idxs]
        return torch.full((len(idxs),), target_of(target, self.names))

    def predicted_label(self, i: int) -> str:
        "The predicted class of picture `i` and its probability, as text"
        return label_text(self.names[self.decoded[i]], self.confidence[i].item())

    def true_label(self, i: int) -> str:
        "The true class of picture `i` and its probability, as text"
        return label_text(self.names[self.targs[i]], self.preds[i, self.targs[i]].item())

    def _tile(self, i: int, picture, loss: bool = True) -> Tile:
        below = f"true {self.true_label(i)}" + (f"\nloss {self.losses[i]:.2f}" if loss else "")
        return Tile(picture, f"pred {self.predicted_label(i)}", below, GOOD if self.correct[i] else BAD)

    def show_at(self, i: int, **kwargs) -> Figure:
        "The picture at `i` with its predicted and its true class"
        return show_tiles([[self._tile(int(i), self.picture(i))]], **kwargs)

    def plot_top_losses(
        self,
        k: int | Sequence[int],      # so many, or places in the ranking
        largest: bool = True,
        heatmap: bool = False,       # lay the Grad-CAM map of its predicted class over each picture
        layer=None,                  # of the heat map, as in `gradcam`
        method: str = "gradcam",
        cmap: str | None = None,     # of matplotlib; None: `plots.HOT`
        alpha: float = .5,
        text: bool = True,           # write the predicted and the true class
        colorbar: bool = False,
        **kwargs,                    # for the grid: nrows, ncols, figsize, title
    ) -> Figure:
        "The pictures with the largest (smallest) losses: predicted and true class, probabilities, loss"
        places, idx = hasattr(k, "__iter__"), self.top_losses(None, largest)[1].tolist()
        idx = [idx[j] for j in k if j < len(idx)] if places else idx[:k]
        pictures = self.pictures(idx)
        if heatmap:
            maps = next(iter(self.gradcam(idx, layer, "pred", method).values()))
            pictures = [overlay(p, m, cmap, alpha) for p, m in zip(pictures, maps)]
        groups = [[self._tile(i, p)] for i, p in zip(idx, pictures)]
        return show_groups(groups, text, heatmap and colorbar, cmap, **kwargs)

    def plot_misclassified(
        self,
        n: int = 20,             # fewer where fewer are wrong
        by: str = "loss",        # see `misclassified`
        **kwargs,                # for the grid: nrows, ncols, figsize, title
    ) -> Figure:
        "Misclassified pictures: both classes with their probabilities"
        idx = self.misclassified(n, by).tolist()
        if not idx: return show_message(self._no_mistakes())
        groups = [[self._tile(i, p, loss=False)] for i, p in zip(idx, self.pictures(idx))]
        return show_tiles(groups, **kwargs)

    def plot_gradcam(
        self,
        k: int | Sequence[int] = 9,                         # so many mistakes, the worst first, or indices
        layer=None,                                         # as in `gradcam`; several stand side by side
        target: str | int | Sequence = ("pred", "true"),    # maps for these classes
        method: str = "gradcam",
        cmap: str | None = None,                            # of matplotlib; None: `HOT` or `FOR_AGAINST`
        alpha: float = .5,                                  # weight of the colours over the picture
        text: bool = True,                                  # classes, probabilities and losses
        colorbar: bool = True,
        signed: bool = False,                               # show what speaks against the class, too: in blue
        caption: str = "",                                  # small print below
        **kwargs,                                           # for the grid: nrows, ncols, figsize, title
    ) -> Figure:
        """Misclassified pictures, or where none is those with the largest losses, beside the Grad-CAM maps of
        predicted and true class. The maps of one picture share a scale: a faint one has little to say"""
        asked = hasattr(k, "__iter__")
        idx = self._known(k) if asked else self.misclassified(k).tolist()
        one = isinstance(target, str) or not hasattr(target, "__iter__") or getattr(target, "ndim", 1) == 0
        targets = [target] if one else list(target)
        if not (idx or asked):
            idx = self.top_losses(k)[1].tolist()
            if targets == ["pred", "true"]: targets = ["pred"]       # twice the same
            caption = f"{self._no_mistakes()} These have the largest losses.\n{caption}".rstrip()
        if not idx: return show_message(self._no_mistakes())
        groups = [[self._tile(i, p)] for i, p in zip(idx, self.pictures(idx))]
        for t, maps in zip(targets, self._gradcams(idx, layer, targets, method, signed)):
            word, classes = "why" if t in (None, "pred") else "where", self._classes(idx, t)
            titles = [f"{word} {short(self.names[c], 14)}" for c in classes]
            add_maps(groups, maps, titles, cmap, alpha, signed)
        return show_groups(groups, text, colorbar, cmap, signed, caption, **kwargs)

    def gradcam_faithfulness(
        self,
        n: int = 100,                               # pictures, drawn by `seed`
        layer=None,                                 # one layer, as in `gradcam`
        methods: str | Sequence[str] = "gradcam",   # of `gradcam.METHODS`
        steps: int = 16,                            # see `gradcam.faithfulness.insertion_deletion`
        baseline: str = "blur",
        tol: float = .02,                           # 0: all 2 × `steps` passes of each map and picture
        seed: int = 0,
    ) -> pd.DataFrame:
        """Insertion and deletion AUC of each method for the predicted class, in the Learner's precision,
        against maps of noise, a centred blob, and the method's mean map over these pictures. One row a
        method, measure and control: both AUC, their paired difference, its 95 % interval, and whether that
        lies on the good side of 0"""
        cam = cam_of(get_model(self.learn.model), layer)
        if len(cam.names) > 1:
            raise InputError(f"layers {', '.join(cam.names)} at once. Ask for one at a time.")
        xb, classes = self._drawn(n, seed)
        methods = [methods] if isinstance(methods, str) else methods
        raws = {m: cam(xb, classes, method=m, bs=64).raw for m in methods}
        with precision_of(self.learn):
            found = compare_maps(cam.model, xb, raws, classes, steps, baseline, tol=tol, seed=seed,
                                 autocast=True)
        return pd.DataFrame(found)

    def gradcam_evidence(
        self,
        n: int = 100,            # pictures, drawn by `seed`
        pairs: Sequence = ((None, "gradcam"),),    # layer and method of each kind of map
        seed: int = 0,
    ) -> list[Evidence]:
        "Insertion and deletion of the maps of predicted classes, against noise, in the Learner's precision"
        xb, classes = self._drawn(n, seed)
        with precision_of(self.learn):
            return measure_maps(get_model(self.learn.model), xb, classes, pairs, autocast=True, seed=seed)

    def _drawn(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        "Inputs and predicted classes of `n` pictures"
        if n < 1: raise InputError(f"n={n}. Give 1 or more pictures.")
        idxs = np.random.default_rng(seed).permutation(len(self))[:n]
        xb = torch.cat([inputs_of(self.dl, part) for part in np.array_split(idxs, -(-len(idxs) // 64))])
        return xb.as_subclass(Tensor).to(next(self.learn.model.parameters()).device), self.decoded[idxs]

    def _no_mistakes(self) -> str: return f"No mistakes: all {len(self)} pictures are classified correctly."


def listed(idxs) -> list[int]:
    "One index or several, of any type, as a list"
    return [int(i) for i in (idxs if hasattr(idxs, "__iter__") and getattr(idxs, "ndim", 1) else [idxs])]
