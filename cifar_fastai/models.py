"""Nets for CIFAR-sized pictures, in plain torch.

    net = create_model("resnet18", n_out=10)          # or resnet18(n_out=10)
    net(torch.randn(8, 3, 32, 32)).shape              # (8, 10); other sizes work too
"""
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from numbers import Integral

import torch
from torch import Tensor, nn

from .errors import InputError, UnknownName

__all__ = ["MODELS", "NORMS", "airbench", "check_head", "create_model", "custom_resnet", "head_of",
           "last_linear", "layer_groups", "model_summary", "resnet101", "resnet18", "resnet34", "resnet50",
           "unused_weights", "wrong_head", "zero_residuals"]

NORMS = {"bn": nn.BatchNorm2d, "gn": partial(nn.GroupNorm, 1)}   # GroupNorm(1, C): LayerNorm over (C, H, W)


def _init(m: nn.Module):
    "As torchvision: convolutions by fan-out (He et al. 2015), norms and linear layers as torch makes them"
    if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


def _imagenet(name: str, n_out: int, n_in: int, norm: str) -> nn.Module:
    "torchvision's net with ImageNet's weights and a new head. It has its own stem, for larger pictures"
    from torchvision import models  # not above: it takes 1.5 s
    if not hasattr(models, name):
        raise InputError(f"{name} has no pretrained weights. Give pretrained=False.")
    if (n_in, norm) != (3, "bn"):
        raise InputError(f"weights of ImageNet are for n_in=3 and norm='bn', not {n_in} and {norm!r}. "
                         "Give these, or pretrained=False.")
    net = getattr(models, name)(weights="DEFAULT")
    net.fc = nn.Linear(net.fc.in_features, n_out)
    return net


def _named(name: str, build: Callable[..., nn.Module], about: str) -> Callable[..., nn.Module]:
    "The function of this name, called as torchvision's are"
    def net(
        n_out: int = 10,      # classes
        n_in: int = 3,        # channels of a picture
        norm: str = "bn",     # "bn", or "gn" for GroupNorm(1, C) in every place
        pretrained: bool = False,   # ImageNet's weights, stem and all: asked for by fastai's `vision_learner`
    ) -> nn.Module:
        for what, n in (("n_out", n_out), ("n_in", n_in)):
            if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
                raise InputError(f"{what} is {n!r}. Give a whole number from 1 up.")
        if pretrained: return _imagenet(name, n_out, n_in, norm)
        if norm not in NORMS: raise UnknownName("norm", norm, NORMS)
        return build(n_out, n_in, NORMS[norm])
    net.__name__ = net.__qualname__ = name
    net.__doc__ = about
    return net


def _resnet(name: str, block: str, depths: list[int], about: str) -> Callable[..., nn.Module]:
    "torchvision's `ResNet` with a 3×3 stem of stride 1 and no max-pool: 32×32 pictures keep 32×32 places"
    def build(n_out: int, n_in: int, norm: Callable[[int], nn.Module]) -> nn.Module:
        from torchvision.models import resnet
        net = resnet.ResNet(getattr(resnet, block), depths, num_classes=n_out, norm_layer=norm)
        net.conv1 = nn.Conv2d(n_in, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
        _init(net.conv1)
        return net
    about = f"{about} parameters at 10 classes, CIFAR stem (He et al. 2016); layer4 is 4×4 at 32×32"
    return _named(name, build, about)


resnet18  = _resnet("resnet18",  "BasicBlock", [2, 2, 2, 2],  "ResNet-18: 11,173,962")
resnet34  = _resnet("resnet34",  "BasicBlock", [3, 4, 6, 3],  "ResNet-34: 21,282,122")
resnet50  = _resnet("resnet50",  "Bottleneck", [3, 4, 6, 3],  "ResNet-50 (torchvision's v1.5): 23,520,842")
resnet101 = _resnet("resnet101", "Bottleneck", [3, 4, 23, 3], "ResNet-101 (torchvision's v1.5): 42,512,970")


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor: return x + super().forward(x)


class _CustomResNet(nn.Module):
    def __init__(self, n_out: int, n_in: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        def conv(i, o, *pool):
            return [nn.Conv2d(i, o, 3, padding=1, bias=False), *pool, norm(o), nn.ReLU(inplace=True)]
        def down(i, o): return conv(i, o, nn.MaxPool2d(2))      # pooled first: a quarter of the norm's work
        def residual(o): return _Residual(*conv(o, o), *conv(o, o))
        self.prep    = nn.Sequential(*conv(n_in, 64))
        self.layer1  = nn.Sequential(*down(64, 128), residual(128))
        self.layer2  = nn.Sequential(*down(128, 256))
        self.layer3  = nn.Sequential(*down(256, 512), residual(512))
        self.maxpool = nn.AdaptiveMaxPool2d(1)
        self.fc      = nn.Linear(512, n_out)
        self.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))
        return self.fc(torch.flatten(self.maxpool(x), 1))


