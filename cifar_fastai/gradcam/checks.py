"""Checks of the arguments of `GradCAM` and of what a model returns, with one-line errors."""
from itertools import chain

import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownName

__all__ = ["NotFinite", "is_map", "no_map", "not_finite", "plain_tensor", "runs_twice",
           "target_classes", "target_logits"]


class NotFinite(InputError):
    "NaN or infinite values where a map was to be made: nothing is wrong with what was asked for"


def _found(x) -> str:
    return f"shape {tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else f"type {type(x).__name__}"


def plain_tensor(
    xb: Tensor,            # (N,C,H,W) pictures, of any tensor subclass
    model: nn.Module,
) -> Tensor:
    "`xb` as an ordinary tensor of the model's dtype, on its device. Raises `InputError`"
    if not isinstance(xb, Tensor) or xb.ndim != 4 or not len(xb):
        raise InputError(f"xb has {_found(xb)}, not (N, channels, H, W). For one picture give x[None].")
    if not xb.is_floating_point():
        raise InputError(f"xb has {_found(xb)}. Give floats, normalised as in training.")
    weights = [p for p in model.parameters() if p.is_floating_point()]
    if torch.is_inference_mode_enabled() or any(t.is_inference() for t in (xb, *weights)):
        raise InputError("tensors of torch.inference_mode() take no gradients. Use torch.no_grad() instead.")
    xb = xb.as_subclass(Tensor).detach()
    return xb.to(weights[0].device, weights[0].dtype) if weights else xb


def target_classes(
    target: None | int | str | Tensor,    # as `GradCAM` takes it
    y: Tensor | None,                     # (N,) true classes
    xb: Tensor,                           # the N pictures
) -> Tensor | None:                       # (N,) int64, or None for the predicted class
    "The classes asked for. Raises `InputError` for an unknown word, a wrong length, fractions"
    if target is None or isinstance(target, str) and target == "pred": return None
    name = "target"
    if isinstance(target, str):
        if target != "true": raise UnknownName("target", target, ["pred", "true"])
        if y is None: raise InputError("target is 'true' but there is no y. Give y, the true classes.")
        name, target = "y", y
    try: t = torch.as_tensor(target).as_subclass(Tensor).to(xb.device)
    except (TypeError, ValueError, RuntimeError): t = torch.empty(0)
    if t.dtype == torch.bool or t.is_floating_point() or t.is_complex() or t.ndim and t.shape != (len(xb),):
        raise InputError(f"{name} has {_found(t if t.numel() else target)}. "
                         f"Give one class number for each of the {len(xb)} pictures.")
    return t.long().expand(len(xb))


def target_logits(
    logits: Tensor,             # what the model returned for `n` pictures
    target: Tensor | None,      # (n,), or None for the predicted class
    n: int,
) -> tuple[Tensor, Tensor]:     # classes and their logits, (n,) and (n,1)
    "The logit that each map is for. Raises `InputError` where there are no logits or no such class"
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != n:
        raise InputError(f"the model returned {_found(logits)}, not logits ({n}, classes). Wrap it to do so.")
    if target is None: target = logits.detach().argmax(1)
    last = logits.shape[1] - 1
    wrong = target[(target < 0) | (target > last)]
    if len(wrong): raise InputError(f"target {wrong[0].item()} is no class here. Choose from 0 to {last}.")
    return target, logits.gather(1, target[:, None])


def is_map(out, xb: Tensor) -> bool:
    "Whether a layer's output has one float map per picture and channel; (N,H,W,C), as in a Swin, has none"
    if not (isinstance(out, Tensor) and out.is_floating_point() and out.ndim == 4): return False
    (H, W), (a, b, c) = xb.shape[-2:], out.shape[1:]
    channels_last = a > 1 < b and a * W == b * H and b * W != c * H        # shaped as the picture is
    return len(out) == len(xb) and not channels_last


def no_map(name: str, out, n: int, model: nn.Module) -> InputError:
    "For a layer whose output is no map"
    convs = [k for k, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    way_out = f"Choose a convolutional layer; the last one is {convs[-1]!r}." if convs else "Choose another."
    return InputError(f"layer {name!r} has no map: its output has {_found(out)}, not float "
                      f"({n}, channels, height, width). {way_out}")


def runs_twice(name: str) -> InputError:
    "For a layer that one forward pass calls again"
    parent = name.rpartition(".")[0]
    way_out = f"Choose {parent!r}, which contains it." if parent else "Choose a layer that runs once."
    return InputError(f"layer {name!r} runs twice in one forward pass, so it has no one map. {way_out}")


def not_finite(model: nn.Module, xb: Tensor) -> NotFinite:
    "Why `model` gave no finite logits for `xb`: the first layer with such weights, a picture, an overflow"
    for name, t in chain(model.named_parameters(), model.named_buffers()):
        if t.is_floating_point() and not t.isfinite().all():
            layer, _, what = name.rpartition(".")
            return NotFinite(f"layer {layer!r} has NaN or infinite values in its {what}: the training broke "
                             "down. Load earlier weights.")
    bad = [i for i, x in enumerate(xb) if not x.isfinite().all()]
    if bad: return NotFinite(f"picture {bad[0]} of xb has NaN or infinite pixels. Mend the data.")
    return NotFinite("the logits overflow though weights and pictures are finite. Use model.float().")
