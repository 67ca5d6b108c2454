"""Grad-CAM and related methods on any torch model: which places of a picture speak for a class.

    cam = GradCAM(net, "layer3")         # a dotted name, a regular expression, a module, or a list of these
    out = cam(xb)                        # for the predicted class; cam(xb, "true", y=yb) for the true one
    out.maps, out.raw                    # (N,H,W) in 0…1 to look at; (N,h,w) signed, to compute with

One forward pass and one `torch.autograd.grad`. A hook on each chosen layer keeps a copy of its output and
hands on another, so that an in-place ReLU or `+=` further up cannot rewrite what was kept. No weight asks
for a gradient meanwhile: below the first chosen layer there is no graph, above it no gradient of a weight.
The hooks live for one call: there is nothing to close, and two `GradCAM` on one model do not meet.
"""
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, UnknownName
from . import checks
from .checks import NotFinite, is_map, no_map, not_finite, plain_tensor, runs_twice

__all__ = ["CamOutput", "GradCAM", "METHODS", "default_layer", "find_layers", "heatmap", "undisturbed",
           "upsample"]

Layers = str | re.Pattern | nn.Module | Iterable    # dotted name, regular expression for one, module, list
HW = (2, 3)


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


@dataclass(frozen=True, eq=False)
class CamOutput:
    "What `GradCAM` found. With several layers `maps` and `raw` are dicts by layer name"
    maps: Tensor | dict[str, Tensor]    # (N,H,W) in 0…1, the pictures' size, each map over its own maximum
    raw: Tensor | dict[str, Tensor]     # (N,h,w) signed, the layer's size, before ReLU
    target: Tensor                      # (N,) int64, the class each map is for
    logits: Tensor                      # (N,C)