custom_resnet = _named("custom_resnet", _CustomResNet, "The 9-layer ResNet of DAWNBench (Page 2018, "
                       "cifar10-fast), norm before each ReLU: 6,573,130 parameters")


class _Airbench(nn.Module):
    def __init__(self, n_out: int, n_in: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        def stage(i, o):
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.MaxPool2d(2), norm(o),
                                 nn.GELU(), nn.Conv2d(o, o, 3, padding=1, bias=False), norm(o), nn.GELU())
        self.stem    = nn.Sequential(nn.Conv2d(n_in, 8 * n_in, 2), nn.GELU())
        self.layer1  = stage(8 * n_in, 64)
        self.layer2  = stage(64, 256)
        self.layer3  = stage(256, 256)
        self.maxpool = nn.AdaptiveMaxPool2d(1)
        self.fc      = nn.Linear(256, n_out, bias=False)
        for m in self.modules():
            if isinstance(m, nn.Conv2d): nn.init.dirac_(m.weight[:m.in_channels])    # passes its input on
            if isinstance(m, nn.BatchNorm2d): m.momentum = 0.4
            if isinstance(m, nn.BatchNorm2d) or m is self.stem[0]:
                m.weight.requires_grad, m.fixed = False, ("weight",)      # whatever is unfrozen
        nn.init.zeros_(self.stem[0].bias)
        nn.init.normal_(self.fc.weight, std=1 / 256)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.fc(torch.flatten(self.maxpool(x), 1))


airbench = _named("airbench", _Airbench, "The 7-layer net of airbench94 (Jordan 2024), made for few epochs: "
                  "1,972,792 parameters. Its 2×2 stem is frozen, to be whitened, its other kernels begin as "
                  "identities, its batch norms have no scale to learn")


MODELS = {f.__name__: f for f in (resnet18, resnet34, resnet50, resnet101, custom_resnet, airbench)}


def zero_residuals(model: nn.Module) -> None:
    """Start every residual block as the identity: the last norm of its branch scales by 0 (Goyal et al.
    2017). Raises: InputError for a net without torchvision's blocks"""
    from torchvision.models.resnet import BasicBlock, Bottleneck
    last = [m.bn2 if isinstance(m, BasicBlock) else m.bn3 for m in model.modules()
            if isinstance(m, (BasicBlock, Bottleneck))]
    if not last:    # behind a ReLU of its own, as in `custom_resnet`, a branch of 0 would never learn
        raise InputError("zero_residual needs the residual blocks of resnet18 … resnet101. Leave it out.")
    for norm in last: nn.init.zeros_(norm.weight)


