"""Export a net to ONNX or torch.export, and compare what it gives with what torch gives.

    export_onnx(Classifier.load("runs/demo"), "cat.onnx")       # takes (N,3,S,S) floats in 0…1
"""
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from .classifier import Classifier

__all__ = ["export_onnx", "export_torch"]

TOLERANCE = 1e-4      # of the logits, against torch


class _Normalised(nn.Module):
    "The net behind its normalisation: it takes pixels in 0…1"

    def __init__(self, net: Classifier):
        super().__init__()
        self.net = deepcopy(net.net)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(net.about, name)).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor: return self.net((pictures - self.mean) / self.std)


def _whole(net: Classifier, normalise: bool) -> tuple[nn.Module, Tensor]:
    "What is exported, on the CPU, and three pictures to try it with"
    model = (_Normalised(net) if normalise else deepcopy(net.net)).cpu().float().eval()
    return model, torch.rand(3, 3, net.size, net.size, generator=torch.Generator().manual_seed(0))


def export_onnx(
    net: Classifier,
    path: str | Path,
    normalise: bool = True,     # the graph takes pixels in 0…1; False: normalised ones
) -> float:                     # the largest difference of a logit from torch's, by onnxruntime
    """Write an ONNX file for any number of pictures, and run it: input "pictures", output "logits".
    Raises: InputError where the packages are missing, or the file gives other logits"""
    try: import onnx, onnxruntime, onnxscript  # noqa: E401, F401, I001
    except ImportError:
        raise InputError("this export needs packages that are not here. Install them: "
                         "pip install onnx onnxruntime onnxscript.") from None
    model, x = _whole(net, normalise)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, input_names=["pictures"],
                                output_names=["logits"],
                                dynamic_shapes=({0: torch.export.Dim("pictures", min=1)},))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return _compare(model, lambda t: torch.from_numpy(session.run(None, {"pictures": t.numpy()})[0]), x, path)


def export_torch(
    net: Classifier,
    path: str | Path,
    normalise: bool = True,
) -> float:                     # the largest difference of a logit
    "Write what `torch.export.load` reads, for any number of pictures. Raises: InputError"
    model, x = _whole(net, normalise)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, str(path))
    return _compare(model, torch.export.load(str(path)).module(), x, path)


def _compare(model: nn.Module, other: Callable[[Tensor], Tensor], x: Tensor, path) -> float:
    "For three pictures and for one"
    with torch.no_grad(): off = max((model(t) - other(t)).abs().max().item() for t in (x, x[:1]))
    if not off <= TOLERANCE:
        raise InputError(f"{path} gives logits {off:.2g} off torch's. Do not use it; report this net.")
    return off
