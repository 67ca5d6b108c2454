"""What `explain` draws: the heat map over the picture, at the picture's own size; a grid of several."""
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..data import read_picture
from ..files import save_atomically
from ..gradcam import CamOutput, GradCAM, cam_of, default_layer, heatmaps
from ..plots import Tile, offscreen, overlay, save_figure, short, show_tiles
from .classifier import Classifier
from .pictures import Named

__all__ = ["explain_pictures", "lay_over", "maps_of"]


def explain_pictures(
    net: Classifier,
    pictures: Sequence[Named],
    out: str | Path,                 # a PNG
    layers: Sequence[str] = (),      # none: the default one
    method: str = "gradcam",         # one of `gradcam.METHODS`
    target: str | None = None,       # a class; None: each picture's predicted class
    alpha: float = .5,               # weight of the colours
) -> list[dict]:                     # picture, predicted class, its probability, class of the map
    """Draw the maps into `out`: one picture and layer at the picture's own size, several as a grid.
    Raises: InputError for a picture, layer, method or class that will not do"""
    whole = [read_picture(p.source, None, p.name) for p in pictures]
    xb = net.inputs([read_picture(p.source, net.size, p.name) for p in pictures])
    cam = cam_of(net.net, list(layers) or default_layer(net.net))
    wanted = None if target is None else net.class_number(target)
    found, of_each = maps_of(cam, xb, wanted, method)
    probs = found.logits.float().softmax(1).cpu()
    rows = [{"picture": p.name, "class": net.classes[k], "probability": round(probs[i, k].item(), 6),
             "map of": net.classes[t]} for i, (p, k, t) in
            enumerate(zip(pictures, probs.argmax(1).tolist(), found.target.tolist()))]
    drawn = [[lay_over(image, [raw[i:i + 1] for raw in raws], alpha) for raws in of_each.values()]
             for i, image in enumerate(whole)]
    if len(whole) == len(cam.names) == 1: _save_picture(drawn[0][0], out)
    else: _save_grid(whole, drawn, rows, cam.names, out)
    return rows


def maps_of(
    cam: GradCAM,
    xb: Tensor,                # (N,3,S,S)
    wanted: int | None,        # a class; None: each picture's predicted class
    method: str,
) -> tuple[CamOutput, dict[str, list[Tensor]]]:    # layer → raw maps of one scale, the first is to be drawn
    "Maps of a class, which are looked at beside those of the predicted class: a faint one is faint evidence"
    found = cam(xb, wanted, method=method, bs=64)
    outs = [found] if wanted is None else [found, cam(xb, method=method, bs=64)]
    return found, {name: [out.raw_by_layer[name] for out in outs] for name in cam.names}


def lay_over(
    image: np.ndarray,     # (H,W,3) uint8
    raws: list[Tensor],    # (1,h,w) each, of the picture as the net saw it: squeezed to a square
    alpha: float,          # weight of the colours
) -> np.ndarray:           # (H,W,3) uint8
    "The first map over the picture, stretched back to its size, on a scale with the others"
    heat = heatmaps([raw.cpu() for raw in raws], image.shape[:2])[0][0].numpy()
    return (255 * overlay(image, heat, alpha=alpha)).round().clip(0, 255).astype(np.uint8)


def _save_picture(image: np.ndarray, out: str | Path) -> None:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    save_atomically(out, file.getvalue())


def _save_grid(whole, drawn, rows: list[dict], layers: Sequence[str], out: str | Path) -> None:
    groups = []
    for image, maps, row in zip(whole, drawn, rows):
        said = f"{short(row['class'], 14)} {100 * row['probability']:.0f} %"
        tiles = [Tile(image, said, short(Path(row["picture"]).name, 20))]
        why = "why" if row["map of"] == row["class"] else "where"
        groups.append(tiles + [Tile(m, f"{why} {short(row['map of'], 14)}", layer)
                               for m, layer in zip(maps, layers)])
    with offscreen(): save_figure(show_tiles(groups, ncols=1 if len(layers) > 1 else None), out)
