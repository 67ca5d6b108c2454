"""A net with what must be known to use it: class names, size and normalisation.

    net = Classifier.load("runs/demo")                    # or its weights.safetensors
    net.probabilities([read_picture("cat.png", net.size)])
"""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownName
from ..processes import tried_device
from ..weights import About, load_weights

__all__ = ["Classifier", "find_weights"]


def find_weights(path: str | Path) -> Path:
    "The weights of a run's folder, or the file itself. Raises: InputError"
    path = Path(path)
    if not path.is_dir(): return path
    if not (path / "weights.safetensors").exists():
        raise InputError(f"{path} holds no weights. Give the folder of a run that has ended.")
    return path / "weights.safetensors"


class Classifier:
    "A trained net in eval mode, on one device"

    def __init__(self, net: nn.Module, about: About, device: str = "cpu"):
        self.net, self.about, self.device = net.eval().to(device), about, torch.device(device)

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> "Classifier":
        "From a run's folder or weights.safetensors; nothing is unpickled. Raises: InputError"
        if device is None: device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(*load_weights(find_weights(path)), tried_device(device))

    @property
    def classes(self) -> tuple[str, ...]: return self.about.classes
    @property
    def size(self) -> int: return self.about.size      # side of the pictures, pixels

    def inputs(
        self,
        pictures: Sequence[np.ndarray],   # (S,S,3) uint8 each
    ) -> Tensor:                          # (N,3,S,S) normalised as in training, on the device
        "Pictures as the net takes them"
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(self.device, torch.float32) / 255
        known = self.about.mean, self.about.std
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in known)
        return (x - mean) / std

    @torch.no_grad()
    def probabilities(
        self,
        pictures: Sequence[np.ndarray],   # (S,S,3) uint8 each
        bs: int = 256,                    # pictures at a time
    ) -> Tensor:                          # (N,C), on the CPU
        "The probability of each class"
        starts = range(0, len(pictures), bs)
        parts = [self.net(self.inputs(pictures[k:k + bs])).softmax(1).cpu() for k in starts]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.classes))

    def class_number(self, name: str) -> int:
        "Of a class by its name. Raises: InputError with the nearest names"
        if name not in self.classes: raise UnknownName("class", name, self.classes)
        return self.classes.index(name)
