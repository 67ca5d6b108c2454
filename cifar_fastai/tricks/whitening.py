"""Whiten the pictures in the first convolution, by the statistics of patches of the training pictures.

    whiten_stem(learn, eps=1e-2)          # once, before lr_find and the fit
"""
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from torch import Tensor, nn

from ..errors import InputError
from ..training import Precision

__all__ = ["StemGradient", "patch_statistics", "whiten_stem"]


class StemGradient(Callback):
    """Multiply the gradient of a kernel, as a matrix (out, in·h·w), by a fixed symmetric matrix before the
    step. With W = P·H and the matrix HᵀH, SGD on W then takes the steps that SGD on P would take behind a
    fixed convolution H: momentum and weight decay are linear, so they agree too."""
    order, run_valid = Precision.order + 1, False     # after fp16's scale was taken off, before clipping

    def __init__(self, conv: nn.Conv2d, matrix: Tensor): self.conv, self.matrix = conv, matrix

    def before_step(self):
        grad = self.conv.weight.grad
        if grad is None: return                        # frozen
        self.matrix = self.matrix.to(grad)
        grad.copy_((grad.flatten(1) @ self.matrix).view_as(grad))

    def state_dict(self): return {"matrix": self.matrix}
    def load_state_dict(self, state): self.matrix = state["matrix"]


def patch_statistics(
    xb: Tensor,            # (N,C,H,W) normalised pictures
    kernel: tuple[int, int],
) -> tuple[Tensor, Tensor]:  # eigenvalues, the largest first (D,), and eigenvectors as rows (D,D); D = C·h·w
    "Of the second moments of all patches of a kernel's size, summed in double precision"
    total, n = 0, 0
    for part in xb.split(500):
        patches = F.unfold(part.float(), kernel).transpose(1, 2).flatten(0, 1)
        total, n = total + (patches.T @ patches).double(), n + len(patches)
    values, vectors = torch.linalg.eigh(total / n)
    rows = vectors.T.flip(0)
    heaviest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return values.flip(0), rows * heaviest.sign()          # one of the two signs, on any machine


def whiten_stem(
    learn,
    eps: float = 1e-2,     # added to the eigenvalues, so that faint directions are not blown up
    n: int = 5000,         # training pictures whose patches count
) -> None:
    """Start the first convolution from whitening filters (Page 2019), and train it as if these were fixed.

    The filters are H = diag(λ + ε)^(-1/2) V, with λ and V of `patch_statistics`. A stem that trains starts
    as P·H, with P from the stem's first weights, at the size that torch gives those of a 1×1 convolution;
    `StemGradient` does the rest. Its shape, its number of weights and its checkpoints stay what they were.
    A stem whose kernel is frozen gets the first filters and their negatives as they are (Jordan 2024).
    Raises: InputError where there is no such convolution, or `dls` do not come from `cifar_dataloaders`"""
    conv = next((m for m in learn.model.modules() if isinstance(m, nn.Conv2d)), None)
    if conv is None or conv.groups != 1:
        raise InputError("whitening needs a net that begins with a convolution of one group. Leave it out.")
    values, rows = patch_statistics(_training_pictures(learn, n).to(conv.weight.device), conv.kernel_size)
    filters = (rows / (values + eps).sqrt()[:, None]).to(conv.weight)
    with torch.no_grad():
        if not conv.weight.requires_grad:
            live = filters[values > 1e-5 * values[0]]    # grey pictures: a channel of zeros has no statistics
            half = live[torch.arange(len(conv.weight) // 2) % len(live)]
            if 2 * len(half) != len(conv.weight):
                raise InputError(f"a frozen stem of {len(conv.weight)} filters cannot hold filters and their "
                                 "negatives. Give it an even number.")
            conv.weight.copy_(torch.cat([half, -half]).view_as(conv.weight))
            return
        drawn = conv.weight.flatten(1) / conv.weight.std() / (3 * len(filters)) ** 0.5
        conv.weight.copy_((drawn @ filters).view_as(conv.weight))
    learn.add_cb(StemGradient(conv, filters.T @ filters))


def _training_pictures(learn, n: int) -> Tensor:
    "Up to `n` training pictures without augmentation, normalised"
    data = getattr(learn.dls, "data", None)
    if data is None: raise InputError("whitening needs the DataLoaders of cifar_dataloaders. Use these.")
    items = learn.dls.train_ds.items
    x = torch.from_numpy(data.x_train[items[::max(1, len(items) // n)][:n]]).permute(0, 3, 1, 2) / 255
    return (x - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
