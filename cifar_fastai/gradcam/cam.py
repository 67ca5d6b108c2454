"""Grad-CAM and related methods on any torch model: which places of a picture speak for a class.

    cam = GradCAM(net, "layer4")         # a dotted name, a regular expression, a module, or a list of these
    cam = GradCAM(net, "layer4+layer2")  # one map: layer4's, with the detail of layer2
    out = cam(xb)                        # for the predicted class; cam(xb, "true", y=yb) for the true one
    out.maps, out.raw                    # (N,H,W) in 0…1 to look at; (N,h,w) signed, to compute with

One forward pass and one `torch.autograd.grad`. A hook on each chosen layer keeps a copy of its output and
hands on another, so that an in-place ReLU or `+=` further up cannot rewrite what was kept. No weight asks
for a gradient meanwhile: below the first chosen layer there is no graph, above it no gradient of a weight.
The hooks live for one call: there is nothing to close, and two `GradCAM` on one model do not meet.
"""
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownName
from . import checks
from .checks import NotFinite, is_map, no_map, not_finite, plain_tensor, runs_twice
from .methods import METHODS, heatmap, heatmaps, refuse_unsigned, with_detail

__all__ = ["CamOutput", "GradCAM", "cam_of", "default_layer", "find_layers", "stages_of", "undisturbed"]

Layers = str | re.Pattern | nn.Module | Iterable    # name, "name+name", regular expression, module, list


@dataclass(frozen=True, eq=False)
class CamOutput:
    "What `GradCAM` found. With several layers `maps` and `raw` are dicts by layer name"
    maps: Tensor | dict[str, Tensor]    # (N,H,W) in 0…1, the pictures' size; 1 is the map's own maximum
    raw: Tensor | dict[str, Tensor]     # (N,h,w) signed, the layer's size, before ReLU
    target: Tensor                      # (N,) int64, the class each map is for
    logits: Tensor                      # (N,C)
    names: tuple[str, ...]              # of the layers

    @property
    def maps_by_layer(self) -> dict[str, Tensor]:
        "`maps` by layer name, of one layer too"
        return self.maps if isinstance(self.maps, dict) else {self.names[0]: self.maps}

    @property
    def raw_by_layer(self) -> dict[str, Tensor]:
        "`raw` by layer name, of one layer too"
        return self.raw if isinstance(self.raw, dict) else {self.names[0]: self.raw}


def find_layers(
    model: nn.Module,
    layers: Layers,
) -> dict[str, nn.Module]:     # by dotted name, in the order asked for
    "The modules of `model` that `layers` means. Raises `InputError` with the nearest names otherwise"
    return {part: model.get_submodule(part) for parts in _maps(model, layers).values() for part in parts}


def _maps(model: nn.Module, layers: Layers) -> dict[str, tuple[str, ...]]:
    "The names of the layers behind each map, by the name of the map"
    named = {name: m for name, m in model.named_modules() if name}
    several = isinstance(layers, Iterable) and not isinstance(layers, (str, nn.Module))
    specs = list(layers) if several else [layers]
    if not specs: raise InputError("no layer was given. Name one, such as 'layer3'.")
    found = {}
    for spec in specs:
        parts = spec.split("+") if isinstance(spec, str) else [spec]
        if len(parts) > 1 and any(part in named for part in parts):        # else "+" belongs to an expression
            for part in parts:
                if part not in named: raise _unknown(part, named)
            found[spec] = tuple(parts)
        else: found |= {name: (name,) for name in _names(spec, named)}
    return found


def _names(spec: str | re.Pattern | nn.Module, named: dict[str, nn.Module]) -> list[str]:
    if isinstance(spec, nn.Module):
        names = [name for name, m in named.items() if m is spec]
        if not names: raise InputError(f"layer {type(spec).__name__} is not in the model. Give one that is.")
        return names
    if isinstance(spec, str) and spec in named: return [spec]
    try: names = [name for name in named if re.fullmatch(spec, name)]
    except (re.error, TypeError): names = []
    if names: return names
    raise _unknown(spec, named)


