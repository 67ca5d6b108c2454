"""What a map is made of: the methods, detail from an earlier layer, and how maps are scaled to be looked at.

    heatmaps([why_cat, where_dog], (32, 32))             # two classes of the same pictures, on one scale
    with_detail(raw4, raw2)                              # coarse evidence for the class, fine from below
"""
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

__all__ = ["DETAIL", "METHODS", "SIGNED", "heatmap", "heatmaps", "refuse_unsigned", "upsample", "with_detail"]

HW = (2, 3)
DETAIL = 0.3        # weight of an earlier layer in a map of several: chosen by docs/gradcam.md


def _gradcam(A: Tensor, g: Tensor) -> Tensor:
    "Selvaraju et al. 2017, eq. 1"
    return g.mean(HW, keepdim=True)


def _hirescam(A: Tensor, g: Tensor) -> Tensor:
    "Draelos & Carin 2020"
    return g


def _xgradcam(A: Tensor, g: Tensor) -> Tensor:
    "Fu et al. 2020; a channel that sums to 0 weighs 0"
    total = A.sum(HW, keepdim=True)
    return torch.where(total == 0, 0, (g * A).sum(HW, keepdim=True) / total)


def _layercam(A: Tensor, g: Tensor) -> Tensor:
    "Jiang et al. 2021"
    return g.relu()


def _gradcam_pp(A: Tensor, g: Tensor) -> Tensor:
    "Chattopadhay et al. 2018, with α = g²/(2g² + g³·ΣA) as 1/(2 + g·ΣA): the squares of small g underflow"
    below = 2 + g * A.sum(HW, keepdim=True)
    return torch.where((g > 0) & (below != 0), g / below, 0).sum(HW, keepdim=True)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {    # (A, dS/dA) -> weights that broadcast over A
    "gradcam": _gradcam, "hirescam": _hirescam, "xgradcam": _xgradcam, "layercam": _layercam,
    "gradcam++": _gradcam_pp}

SIGNED = ("gradcam", "hirescam", "xgradcam")     # the others leave out what speaks against the class


def upsample(
    raw: Tensor,               # (N,h,w)
    size: tuple[int, int],     # (H,W) of the pictures
) -> Tensor:                   # (N,H,W)
    "`raw` at the size of the pictures: bilinear, pixel centres kept in place (`align_corners=False`)"
    return F.interpolate(raw[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def with_detail(
    raw: Tensor,               # (N,h,w) of the layer that knows the class
    *finer: Tensor,            # (N,h',w') of layers below, by LayerCAM
) -> Tensor:                   # (N,H',W') of the finest of them
    """`raw` plus `DETAIL` of each finer map, brought to its height: still in units of `raw`, whose order of
    places is refined where it is flat. Where nothing speaks for the class, nothing is added"""
    if not finer: return raw
    size = tuple(max(m.shape[k] for m in (raw, *finer)) for k in (1, 2))
    top = raw.amax((1, 2), keepdim=True).relu()
    return upsample(raw, size) + sum(DETAIL * top * heatmap(m, size) for m in finer)


def heatmap(
    raw: Tensor,               # (N,h,w) signed
    size: tuple[int, int],     # (H,W) of the pictures
) -> Tensor:                   # (N,H,W) in 0…1
    "`raw` to look at: ReLU, `upsample`, each map over its own maximum. 0 stays 0, an all-zero map stays zero"
    return heatmaps([raw], size)[0]


def heatmaps(
    raws: Sequence[Tensor],    # (N,h,w) each, signed: maps of the same N pictures, of several classes
    size: tuple[int, int],     # (H,W) of the pictures
    signed: bool = False,      # keep what speaks against the class, as negative numbers
) -> list[Tensor]:             # (N,H,W) each, in 0…1; in -1…1 where signed
    """Maps of several classes on one scale: each picture's are divided by the largest value among them, so
    that a faint map looks faint beside a strong one"""
    maps = [upsample(raw if signed else raw.relu(), size) for raw in raws]
    top = torch.stack([m.abs().amax((1, 2), keepdim=True) for m in maps]).amax(0)
    return [m / top.clamp_min(torch.finfo(m.dtype).tiny) for m in maps]


def refuse_unsigned(method: str) -> None:
    "Raises `InputError` for a method that leaves out what speaks against a class"
    if method in SIGNED: return
    raise InputError(f"method {method!r} leaves out what speaks against a class. For signed maps take "
                     f"{', '.join(SIGNED[:-1])} or {SIGNED[-1]}.")