def upsample(
    raw: Tensor,               # (N,h,w)
    size: tuple[int, int],     # (H,W) of the pictures
) -> Tensor:                   # (N,H,W)
    "`raw` at the size of the pictures: bilinear, pixel centres kept in place (`align_corners=False`)"
    return F.interpolate(raw[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def heatmap(
    raw: Tensor,               # (N,h,w) signed
    size: tuple[int, int],     # (H,W) of the pictures
) -> Tensor:                   # (N,H,W) in 0…1
    "`raw` to look at: ReLU, `upsample`, each map over its own maximum. 0 stays 0, an all-zero map stays zero"
    maps = upsample(raw.relu(), size)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def find_layers(
    model: nn.Module,
    layers: Layers,
) -> dict[str, nn.Module]:     # by dotted name, in the order asked for
    "The modules of `model` that `layers` means. Raises `InputError` with the nearest names otherwise"
    named = {name: m for name, m in model.named_modules() if name}
    several = isinstance(layers, Iterable) and not isinstance(layers, (str, nn.Module))
    specs = list(layers) if several else [layers]
    if not specs: raise InputError("no layer was given. Name one, such as 'layer3'.")
    return {name: named[name] for spec in specs for name in _names(spec, named)}


def _names(spec: str | re.Pattern | nn.Module, named: dict[str, nn.Module]) -> list[str]:
    if isinstance(spec, nn.Module):
        names = [name for name, m in named.items() if m is spec]
        if not names: raise InputError(f"layer {type(spec).__name__} is not in the model. Give one that is.")
        return names
    if isinstance(spec, str) and spec in named: return [spec]
    try: names = [name for name in named if re.fullmatch(spec, name)]
    except (re.error, TypeError): names = []
    if names: return names
    near = get_close_matches(str(spec), named, n=1, cutoff=0.5)
    raise UnknownName("layer", spec, named if near else [name for name in named if "." not in name])


@contextmanager
def undisturbed(
    model: nn.Module,
    device: torch.device,       # where it runs: that device's random generator is put back
    autocast: bool = False,     # True: leave an autocast around the call as it is
) -> Iterator[None]:
    "`model` in eval mode, gradients on but of no weight; every flag and generator as before afterwards"
    modes = [m for m in model.modules() if m.training]
    flags = [p for p in model.parameters() if p.requires_grad]
    fork = torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda")
    cast = nullcontext() if autocast else torch.autocast(device.type, enabled=False)
    try:
        for m in modes: m.training = False       # not .eval(): a net may override train()
        for p in flags: p.requires_grad_(False)
        with fork, cast, torch.enable_grad(): yield
    finally:
        for m in modes: m.training = True
        for p in flags: p.requires_grad_(True)


@contextmanager
def _hooked(model: nn.Module, layers: dict[str, nn.Module], n: int) -> Iterator[dict[str, Tensor]]:
    "The dict into which a forward pass of `n` pictures puts the outputs of `layers`, ready for autograd"
    kept = {}

    def hook(name):
        @torch.enable_grad()            # a model may run its body under no_grad
        def keep(module, args, out):
            if name in kept: raise runs_twice(name)
            if not is_map(out, n): raise no_map(name, out, n, model)
            kept[name] = out.clone() if out.requires_grad else out.detach().clone().requires_grad_()
            return kept[name].clone()
        return keep

    with ExitStack() as stack:
        for name, m in layers.items(): stack.callback(m.register_forward_hook(hook(name)).remove)
        yield kept
    for name in layers:
        if name not in kept: raise InputError(f"layer {name!r} is never reached. Choose one that runs.")


def _gradients(S: Tensor, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    grads = [None] * len(kept)
    if S.requires_grad: grads = torch.autograd.grad(S, list(kept.values()), allow_unused=True)
    for name, g in zip(kept, grads):
        if g is None:
            raise InputError(f"no gradient reaches layer {name!r}: the logits do not depend on it, or the "
                             "model cuts the graph above it (no_grad, detach). Choose a later layer.")
    return dict(zip(kept, grads))


def _raw(A: Tensor, g: Tensor, weigh: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    A, g = (t.detach().to(torch.promote_types(t.dtype, torch.float32)) for t in (A, g))
    return (weigh(A, g) * A).sum(1)


def _check(name: str, raw: Tensor):
    if not raw.isfinite().all():
        raise NotFinite(f"the map of layer {name!r} overflows in its dtype. Use model.float().")
    if raw.shape[1:] == (1, 1):
        warnings.warn(f"layer {name!r} gives a 1×1 map, one flat colour. Try an earlier one.", stacklevel=3)


class GradCAM:
    "Class activation maps of `model` at `layers`; the maths and source of each method stand at `METHODS`"

    def __init__(
        self,
        model: nn.Module,      # pictures (N,C,H,W) -> logits (N, classes)
        layers: Layers,        # see `find_layers`
    ):
        self.model = getattr(model, "_orig_mod", model)     # torch.compile skips hooks: take what it wraps
        self.layers = find_layers(self.model, layers)

    def __call__(
        self,
        xb: Tensor,                                  # (N,C,H,W) float, normalised as in training
        target: None | int | str | Tensor = None,    # None or "pred": predicted; "true": `y`; a class; (N,)
        y: Tensor | None = None,                     # (N,) true classes, for target="true"
        method: str = "gradcam",                     # a name in `METHODS`
        *,
        bs: int | None = None,                       # pictures at a time; None: all at once
        autocast: bool = False,                      # True: under the caller's autocast; False: without
    ) -> CamOutput:
        "A map for each picture. Model, generators, `.grad` and hooks are as before. Raises `InputError`"
        if method not in METHODS: raise UnknownName("method", method, METHODS)
        if bs is not None and bs < 1: raise InputError(f"bs is {bs}. Give a number from 1 up, or None.")
        xb = plain_tensor(xb, self.model)
        target, bs = checks.target_classes(target, y, xb), bs or len(xb)
        with undisturbed(self.model, xb.device, autocast):
            parts = [self._part(xb[i:i + bs], None if target is None else target[i:i + bs], METHODS[method])
                     for i in range(0, len(xb), bs)]
        raw, target, logits = zip(*parts)
        raw = {name: torch.cat([r[name] for r in raw]) for name in self.layers}
        for name in raw: _check(name, raw[name])
        maps = {name: heatmap(raw[name], xb.shape[-2:]) for name in raw}
        if len(raw) == 1: (maps,), (raw,) = maps.values(), raw.values()
        return CamOutput(maps, raw, torch.cat(target), torch.cat(logits))

    def _part(self, xb: Tensor, target: Tensor | None, weigh: Callable) -> tuple[dict, Tensor, Tensor]:
        "Raw maps by layer, targets and logits, from one forward pass"
        with _hooked(self.model, self.layers, len(xb)) as kept: logits = self.model(xb)
        target, chosen = checks.target_logits(logits, target, len(xb))
        if not chosen.isfinite().all(): raise not_finite(self.model, xb)
        grads = _gradients(chosen.sum(), kept)       # of a sum: each picture meets only its own logit
        return {k: _raw(kept[k], grads[k], weigh) for k in self.layers}, target, logits.detach()


def default_layer(model: nn.Module) -> str:
    "A layer to look at: `layer3` of a ResNet, the body of fastai's vision learners, or the last convolution"
    names = dict(model.named_modules())
    if "layer3" in names: return "layer3"
    if isinstance(model, nn.Sequential) and len(model) == 2: return "0"
    convs = [n for n, m in names.items() if isinstance(m, nn.Conv2d)]
    if not convs: raise InputError("the model has no convolution to look into. Name a layer with layer=.")
    return convs[-1]