def _unknown(spec: str | re.Pattern, named: dict[str, nn.Module]) -> UnknownName:
    near = get_close_matches(str(spec), named, n=1, cutoff=0.5)
    return UnknownName("layer", spec, named if near else [name for name in named if "." not in name])


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
def _hooked(model: nn.Module, layers: dict[str, nn.Module], xb: Tensor) -> Iterator[dict[str, Tensor]]:
    "The dict into which a forward pass of `xb` puts the outputs of `layers`, ready for autograd"
    kept = {}

    def hook(name):
        @torch.enable_grad()            # a model may run its body under no_grad
        def keep(module, args, out):
            if name in kept: raise runs_twice(name)
            if not is_map(out, xb): raise no_map(name, out, len(xb), model)
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
        self.parts = _maps(self.model, layers)
        self.layers = find_layers(self.model, [part for parts in self.parts.values() for part in parts])

    @property
    def names(self) -> tuple[str, ...]:
        "Of the maps that a call gives"
        return tuple(self.parts)

    def __call__(
        self,
        xb: Tensor,                                  # (N,C,H,W) float, normalised as in training
        target: None | int | str | Tensor = None,    # None or "pred": predicted; "true": `y`; a class; (N,)
        y: Tensor | None = None,                     # (N,) true classes, for target="true"
        method: str | dict[str, str] = "gradcam",    # a name in `METHODS`; or one for each map, by its name
        *,
        bs: int | None = None,                       # pictures at a time; None: all at once
        autocast: bool = False,                      # True: under the caller's autocast; False: without
    ) -> CamOutput:
        "A map for each picture. Model, generators, `.grad` and hooks are as before. Raises `InputError`"
        methods = {name: method if isinstance(method, str) else method.get(name, "") for name in self.names}
        for name in methods.values():
            if name not in METHODS: raise UnknownName("method", name, METHODS)
        if bs is not None and bs < 1: raise InputError(f"bs is {bs}. Give a number from 1 up, or None.")
        xb = plain_tensor(xb, self.model)
        target, bs = checks.target_classes(target, y, xb), bs or len(xb)
        with undisturbed(self.model, xb.device, autocast):
            parts = [self._part(xb[i:i + bs], None if target is None else target[i:i + bs], methods)
                     for i in range(0, len(xb), bs)]
        raw, target, logits = zip(*parts)
        raw = {name: torch.cat([r[name] for r in raw]) for name in self.names}
        for name in raw: _check(name, raw[name])
        maps = {name: heatmap(raw[name], xb.shape[-2:]) for name in raw}
        if len(raw) == 1: (maps,), (raw,) = maps.values(), raw.values()
        return CamOutput(maps, raw, torch.cat(target), torch.cat(logits), self.names)

    def together(
        self,
        xb: Tensor,
        targets: Sequence,         # of each kind of map, as a call takes it
        y: Tensor | None = None, method: str = "gradcam",
        *,
        signed: bool = False,      # maps in -1…1: what speaks against a class is negative
        bs: int | None = None, autocast: bool = False,
    ) -> list[CamOutput]:          # one a target
        """Maps of several classes of the same pictures, on one scale: 1 is the largest value of a picture's
        maps at that layer, its predicted class's among them. A faint map of an unlikely class looks faint"""
        if signed: refuse_unsigned(method)
        outs = [self(xb, target, y, method, bs=bs, autocast=autocast) for target in targets]
        predicted = outs[0].logits.argmax(1)
        there = any(torch.equal(o.target, predicted) for o in outs)
        beside = [] if there else [self(xb, method=method, bs=bs, autocast=autocast)]
        maps = {name: heatmaps([o.raw_by_layer[name] for o in (*outs, *beside)], xb.shape[-2:], signed)
                for name in self.names}
        found = [{name: maps[name][i] for name in maps} for i in range(len(outs))]
        return [replace(o, maps=m if len(m) > 1 else m[self.names[0]]) for o, m in zip(outs, found)]

    def _part(self, xb: Tensor, target: Tensor | None, methods: dict) -> tuple[dict, Tensor, Tensor]:
        "Raw maps by layer, targets and logits, from one forward pass"
        with _hooked(self.model, self.layers, xb) as kept: logits = self.model(xb)
        target, chosen = checks.target_logits(logits, target, len(xb))
        if not chosen.isfinite().all(): raise not_finite(self.model, xb)
        grads = _gradients(chosen.sum(), kept)       # of a sum: each picture meets only its own logit
        raw = lambda k, method: _raw(kept[k], grads[k], METHODS[method])
        maps = {name: with_detail(raw(first, methods[name]), *(raw(k, "layercam") for k in finer))
                for name, (first, *finer) in self.parts.items()}
        return maps, target, logits.detach()


def stages_of(model: nn.Module) -> list[str]:
    "The names of a ResNet's stages, `layer1` and so on, from the first to the last"
    parts = getattr(model, "_orig_mod", model).named_children()
    return [name for name, _ in parts if re.fullmatch(r"layer\d+", name)]


def default_layer(model: nn.Module) -> str:
    """A layer to look at: a ResNet's last stage with the detail of the one two below (`layer4+layer2`, see
    docs/gradcam.md), the body of fastai's vision learners, or the last convolution. Of a `Sequential` of a
    whole net and what prepares pictures or ends logits, the net's"""
    model, stages = getattr(model, "_orig_mod", model), stages_of(model)
    if stages: return "+".join([stages[-1], *stages[-3:-2]])
    if isinstance(model, nn.Sequential) and len(model) == 2:
        has = lambda k, kind: any(isinstance(m, kind) for m in model[k].modules())
        names, k = list(model._modules), int(has(1, nn.Conv2d) and not has(0, nn.Conv2d))
        if not (k or has(0, nn.Linear) and not list(model[1].parameters())): return names[0]
        at = names[k] + "._orig_mod" * hasattr(model[k], "_orig_mod")
        return "+".join(f"{at}.{part}" for part in default_layer(model[k]).split("+"))
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    if not convs: raise InputError("the model has no convolution to look into. Name a layer with layer=.")
    return convs[-1]


def cam_of(model: nn.Module, layers: Layers | None = None) -> GradCAM:
    "`GradCAM` at the layers that were chosen, or at the default one"
    return GradCAM(model, default_layer(model) if layers is None else layers)
