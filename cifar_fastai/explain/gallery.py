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

from ..errors import InputError, UnknownName
from ..gradcam import GradCAM, compare_maps, default_layer, find_layers
from ..plots import BAD, GOOD, Tile, add_colorbar, overlay, percent, short, show_message, show_tiles
from .predict import decode_pictures, inputs_of

__all__ = ["Gallery", "add_maps", "label_text", "listed", "show_groups"]


def label_text(name, p: float) -> str:
    "A class and its probability, apart, as classes may be numbers: 5 (27 %)"
    return f"{short(name, 12)} ({percent(p)})"


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
    ) -> dict[str, np.ndarray]:           # layer → (n,H,W) in 0…1
        "Grad-CAM maps of the pictures at `idxs`"
        idxs, model = self._known(idxs), get_model(self.learn.model)
        classes = self._classes(idxs, target)
        names, maps = list(find_layers(model, default_layer(model) if layer is None else layer)), []
        for i in range(0, len(idxs), 64):
            xb = inputs_of(self.dl, idxs[i:i + 64]).to(next(model.parameters()).device)
            out = GradCAM(model, names)(xb, classes[i:i + 64].to(xb.device), method=method).maps
            maps.append(out if isinstance(out, dict) else {names[0]: out})
        return {name: torch.cat([m[name] for m in maps]).cpu().numpy() for name in names}

    def _known(self, idxs) -> list[int]:
        idxs, last = listed(idxs), len(self) - 1
        for i in idxs:
            if not 0 <= i <= last: raise InputError(f"no picture {i}. Choose 0 to {last}.")
        return idxs

    def _classes(self, idxs: list[int], target: str | int) -> Tensor:
        known = {"pred": self.decoded, "true": self.targs}
        if isinstance(target, str) and target in known: return known[target][idxs]
        if isinstance(target, str) and target not in self.names:
            raise UnknownName("target", target, [*known, *self.names])
        return torch.full((len(idxs),), self.names.index(target) if isinstance(target, str) else target)

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
        cmap: str = "inferno",
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
        return show_groups(groups, text, cmap if heatmap and colorbar else None, **kwargs)

    def plot_misclassified(
        self,
        n: int = 20,             # fewer where fewer are wrong
        by: str = "loss",        # see `misclassified`
        **kwargs,                # for the grid: nrows, ncols, figsize, title
    ) -> Figure:
        "Misclassified pictures: both classes with their probabilities"
        idx = self.misclassified(n, by).tolist()
        if not idx: return show_message(self._no_mistakes())
        tiles = [self._tile(i, p, loss=False) for i, p in zip(idx, self.pictures(idx))]
        return show_tiles([[t] for t in tiles], **kwargs)

    def plot_gradcam(
        self,
        k: int | Sequence[int] = 9,                         # so many mistakes, the worst first, or indices
        layer=None,                                         # as in `gradcam`; several stand side by side
        target: str | int | Sequence = ("pred", "true"),    # maps for these classes
        method: str = "gradcam",
        cmap: str = "inferno",                              # of matplotlib; this one is perceptually uniform
        alpha: float = .5,                                  # weight of the colours over the picture
        text: bool = True,                                  # classes, probabilities and losses
        colorbar: bool = True,
        **kwargs,                                           # for the grid: nrows, ncols, figsize, title
    ) -> Figure:
        "Misclassified pictures beside the Grad-CAM maps of the predicted and of the true class"
        idx = self._known(k) if hasattr(k, "__iter__") else self.misclassified(k).tolist()
        if not idx: return show_message(self._no_mistakes())
        groups = [[self._tile(i, p)] for i, p in zip(idx, self.pictures(idx))]
        for t in [target] if isinstance(target, (str, int)) else target:
            word, classes = "why" if t == "pred" else "where", self._classes(idx, t)
            titles = [f"{word} {short(self.names[c], 14)}" for c in classes]
            add_maps(groups, self.gradcam(idx, layer, t, method), titles, cmap, alpha)
        return show_groups(groups, text, cmap if colorbar else None, **kwargs)

    def gradcam_faithfulness(
        self,
        n: int = 100,                               # pictures, drawn by `seed`
        layer=None,                                 # one layer, as in `gradcam`
        methods: str | Sequence[str] = "gradcam",   # of `gradcam.METHODS`; each costs 2 × `steps` × n passes
        steps: int = 16,                            # see `gradcam.faithfulness.insertion_deletion`
        baseline: str = "blur",
        seed: int = 0,
    ) -> pd.DataFrame:
        """Insertion and deletion AUC of each method for the predicted class, against maps of noise and a
        centred blob. One row a method, measure and control: both AUC, their paired difference, its 95 %
        interval, and whether that lies on the good side of 0"""
        if n < 1: raise InputError(f"n={n}. Give 1 or more pictures.")
        model = get_model(self.learn.model)
        names = list(find_layers(model, default_layer(model) if layer is None else layer))
        if len(names) > 1: raise InputError(f"layers {', '.join(names)} at once. Ask for one at a time.")
        idxs = np.random.default_rng(seed).permutation(len(self))[:n]
        xb = torch.cat([inputs_of(self.dl, part) for part in np.array_split(idxs, -(-len(idxs) // 64))])
        xb = xb.as_subclass(Tensor).to(next(model.parameters()).device)
        cam, classes = GradCAM(model, names), self.decoded[idxs]
        methods = [methods] if isinstance(methods, str) else methods
        raws = {m: cam(xb, classes, method=m, bs=64).raw for m in methods}
        return pd.DataFrame(compare_maps(model, xb, raws, classes, steps, baseline, seed=seed))

    def _no_mistakes(self) -> str: return f"No mistakes: all {len(self)} pictures are classified correctly."


def add_maps(groups: list[list[Tile]], maps: dict, titles: list[str], cmap: str, alpha: float) -> None:
    "Beside the picture of each group its map of each layer (layer → (n,H,W) in 0…1), laid over the picture"
    for name, of_layer in maps.items():
        below = short(name) if len(maps) > 1 else ""
        for group, m, title in zip(groups, of_layer, titles):
            group.append(Tile(overlay(group[0].picture, m, cmap, alpha), title, below))


def show_groups(groups: list[list[Tile]], text: bool, cmap: str | None, **kwargs) -> Figure:
    "Groups of tiles as a grid; without texts, or with a bar of the colours of `cmap`"
    if not text: groups = [[Tile(tile.picture) for tile in group] for group in groups]
    fig = show_tiles(groups, **kwargs)
    if cmap: add_colorbar(fig, cmap)
    return fig


def listed(idxs) -> list[int]:
    "One index or several, of any type, as a list"
    return [int(i) for i in (idxs if hasattr(idxs, "__iter__") and getattr(idxs, "ndim", 1) else [idxs])]
