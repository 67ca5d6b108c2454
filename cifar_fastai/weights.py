"""Save and load weights as safetensors, with class names, architecture and normalisation as metadata.

    net, about = load_weights("runs/demo/weights.safetensors")
    probs = net(normalised pictures).softmax(1)          # about.classes, about.mean, about.std
"""
import json
import logging
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from .errors import InputError
from .files import save_atomically
from .models import create_model

log = logging.getLogger("cifar_fastai")

__all__ = ["About", "load_weights", "read_tensors", "save_weights"]


@dataclass(frozen=True)
class About:
    "What must be known to use a net"
    model: str                         # a name of `models.MODELS`
    norm: str
    classes: tuple[str, ...]
    size: int                          # side of the pictures, pixels
    mean: tuple[float, float, float]   # of the training pictures, 0…1
    std: tuple[float, float, float]


def save_weights(
    path: str | Path,
    net: nn.Module,
    about: About,
) -> str:   # sha256 of the file
    "Write the parameters and buffers of `net` with `about` as metadata, atomically"
    from safetensors.torch import save
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    return save_atomically(path, save(tensors, {"cifar_fastai": json.dumps(asdict(about))}))


def load_weights(
    path: str | Path,
    into: nn.Module | None = None,     # another net, such as `learn.model`, which takes what fits
) -> tuple[nn.Module, About]:
    """The net in eval mode, on the CPU, and what is known of it; or `into`, as it was but for the tensors
    that it has of the same name and shape. Those left out are named in a log line. Raises: InputError where
    the file is not whole, or nothing fits"""
    tensors, about = read_tensors(path)
    if into is None:
        with _told(path):
            net = create_model(about.model, len(about.classes), norm=about.norm)
            net.load_state_dict(tensors)
        return net.eval(), about
    own = into.state_dict()
    fits = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    if not any(v.is_floating_point() and v.ndim for v in fits.values()):
        raise InputError(f"nothing in {path} fits this net. Give the weights of the same architecture.")
    left = sorted((tensors.keys() | own.keys()) - fits.keys())
    if left: log.warning("left out of %s: %s", path, ", ".join(left))
    into.load_state_dict(own | fits)
    return into, about


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], About]:
    "The tensors by name, and what is known of the net. Raises: InputError where the file is not whole"
    from safetensors import safe_open
    with _told(path), safe_open(path, framework="pt") as f:
        about = json.loads((f.metadata() or {})["cifar_fastai"])
        about = About(**{k: tuple(v) if isinstance(v, list) else v for k, v in about.items()})
        return {name: f.get_tensor(name) for name in list(f.keys())}, about


@contextmanager
def _told(path: str | Path):
    "Say in one line what keeps a file from being read. Raises: InputError"
    from safetensors import SafetensorError
    try: yield
    except FileNotFoundError:
        raise InputError(f"no weights at {path}. Give the weights.safetensors of a run.") from None
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        what = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
        raise InputError(f"{path} holds no weights of a run: {what}. "
                         "Give the weights.safetensors of a run.") from e
