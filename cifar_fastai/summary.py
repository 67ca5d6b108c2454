"""A net layer by layer: shapes, parameters, kernels, work; and whether every weight is used.

    print(model_summary(resnet18()))
"""
from copy import deepcopy

import torch
from torch import nn

__all__ = ["model_summary", "unused_weights"]

COLUMNS = ("input_size", "output_size", "num_params", "params_percent", "kernel_size", "mult_adds")


def model_summary(
    model: nn.Module,
    size: int = 32,      # side of the pictures, pixels
    n_in: int = 3,       # their channels
) -> str:
    """Torchinfo's table for one picture (layer, input and output shape, parameters, their share, kernel,
    multiply-adds), and a line that names the weights no output depends on. The model stays as it is."""
    from torchinfo import summary
    net = deepcopy(model).cpu().float()
    with torch.random.fork_rng(devices=[]):
        table = summary(net, input_size=(1, n_in, size, size), col_names=COLUMNS, depth=4, device="cpu",
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
