"""P7: Grad-CAM of 64 pictures by ResNet-18 on 32×32, fp32, against pytorch-grad-cam, captum and torch-cam.

From pictures to the maps of the predicted class: captum must be told the class, so it needs a forward pass of
its own first; its time without that pass is noted. No overlay code is in it. Ours makes maps of the size of
the pictures too, which captum and torch-cam leave to the caller. Equality is checked first.
"""
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_fastai.gradcam import GradCAM, default_layer
from cifar_fastai.models import resnet18

from .harness import Row, alternate, ratio

BS, LAYER = 64, "layer3"


def by_grad_cam(net: nn.Module, xb: Tensor) -> Callable[[], Tensor]:
    from pytorch_grad_cam import GradCAM as Theirs
    cam = Theirs(net, [net.get_submodule(LAYER)])
    return lambda: torch.from_numpy(cam(xb, None))                     # (N,32,32), each over its own range


def by_captum(net: nn.Module, xb: Tensor, target: Tensor | None = None) -> Callable[[], Tensor]:
    from captum.attr import LayerGradCam
    cam = LayerGradCam(net, net.get_submodule(LAYER))

    def predicted():
        with torch.no_grad(): return net(xb).argmax(1)

    def maps():                                                        # (N,8,8)
        known = predicted() if target is None else target
        return cam.attribute(xb, known, relu_attributions=True).detach()[:, 0]
    return maps


def by_torch_cam(net: nn.Module, xb: Tensor) -> Callable[[], Tensor]:
    from torchcam.methods import GradCAM as Theirs

    def maps():                                                        # (N,8,8), each over its own range
        with Theirs(net, LAYER) as cam:
            logits = net(xb)
            return cam(logits.argmax(1).tolist(), logits)[0]
    return maps


RIVALS = {  # name to install it by → module, goal of the ratio, its maps, and ours in their form
    "grad-cam": ("pytorch_grad_cam", 3.0, by_grad_cam, lambda raw: _ranged(_resized(_ranged(raw)))),
    "captum": ("captum", 1.5, by_captum, torch.relu),
    "torchcam": ("torchcam", 1.0, by_torch_cam, lambda raw: _ranged(raw))}


def _ranged(raw: Tensor) -> Tensor:
    "ReLU, then each map from its minimum to its maximum"
    x = raw.relu() - raw.relu().amin((1, 2), keepdim=True)
    return x / (x.amax((1, 2), keepdim=True) + 1e-7)


def _resized(x: Tensor) -> Tensor: return F.interpolate(x[:, None], (32, 32), mode="bilinear")[:, 0]


def _net(device: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = resnet18().to(device).eval()
        net.fc.weight.data *= 100               # maps of order 1, so that 1e-5 means something
        return net, torch.randn(BS, 3, 32, 32).to(device)


def _timed(work: Callable, device: str) -> Callable[[], None]:
    def run():
        work()
        if device != "cpu": torch.cuda.synchronize()
    return run


def run(
    rounds: int = 5,
    device: str = "cpu",
) -> list[Row]:
    "Check that all find the same maps, then let them take turns"
    warnings.filterwarnings("ignore", module="captum|pytorch_grad_cam|torch")
    net, xb = _net(device)
    cam, top = GradCAM(net, LAYER), GradCAM(net, "layer4")
    out = cam(xb)
    usual = GradCAM(net, default_layer(net))
    contenders = {"ours": partial(cam, xb), "layer4": partial(top, xb), "default": partial(usual, xb),
                  "forward": torch.no_grad()(partial(net, xb))}
    for name, (module, _, make, ours_as_theirs) in RIVALS.items():
        if not find_spec(module):
            print(f"gradcam: {name} is left out: pip install -e '.[bench]' brings it", file=sys.stderr)
            continue
        maps = make(net, xb)
        off = (maps().to(device) - ours_as_theirs(out.raw)).abs().max().item()
        assert off <= (1e-5 if device == "cpu" else 1e-4), f"{name} finds other maps, {off:.1e} off"
        contenders[name] = maps
    if "captum" in contenders: contenders["captum, class known"] = by_captum(net, xb, out.target)
    times = alternate({k: _timed(f, device) for k, f in contenders.items()}, 3 * rounds, 2)
    return _rows(times, f"Grad-CAM of {BS} pictures at {LAYER}, fp32, {device}")


def _rows(times: dict[str, list[float]], work: str) -> list[Row]:
    speed = ", ".join(f"{name} {BS / sorted(ts)[len(ts) // 2]:.0f}" for name, ts in times.items())
    rows = [Row("P7", work, name, goal, ratio(times, name, "ours"))
            for name, (_, goal, *_) in RIVALS.items() if name in times]
    forward = (("layer4", 1.15, ""), ("default", 2.0, f"pictures/s: {speed}"))
    return rows + [Row("P7", work.replace(f"{LAYER},", f"{of},"), "a plain forward pass", goal,
                       ratio(times, of, "forward"), at_most=True, note=note) for of, goal, note in forward]
