"""Grad-CAM of any picture: a file, an array, a PIL picture, a validation item.

    fig, cam = learn.gradcam("cat.png", layer="layer3")       # any fastai Learner that classifies pictures
    fig, cam = gradcam_of(learn, [3, 14, 15], target="dog")   # the same as a function
"""
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fastai.data.transforms import get_image_files
from fastai.learner import Learner
from fastai.torch_core import get_model
from fastcore.basics import patch
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import InputError, UnknownName
from ..gradcam import CamOutput, cam_of
from ..plots import BAD, GOOD, Tile, add_caption, add_colorbar, overlay, percent, short, show_tiles
from ..training import same_draws
from .predict import batch_of, clean_dl, decode_pictures

__all__ = ["Chosen", "Explained", "add_maps", "choose", "class_names", "gradcam_of", "label_text",
           "show_groups", "target_of"]

MOST = 200      # pictures in one figure


class Chosen(NamedTuple):
    "Pictures as a Learner's validation sees them"
    xb: Tensor               # (N,3,H,W) normalised, on the Learner's device
    y: Tensor | None         # (N,) classes, or None where they are not known
    pictures: np.ndarray     # (N,H,W,3) float in 0…1


class Explained(NamedTuple):
    "What `gradcam_of` returns: `fig, cam = …`"
    figure: Figure
    cam: CamOutput           # of all pictures, as `GradCAM` gives

    def __repr__(self): return f"Explained(figure, cam of {len(self.cam.logits)} pictures)"


def choose(
    learn,       # a Learner
    items,       # positions in the validation set; or paths, folders, arrays, PIL pictures …; one or a list
) -> Chosen:
    "Those pictures through the validation set's transforms. Raises `InputError` for what is not there"
    items, n = _list_of(items), len(learn.dls.valid.dataset)
    places = [o for o in items if isinstance(o, Integral)]
    if places and len(places) < len(items):
        raise InputError("items mix positions and pictures. Ask for one kind at a time.")
    for i in places:
        if not 0 <= i < n: raise InputError(f"no picture {i} in the validation set. Choose 0 to {n - 1}.")
    with same_draws(learn):             # fastai's loaders draw when they are made
        dl = clean_dl(learn) if places else learn.dls.test_dl(items, num_workers=0, bs=len(items))
        xb, *ys = batch_of(dl, places or range(len(items)))
        y = ys[-1].as_subclass(Tensor) if places and ys and ys[-1].ndim == 1 else None
        return Chosen(xb.as_subclass(Tensor), y, decode_pictures(dl, xb))


def _list_of(items) -> list:
    "One item or several as a list; a folder stands for the picture files in it"
    several = isinstance(items, (list, tuple, range, set)) or type(items).__name__ == "L"
    if isinstance(items, (np.ndarray, Tensor)): several = items.ndim in (1, 4)
    items = [_plain(o) for o in (items if several else [items])]
    items = [f for o in items for f in (sorted(get_image_files(o)) if _is_folder(o) else [o])]
    if not 0 < len(items) <= MOST: raise InputError(f"{len(items)} pictures to explain. Give 1 to {MOST}.")
    for o in items:
        if isinstance(o, (str, PathLike)) and not Path(o).is_file():
            raise InputError(f"picture {o} is not there. Check the path.")
    return items


def _is_folder(o) -> bool: return isinstance(o, (str, PathLike)) and Path(o).is_dir()


def _plain(o): return int(o) if isinstance(o, Integral) or getattr(o, "ndim", 1) == 0 else o


def class_names(dls) -> list[str]:
    "The names of the classes, as texts"
    return [str(o) for o in dls.vocab]


def target_of(
    target: None | int | str,      # as `GradCAM` takes it, or the name of a class
    names: list[str],
) -> None | int | str:
    "`target` with the name of a class as its number. Raises `InputError` with the nearest names"
    if not isinstance(target, str) or target in ("pred", "true"): return target
    if target not in names: raise UnknownName("target", target, ["pred", "true", *names])
    return names.index(target)