def create_model(
    arch: str | Callable[..., nn.Module],   # a name in `MODELS`, or a function of (n_out, n_in, norm)
    n_out: int = 10,                        # classes
    n_in: int = 3,                          # channels of a picture
    norm: str = "bn",                       # "bn" or "gn"
) -> nn.Module:
    """A new net by name or by function; torchvision's `resnet18` means ours of that name.
    Raises: InputError for an unknown name, another net of torchvision, or a net that is built already"""
    if isinstance(arch, nn.Module):
        raise InputError(f"arch is a built {type(arch).__name__}. Give the function that builds it.")
    if not callable(arch):
        if arch not in MODELS: raise UnknownName("model", arch, MODELS)
        arch = MODELS[arch]
    if str(getattr(arch, "__module__", "")).startswith("torchvision.models"):
        name = arch.__name__
        if name not in MODELS:
            raise InputError(f"torchvision's {name} is made for larger pictures. Give one of "
                             f"{', '.join(MODELS)}, or build it: {name}(num_classes={n_out}).")
        arch = MODELS[name]
    return arch(n_out=n_out, n_in=n_in, norm=norm)


def layer_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Early stages, late stages (`layer3` on) and head, as `vision_learner` splits a ResNet: `freeze` leaves
    the head, a slice of rates goes from the stem to the head. A `Sequential` of body and head is these two;
    any other net is one group of what trains, as for fastai's Learner"""
    parts = dict(model.named_children())
    if {"layer1", "layer2", "layer3", "fc"} <= set(parts):
        late = [p for name in ("layer3", "layer4") if name in parts for p in parts[name].parameters()]
        head = list(parts["fc"].parameters())
        known = {id(p) for p in [*late, *head]}
        return [[p for p in model.parameters() if id(p) not in known], late, head]
    if isinstance(model, nn.Sequential) and len(parts) == 2:
        groups = [list(part.parameters()) for part in parts.values()]
        if all(groups): return groups
    return [[p for p in model.parameters() if p.requires_grad]]


def last_linear(model: nn.Module) -> nn.Linear | None:
    "The linear layer that gives the logits; its inputs are the features"
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return layers[-1] if layers else None


def head_of(model: nn.Module) -> list[nn.Parameter]:
    "The parameters of the last linear layer, if there is one"
    return list(last.parameters()) if (last := last_linear(model)) else []


def check_head(model: nn.Module, classes: int) -> None:
    "Raises: InputError where a net has linear layers, and none of them for this number of classes"
    sizes = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    if sizes and classes not in sizes: raise wrong_head(sizes[-1], classes)


def wrong_head(n_out: int, classes: int) -> InputError:
    "For a net whose head is of another size than the data"
    return InputError(f"the head has {n_out} outputs but the data has {classes} classes. Leave n_out away, "
                      "give a net with such a head, or change the data.")


def model_summary(
    model: nn.Module,
    size: int = 32,      # side of the pictures, pixels
    n_in: int = 3,       # their channels
) -> str:
    """Torchinfo's table for one picture (layer, input and output shape, parameters, their share, kernel,
    multiply-adds), and a line that names the weights no output depends on. The model stays as it is."""
    from torchinfo import summary
    columns = ("input_size", "output_size", "num_params", "params_percent", "kernel_size", "mult_adds")
    net = deepcopy(model).cpu().float()
    with torch.random.fork_rng(devices=[]):
        table = summary(net, input_size=(1, n_in, size, size), col_names=columns, depth=4, device="cpu",
                        row_settings=("var_names",), verbose=0)
    unused = unused_weights(net, size, n_in)
    count = sum(dict(net.named_parameters())[name].numel() for name in unused)
    last = f"Unused: {', '.join(unused)} ({count:,} weights)" if unused else "Unused: none"
    return "\n".join(line.rstrip() for line in str(table).splitlines()) + f"\n{last}\n"


def unused_weights(
    model: nn.Module,
    size: int = 32,      # side of the pictures, pixels
    n_in: int = 3,       # their channels
) -> list[str]:
    "Names of the parameters that no output depends on"
    net = deepcopy(model).cpu().float().eval()
    for p in net.parameters(): p.requires_grad_(True)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        out = net(torch.randn(2, n_in, size, size))
        names, params = zip(*net.named_parameters())
        grads = torch.autograd.grad(out.sum(), params, allow_unused=True)
    return [name for name, g in zip(names, grads) if g is None]
