"""Faithfulness of maps: insertion and deletion curves (RISE: Petsiuk, Das & Saenko 2018).

    out = GradCAM(net, "layer3")(xb)
    maps = upsample(out.raw, xb.shape[-2:])                          # signed: a ReLU would leave ties
    insertion, deletion = insertion_deletion(net, xb, maps, out.target)
    noise = random_maps(len(xb), xb.shape[-2:], out.raw.shape[-2:])  # a control of the same smoothness
    paired_ci(deletion, insertion_deletion(net, xb, noise, out.target)[1])    # below 0: better than chance

Deletion hides the places of a picture from the hottest down, insertion brings them back into a hidden
picture in the same order. A good map makes the class's probability fall early (a small area under it) and
rise early (a large one).
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, UnknownName
from .cam import undisturbed
from .checks import plain_tensor
from .methods import heatmap, upsample

__all__ = ["BASELINES", "blob_map", "compare_maps", "insertion_deletion", "paired_ci", "random_maps"]


def _blur(xb: Tensor) -> Tensor:
    "Gaussian, σ a sixth of the longer side: shapes are gone, colours stay"
    dtype, sigma, r = xb.dtype, max(xb.shape[-2:]) / 6, max(xb.shape[-2:]) // 3
    xb = xb.to(torch.promote_types(dtype, torch.float32))  # bf16 with channels last takes minutes
    kernel = torch.exp(-torch.arange(-r, r + 1, device=xb.device, dtype=xb.dtype) ** 2 / (2 * sigma ** 2))
    kernel = (kernel / kernel.sum()).expand(xb.shape[1], 1, 1, -1)
    for k, pad in ((kernel, (r, r, 0, 0)), (kernel.transpose(2, 3), (0, 0, r, r))):
        xb = F.conv2d(F.pad(xb, pad, mode="replicate"), k, groups=xb.shape[1])
    return xb.to(dtype)


def _mean(xb: Tensor) -> Tensor:
    "Each picture's own mean colour"
    return xb.mean((2, 3), keepdim=True).expand_as(xb)


BASELINES = {"blur": _blur, "mean": _mean, "zero": torch.zeros_like}     # what stands where a place is hidden


def insertion_deletion(
    model: nn.Module,
    xb: Tensor,                 # (N,C,H,W) float, normalised
    maps: Tensor,               # (N,H,W), only the order of its values counts; ties in reading order
    target: Tensor,             # (N,) classes whose probability is followed
    steps: int = 16,            # the places are hidden in this many equal parts
    baseline: str = "blur",     # a name in `BASELINES`
    bs: int = 256,              # pictures at a time
    *,
    tol: float = 0.,            # a stretch over which the probability moves by less counts as straight
    autocast: bool = False,     # True: under the caller's autocast; False: without
) -> tuple[Tensor, Tensor]:     # (N,) areas under the probability, each in 0…1
    """Insertion and deletion AUC of each picture (trapezoids over the share of places). Model as before.
    `tol` saves passes: the curve is halved where it moves, from a quarter of its length down; 0 takes all
    2 × (`steps` - 1) + 2 passes a picture"""
    if baseline not in BASELINES: raise UnknownName("baseline", baseline, BASELINES)
    if maps.shape != (len(xb), *xb.shape[-2:]):
        raise InputError(f"maps have shape {tuple(maps.shape)}, pictures {tuple(xb.shape)}. Upsample maps.")
    if steps < 1: raise InputError(f"steps is {steps}. Give a number from 1 up.")
    xb = plain_tensor(xb, model)
    maps = maps.to(xb.device)
    target = torch.as_tensor(target, device=xb.device).as_subclass(Tensor).expand(len(xb))
    with torch.autocast(xb.device.type, enabled=False): hidden = BASELINES[baseline](xb)
    with undisturbed(model, xb.device, autocast), torch.no_grad():
        curves = _Curves(model, xb, maps, target, steps, hidden, bs)
        return tuple(curves.areas(tol))


class _Curves:
    "The probability of each picture's class while its places come back (curve 0) or go (curve 1)"

    def __init__(self, model, xb: Tensor, maps: Tensor, target: Tensor, steps: int, hidden: Tensor, bs: int):
        order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
        self.rank = order.argsort(dim=1).view(len(xb), 1, *xb.shape[-2:])      # 0 where the map is hottest
        self.model, self.xb, self.hidden, self.target = model, xb, hidden, target
        self.steps, self.bs = steps, bs

    def at(self, curve: Tensor, i: Tensor, step: Tensor) -> Tensor:     # three (M,) -> (M,)
        "Probabilities of pictures `i` after a number of steps along a curve, in batches"
        return torch.cat([self._at(*part) for part in zip(*(t.split(self.bs) for t in (curve, i, step)))])

    def _at(self, curve: Tensor, i: Tensor, step: Tensor) -> Tensor:
        places = self.rank[0].numel()
        hot = self.rank[i] < (step * places / self.steps).round().view(-1, 1, 1, 1)
        x = torch.where(hot ^ (curve == 1).view(-1, 1, 1, 1), self.xb[i], self.hidden[i])
        return self.model(x).float().softmax(1).gather(1, self.target[i, None])[:, 0]

    def areas(self, tol: float) -> Tensor:     # (2,N)
        "The area under each curve: stretches are halved until they are one step, or short and straight"
        n, device = len(self.xb), self.xb.device
        i = torch.arange(n, device=device)
        gone, whole = (self.at(torch.zeros_like(i), i, torch.full_like(i, k)) for k in (0, self.steps))
        curve, i = torch.arange(2, device=device).repeat_interleave(n), i.repeat(2)
        low, high = torch.zeros_like(i), torch.full_like(i, self.steps)
        p_low, p_high = torch.cat([gone, whole]), torch.cat([whole, gone])
        area = torch.zeros(2, n, dtype=p_low.dtype, device=device)
        while len(i):
            width = high - low
            done = (width == 1) | (4 * width <= self.steps) & ((p_high - p_low).abs() < tol)
            part = (p_low + p_high) / 2 * width / self.steps
            area.index_put_((curve[done], i[done]), part[done], accumulate=True)
            curve, i, low, high, p_low, p_high = (t[~done] for t in (curve, i, low, high, p_low, p_high))
            if not len(i): break
            mid = (low + high) // 2
            p_mid = self.at(curve, i, mid)
            curve, i = curve.repeat(2), i.repeat(2)
            low, high = torch.cat([low, mid]), torch.cat([mid, high])
            p_low, p_high = torch.cat([p_low, p_mid]), torch.cat([p_mid, p_high])
        return area


def random_maps(
    n: int,
    size: tuple[int, int],      # (H,W) of the pictures
    grid: tuple[int, int],      # (h,w) of the layer: the same smoothness as a map from there
    seed: int = 0,
) -> Tensor:                    # (n,H,W)
    "Maps that know nothing: uniform noise at the layer's size, upsampled as a map is"
    return upsample(torch.rand(n, *grid, generator=torch.Generator().manual_seed(seed)), size)


def blob_map(
    n: int,
    size: tuple[int, int],      # (H,W) of the pictures
) -> Tensor:                    # (n,H,W)
    "Maps that know one thing, that objects stand in the middle: a centred Gaussian, σ a quarter of a side"
    y, x = (torch.linspace(-1, 1, s) for s in size)
    return torch.exp(-2 * (y[:, None] ** 2 + x ** 2)).expand(n, *size)


def paired_ci(
    a: Tensor,                  # (N,) one figure per picture
    b: Tensor,                  # (N,) the other, of the same pictures
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    "Mean of a − b with low and high of its bootstrap percentile interval (Efron & Tibshirani 1993)"
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InputError(f"a has shape {tuple(a.shape)}, b {tuple(b.shape)}. Give one per picture.")
    d = (a - b).double().cpu()
    rows = torch.randint(len(d), (draws, len(d)), generator=torch.Generator().manual_seed(seed))
    means, tail = d[rows].mean(1), (1 - level) / 2
    return d.mean().item(), means.quantile(tail).item(), means.quantile(1 - tail).item()


def compare_maps(
    model: nn.Module,
    xb: Tensor,                 # (N,C,H,W) float, normalised
    raws: dict[str, Tensor],    # by name: (N,h,w) signed maps of one layer
    target: Tensor,             # (N,) the classes they are for
    steps: int = 16,
    baseline: str = "blur",
    level: float = 0.95,
    seed: int = 0,              # of the noise and of the bootstrap
    *,
    tol: float = 0.,            # as in `insertion_deletion`
    autocast: bool = False,
) -> list[dict]:
    """Each map against three controls, insertion and deletion: method, measure, control, n, auc, control_auc,
    difference, low, high (of a paired bootstrap), better (the interval lies on the good side of 0). The
    controls: noise at the layer's size, a centred blob, and the mean of the method's own maps of these
    pictures, which knows where the net tends to look but not this picture"""
    n, size, found = len(xb), tuple(xb.shape[-2:]), []
    grid = tuple(next(iter(raws.values())).shape[-2:])
    how = {"steps": steps, "baseline": baseline, "tol": tol, "autocast": autocast}
    area = lambda maps: insertion_deletion(model, xb, maps, target, **how)
    common = {"random": area(random_maps(n, size, grid, seed)), "centred": area(blob_map(n, size))}
    for method, raw in raws.items():
        mine, mean_map = area(upsample(raw, size)), heatmap(raw, size).mean(0).expand(n, *size)
        controls = common | {"mean map": area(mean_map)}
        for k, (measure, sign) in enumerate((("insertion", 1), ("deletion", -1))):
            for control in controls:
                a, b = mine[k], controls[control][k]
                mean, low, high = paired_ci(a, b, level, seed=seed)
                found.append({"method": method, "measure": measure, "control": control, "n": n,
                              "auc": a.mean().item(), "control_auc": b.mean().item(), "difference": mean,
                              "low": low, "high": high, "better": low > 0 if sign > 0 else high < 0})
    return found