def gradcam_of(
    learn,                             # any Learner that classifies pictures
    items,                             # as `choose` takes them
    layer=None,                        # name, pattern, module or a list of these; None: `default_layer`
    target: None | int | str = None,   # None or "pred": the predicted class; "true"; a class or its name
    method: str = "gradcam",           # one of `gradcam.METHODS`
    cmap: str | None = None,           # of matplotlib; None: `HOT`, or `FOR_AGAINST` where signed
    alpha: float = .5,                 # weight of the colours over the picture
    text: bool = True,                 # write the predicted class, and class and layer of each map
    colorbar: bool = True,
    signed: bool = False,              # show what speaks against the class, too: in blue
    **kwargs,                          # for the grid: nrows, ncols, figsize, title
) -> Explained:
    """Each picture with its predicted class beside its Grad-CAM maps; and the maps, on one scale with those
    of the predicted class. Raises `InputError`"""
    found, names, model = choose(learn, items), class_names(learn.dls), get_model(learn.model)
    target = target_of(target, names)
    if target == "true" and found.y is None:
        raise InputError("target is 'true' but these pictures have no labels. Give validation positions.")
    cam, = cam_of(model, layer).together(found.xb, [target], found.y, method, signed=signed, bs=64)
    groups = [[_with_prediction(found, cam, names, i)] for i in range(len(found.xb))]
    classes = zip(cam.target.tolist(), cam.logits.argmax(1).tolist())
    titles = [f"{'why' if c == said else 'where'} {short(names[c], 14)}" for c, said in classes]
    add_maps(groups, cam.maps_by_layer, titles, cmap, alpha, signed)
    return Explained(show_groups(groups, text, colorbar, cmap, signed, **kwargs), cam)


@patch
def gradcam(self: Learner, items, layer=None, **kwargs) -> Explained:
    """Grad-CAM maps of any pictures: paths, arrays, PIL pictures, positions in the validation set, or a list
    of these. Takes what `gradcam_of` takes, and returns the same"""
    return gradcam_of(self, items, layer, **kwargs)


def _with_prediction(found: Chosen, cam: CamOutput, names: list[str], i: int) -> Tile:
    "Picture `i` with its predicted class, and the true one, or the second most likely where it is unknown"
    probs = cam.logits[i].float().softmax(0)
    first, *rest = probs.argsort(descending=True).tolist()
    say = lambda c: label_text(names[c], probs[c].item())
    picture, said = found.pictures[i], f"pred {say(first)}"
    if found.y is None: return Tile(picture, said, f"or {say(rest[0])}" if rest else "")
    true = int(found.y[i])
    loss = -probs[true].clamp_min(torch.finfo(probs.dtype).tiny).log().item()
    return Tile(picture, said, f"true {say(true)}\nloss {loss:.2f}", GOOD if true == first else BAD)


def label_text(name, p: float) -> str:
    "A class and its probability, apart, as classes may be numbers: 5 (27 %)"
    return f"{short(name, 12)} ({percent(p)})"


def add_maps(groups: list[list[Tile]], maps: dict, titles: list[str], cmap: str | None, alpha: float,
             signed: bool = False) -> None:
    "Beside the picture of each group its map of each layer (layer → (n,H,W)), laid over the picture"
    for name, of_layer in maps.items():
        below = short(name) if len(maps) > 1 else ""
        for group, m, title in zip(groups, of_layer, titles):
            group.append(Tile(overlay(group[0].picture, m, cmap, alpha, signed), title, below))


def show_groups(groups: list[list[Tile]], text: bool, colorbar: bool, cmap: str | None,
                signed: bool = False, caption: str = "", **kwargs) -> Figure:
    "Groups of tiles as a grid, with or without texts and the bar of colours"
    if not text: groups = [[Tile(tile.picture) for tile in group] for group in groups]
    fig = show_tiles(groups, **kwargs)
    if colorbar: add_colorbar(fig, cmap, signed=signed)
    add_caption(fig, caption)
    return fig
