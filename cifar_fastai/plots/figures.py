"""Grids of pictures with texts, heat map overlays, and saving figures.

    fig = show_grid(pictures, ["cat", "dog"])            # in a notebook: drawn once, at the cell's end
    with offscreen(): save_figure(show_grid(pictures), "figures/batch.png")

Figures belong to pyplot, as fastai's do, so that `plt.savefig` and notebooks find them; inside `offscreen()`
they belong to nobody and cannot pile up. Texts are never read as TeX: a class may be called `$100`."""
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..errors import InputError, UnknownName
from ..files import save_atomically
from .fonts import drawable, fit_text

__all__ = ["BAD", "FOR_AGAINST", "GOOD", "HOT", "Tile", "add_caption", "add_colorbar", "as_picture",
           "draw_row", "new_figure", "offscreen", "overlay", "percent", "save_figure", "short", "show_grid",
           "show_message", "show_tiles", "text"]

GOOD, BAD = "#1a7f37", "#c0281c"         # right and wrong; words beside them say so too
HOT = "inferno"                          # perceptually uniform: dark is cold, bright yellow is hot
FOR_AGAINST = "RdBu_r"                   # red speaks for a class, blue against it
_offscreen = ContextVar("offscreen", default=False)


class _Shown(Figure):
    "A pyplot figure that a notebook draws once, although it is both an open figure and the value of its cell"
    def _ipython_display_(self):
        if "inline" in plt.get_backend() and plt.fignum_exists(self.number):
            plt.close(self)                                     # or it would follow once more below the cell
            from IPython.display import display
            for n in [n for n in plt.get_fignums() if n < self.number]:     # first those made before
                display(plt.figure(n))
                plt.close(n)
        raise NotImplementedError                               # IPython goes on as with any figure


class Tile(NamedTuple):
    "One picture of a grid with a text above and one below"
    picture: object              # whatever `as_picture` takes
    above: str = ""
    below: str = ""
    color: str | None = None     # of the text above


@contextmanager
def offscreen() -> Iterator[None]:
    "Figures made inside belong to no window and to no list of pyplot's: for files"
    token = _offscreen.set(True)
    try: yield
    finally: _offscreen.reset(token)


def new_figure(
    nrows: int = 1,
    ncols: int = 1,
    figsize: tuple[float, float] | None = None,   # inches
    dpi: float | None = None,
    **kwargs,                                     # for `Figure.subplots`: width_ratios, sharex …
) -> tuple[Figure, np.ndarray]:                   # the figure, its axes as (nrows, ncols)
    "An empty figure in which nothing is cut off"
    kw = {"figsize": figsize, "dpi": dpi, "layout": "constrained"}
    fig = Figure(**kw) if _offscreen.get() else plt.figure(FigureClass=_Shown, **kw)
    return fig, fig.subplots(nrows, ncols, squeeze=False, **kwargs)


def save_figure(
    fig: Figure,             # closed afterwards
    path: str | Path,        # its ending names the format; its folder is made
    dpi: int = 150,          # a grid is then about 1,100 pixels wide, sharp at a README's width
) -> Path:
    "Write `fig` so that a reader sees the old file or the new one, never a part"
    path, drawn = Path(path), io.BytesIO()
    try: fig.savefig(drawn, dpi=dpi, format=path.suffix[1:] or "png")
    finally: plt.close(fig)
    save_atomically(path, drawn.getbuffer())
    return path


def _array(x) -> np.ndarray:
    if not hasattr(x, "detach"): return np.asarray(x)
    return (x.detach().float() if x.is_floating_point() else x).cpu().numpy()       # numpy knows no bfloat16


