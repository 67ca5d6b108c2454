"""What `ImageInterpretation` shows in pictures: galleries of mistakes, and the evidence for them.

    interp.plot_misclassified(20)
    interp.plot_gradcam(9, layer=["layer2", "layer3"], target=("pred", "true"))
"""
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from .errors import InputError, unknown
from .figures import BAD, GOOD, Tile, add_colorbar, overlay, percent, short, show_message, show_tiles
from .gradcam import GradCAM, find_layers
from .predict import decode_pictures, inputs_of

__all__ = ["Gallery", "default_layer", "listed"]


def default_layer(model: nn.Module) -> str:
    "A layer to look at: `layer3` of a ResNet, the body of fastai's vision learners, or the last convolution"
    names = dict(model.named_modules())
    if "layer3" in names: return "layer3"
    if isinstance(model, nn.Sequential) and len(model) == 2: return "0"
    convs = [n for n, m in names.items() if isinstance(m, nn.Conv2d)]
    if not convs: raise InputError("the model has no convolution to look into. Name a layer with layer=.")
    return convs[-1]


class Gallery:
    "Pictures and what was said of them: the half of `ImageInterpretation` that draws pictures"

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
        target: str | int = "pred",       # the class said ("pred"), the right one ("true"), or a number
        method: str = "gradcam",          # one of `gradcam.METHODS`
    ) -> dict[str, np.ndarray]:           # layer → (n,H,W) in 0…1
        "Where in the pictures at `idxs` the evidence for a class lies"
        idxs, model = listed(idxs), self.learn.model
        classes = self._classes(idxs, target)
        names, maps = list(find_layers(model, default_layer(model) if layer is None else layer)), []
        for i in range(0, len(idxs), 64):
            xb = inputs_of(self.dl, idxs[i:i + 64]).to(next(model.parameters()).device)
            out = GradCAM(model, names)(xb, classes[i:i + 64].to(xb.device), method=method).maps
            maps.append(out if isinstance(out, dict) else {names[0]: out})
        return {name: torch.cat([m[name] for m in maps]).cpu().numpy() for name in names}

    def _classes(self, idxs: list[int], target: str | int) -> Tensor:
        if not isinstance(target, str): return torch.full((len(idxs),), target)
        known = {"pred": self.decoded, "true": self.targs}
        if target not in known: raise unknown("target", target, known)
        return known[target][idxs]

    def said(self, i: int) -> str:
        "What picture `i` was called, and how surely"
        return f"{short(self.names[self.decoded[i]], 12)} {percent(self.confidence[i].item())}"

    def truth(self, i: int) -> str:
        "What picture `i` is, and how likely that was held to be"
        return f"{short(self.names[self.targs[i]], 12)} {percent(self.preds[i, self.targs[i]].item())}"

    def _tile(self, i: int, picture, loss: bool = True) -> Tile:
        below = f"is {self.truth(i)}" + (f"\nloss {self.losses[i]:.2f}" if loss else "")
        return Tile(picture, f"said {self.said(i)}", below, GOOD if self.correct[i] else BAD)

    def show_at(self, i: int, **kwargs) -> Figure:
        "The picture at `i` with what it was called and what it is"
        return show_tiles([[self._tile(int(i), self.picture(i))]], **kwargs)

    def plot_top_losses(
        self,
        k: int | Sequence[int],      # so many, or places in the ranking
        largest: bool = True,
        heatmap: bool = False,       # lay over each picture where the evidence for its predicted class lies
        layer=None,                  # of the heat map, as in `gradcam`
        method: str = "gradcam",
        cmap: str = "inferno",
        alpha: float = .5,
        **kwargs,                    # for the grid: nrows, ncols, figsize, title
    ) -> Figure:
        "The pictures with the largest (smallest) losses: said, true, both probabilities, loss"
        places, idx = hasattr(k, "__iter__"), self.top_losses(None, largest)[1].tolist()
        idx = [idx[j] for j in k if j < len(idx)] if places else idx[:k]
        pictures = self.pictures(idx)
        if heatmap:
            maps = next(iter(self.gradcam(idx, layer, "pred", method).values()))
            pictures = [overlay(p, m, cmap, alpha) for p, m in zip(pictures, maps)]
        return show_tiles([[self._tile(i, p)] for i, p in zip(idx, pictures)], **kwargs)

    def plot_misclassified(
        self,
        n: int = 20,             # fewer where fewer are wrong
        by: str = "loss",        # see `misclassified`
        **kwargs,                # for the grid: nrows, ncols, figsize, title
    ) -> Figure:
        "Pictures that were called something else: both classes with their probabilities"
        idx = self.misclassified(n, by).tolist()
        if not idx: return show_message(self._no_mistakes())
        tiles = [self._tile(i, p, loss=False) for i, p in zip(idx, self.pictures(idx))]
        return show_tiles([[t] for t in tiles], **kwargs)

    def plot_gradcam(
        self,
        k: int | Sequence[int] = 9,                         # so many mistakes, the worst first, or indices
        layer=None,                                         # as in `gradcam`; several stand side by side
        target: str | int | Sequence = ("pred", "true"),    # why it said that; where the right class would be
        method: str = "gradcam",
        cmap: str = "inferno",
        alpha: float = .5,
        colorbar: bool = True,
        **kwargs,                                           # for the grid: nrows, ncols, figsize, title
    ) -> Figure:
        "Each mistake beside the evidence for what was said and for what is right"
        idx = listed(k) if hasattr(k, "__iter__") else self.misclassified(k).tolist()
        if not idx: return show_message(self._no_mistakes())
        groups = [[self._tile(i, p)] for i, p in zip(idx, self.pictures(idx))]
        for t in [target] if isinstance(target, (str, int)) else target:
            maps, word = self.gradcam(idx, layer, t, method), "why" if t == "pred" else "where"
            for name, of_layer in maps.items():
                below = short(name) if len(maps) > 1 else ""
                for group, c, m in zip(groups, self._classes(idx, t), of_layer):
                    above = f"{word} {short(self.names[c], 14)}"
                    group.append(Tile(overlay(group[0].picture, m, cmap, alpha), above, below))
        fig = show_tiles(groups, **kwargs)
        if colorbar: add_colorbar(fig, cmap)
        return fig

    def _no_mistakes(self) -> str: return f"No mistakes: all {len(self)} pictures were called what they are."


def listed(idxs) -> list[int]:
    "One index or several, of any type, as a list"
    return [int(i) for i in (idxs if hasattr(idxs, "__iter__") and getattr(idxs, "ndim", 1) else [idxs])]