def as_picture(
    x,                   # (H,W), (H,W,3), (3,H,W) array or tensor, or a PIL picture; 0…255 or, of floats, 0…1
) -> np.ndarray:         # (H,W,3) float in 0…1
    "Any usual form of a picture in the one form that is drawn"
    x = _array(x)
    if x.ndim == 2: x = x[..., None]
    if x.ndim == 3 and x.shape[-1] not in (1, 3) and x.shape[0] in (1, 3): x = x.transpose(1, 2, 0)
    if x.ndim != 3 or x.shape[-1] not in (1, 3):
        raise InputError(f"not a picture: an array of shape {x.shape}. Give (H,W), (H,W,3) or (3,H,W).")
    x = x / 255 if x.dtype.kind in "iu" else np.nan_to_num(x.astype(float))
    return np.repeat(x, 3 // x.shape[-1], axis=-1).clip(0, 1)


def short(
    name,                # a class name, of any length and alphabet
    width: int = 18,     # letters that fit
) -> str:
    "`name` on one line, its end replaced by … where it is too long"
    name = " ".join("".join(c if c.isprintable() else " " for c in str(name)).split())
    return name if len(name) <= width else name[:width - 1].rstrip() + "…"


def percent(p: float) -> str:
    "A share in per cent: 97 %, with a decimal near the ends: 0.3 %, 99.8 %"
    return f"{100 * p:.1f} %" if .0005 <= p < .0095 or .995 <= p < .9995 else f"{100 * p:.0f} %"


def text(set_text: Callable, *args, color: str | None = None, **kwargs):
    "Call `set_text` (`ax.set_title`, `ax.text` …) so that `$` and `_` stay what they are, in any script"
    if color: kwargs["color"] = color       # else the style's own
    drawn = [drawable(a) for a in args]
    families = list(dict.fromkeys(name for _, some in drawn for name in some or ()))
    if families: kwargs["fontfamily"] = families
    return set_text(*[a for a, _ in drawn], parse_math=False, usetex=False, **kwargs)


def overlay(
    picture,                 # whatever `as_picture` takes
    heat,                    # (H,W) array or tensor in 0…1, as `GradCAM` gives
    cmap: str | None = None, # of matplotlib; None: `HOT`, or `FOR_AGAINST` where signed
    alpha: float = 0.5,      # weight of the colours
    signed: bool = False,    # `heat` is in -1…1: colours are the stronger the farther from 0
) -> np.ndarray:             # (H,W,3) float RGB in 0…1
    "`picture` under the colours of `heat`"
    cmap = cmap or (FOR_AGAINST if signed else HOT)
    if cmap not in colormaps: raise UnknownName("colour map", cmap, colormaps)
    picture = as_picture(picture)
    heat = np.nan_to_num(_array(heat).astype(float))
    if heat.shape != picture.shape[:2]:
        raise InputError(f"the map is {heat.shape}, its picture {picture.shape[:2]}. Upsample the map first.")
    if not signed: return (1 - alpha) * picture + alpha * colormaps[cmap](heat.clip(0, 1))[..., :3]
    weight = (1.6 * alpha * np.abs(heat)).clip(0, 1)[..., None]       # where nothing speaks, the picture
    return (1 - weight) * picture + weight * colormaps[cmap]((heat.clip(-1, 1) + 1) / 2)[..., :3]


def add_colorbar(fig: Figure, cmap: str | None = None, signed: bool = False) -> None:
    "A colour bar for maps in 0…1 (-1…1) below all axes, on a page that grows by its height"
    fig.set_figheight(fig.get_figheight() + .45)
    cmap, low = cmap or (FOR_AGAINST if signed else HOT), -1 if signed else 0
    bar = fig.colorbar(ScalarMappable(Normalize(low, 1), cmap), ax=fig.axes, location="bottom",
                       shrink=min(.9, 3.5 / fig.get_figwidth()), aspect=40, pad=.01)
    bar.set_ticks([low, 1], labels=["against", "for"] if signed else ["none", "most"], fontsize=8)
    bar.ax.tick_params(length=0)
    bar.set_label("evidence for the class", fontsize=8, labelpad=-9)
    bar.outline.set_visible(False)


def add_caption(fig: Figure, caption: str) -> None:
    "Lines of small print below all axes, on a page that grows by their height"
    if not caption: return
    lines = [part for line in caption.splitlines() for part in wrap(line, int(fig.get_figwidth() * 17))]
    fig.set_figheight(fig.get_figheight() + .14 * len(lines))
    text(fig.supxlabel, "\n".join(lines), fontsize=7, color="#555555")


def show_message(message: str) -> Figure:
    "A figure that says why there is nothing to see"
    fig, axs = new_figure(figsize=(6, 1))
    axs[0, 0].set_axis_off()
    text(axs[0, 0].text, .5, .5, message, ha="center", va="center", wrap=True)
    return fig


def show_tiles(
    groups: Sequence[Sequence[Tile]],   # tiles that belong together stand side by side
    ncols: int | None = None,           # groups in a row
    nrows: int | None = None,
    figsize: tuple[float, float] | None = None,
    title: str = "",
    size: float = 1.4,                  # width of a picture, inches
    fontsize: float = 8,
) -> Figure:
    "A grid of groups of pictures"
    if not groups: return show_message(title or "No pictures to show.")
    width, n = max(map(len, groups)), len(groups)
    if not ncols: ncols = -(-n // nrows) if nrows else _columns(n, max(1, round(7 / (size * width))))
    nrows = max(nrows or 0, -(-n // ncols))
    ratios = [1] * width + [.15] * (width > 1)          # a gap beside each group of several
    lines = sum(_lines(groups[i:i + ncols]) for i in range(0, n, ncols))
    height = (size + .04) * nrows + .02 * fontsize * lines + .35 * bool(title)
    figsize = figsize or (size * sum(ratios) * ncols + .1, height)
    fig, axs = new_figure(nrows, len(ratios) * ncols, figsize, width_ratios=ratios * ncols)
    fig.get_layout_engine().set(w_pad=.02, h_pad=.02, wspace=.02, hspace=.02)
    for ax in axs.flat:
        ax.set(xticks=[], yticks=[], facecolor="none")
        ax.spines[:].set_visible(False)
    inches = figsize[0] / (sum(ratios) * ncols)
    for g, group in enumerate(groups):
        for t, tile in enumerate(group):
            _draw(axs[g // ncols, g % ncols * len(ratios) + t], tile, fontsize, inches)
    if title: text(fig.suptitle, title, fontsize=fontsize + 2)
    return fig


def _lines(row: Sequence[Sequence[Tile]]) -> int:
    "Lines of text that stand above and below the pictures of a row"
    count = lambda side: max(getattr(t, side).count("\n") + bool(getattr(t, side)) for g in row for t in g)
    return count("above") + count("below")


def _columns(n: int, most: int) -> int:
    "As many columns as leave the fewest places empty: 3 for 9, 5 for 20"
    return n if n <= most else min(range(most // 2 + 1, most + 1), key=lambda c: (-n % c, -c))


def _draw(ax, tile: Tile, fontsize: float, inches: float) -> None:
    picture = as_picture(tile.picture)
    small = max(picture.shape[:2]) <= 128     # 32 pixels on 200: with steps between them no face is seen
    ax.imshow(picture, interpolation="lanczos" if small else "antialiased")
    fit_text(text(ax.set_title, tile.above, fontsize=fontsize, color=tile.color, pad=2.5), inches)
    fit_text(text(ax.set_xlabel, tile.below, fontsize=fontsize, labelpad=2), inches)


def draw_row(ax, pictures: Sequence[np.ndarray], names: Sequence[str], label: str, size: float,
             right: Sequence[bool] = ()) -> None:
    "Pictures side by side on one pair of axes (a pair for each takes minutes), each under its name"
    h, w = pictures[0].shape[:2]
    kind = "bicubic" if max(h, w) <= 128 else "antialiased"
    for i, p in enumerate(pictures): ax.imshow(p, extent=(i, i + .95, 0, .95 * h / w), interpolation=kind)
    ax.set(xlim=(0, len(pictures) - .05), ylim=(0, .95 * h / w), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    text(ax.set_ylabel, label, fontsize=8, rotation=0, ha="right", va="center")
    colors = [GOOD if r else BAD for r in right] or [None] * len(names)
    for i, (name, color) in enumerate(zip(names, colors)):
        fit_text(text(ax.text, i + .475, .97 * h / w, short(name, 12), color=color, fontsize=7, ha="center",
                      va="bottom"), size)


def show_grid(
    pictures,                                 # a sequence of whatever `as_picture` takes
    titles: Sequence[str] | None = None,      # one above each picture
    **kwargs,                                 # for `show_tiles`: ncols, nrows, figsize, title
) -> Figure:
    "Pictures side by side, each under its title"
    titles = [""] * len(pictures) if titles is None else titles
    return show_tiles([[Tile(p, short(t))] for p, t in zip(pictures, titles)], **kwargs)
