"""A trained net as one file without code: safetensors, with what is needed to use it again as metadata.

    net, about = load_weights("runs/demo/weights.safetensors")
    probs = net(normalised pictures).softmax(1)          # about.classes, about.mean, about.std
"""
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from .checkpoint import save_atomically
from .errors import InputError
from .models import create_model

__all__ = ["About", "load_weights", "save_weights"]


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


def load_weights(path: str | Path) -> tuple[nn.Module, About]:
    "The net in eval mode, on the CPU, and what is known of it. Raises: InputError where it is not whole"
    from safetensors import SafetensorError, safe_open
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as f:
            about = json.loads((f.metadata() or {})["cifar_fastai"])
            tensors = {name: f.get_tensor(name) for name in list(f.keys())}
        about = About(**{k: tuple(v) if isinstance(v, list) else v for k, v in about.items()})
        net = create_model(about.model, len(about.classes), norm=about.norm)
        net.load_state_dict(tensors)
    except FileNotFoundError:
        raise InputError(f"no weights at {path}. Give the weights.safetensors of a run.") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as e:
        what = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"{path} holds no weights of a run: {what}. "
                         "Give the weights.safetensors of a run.") from e
    return net.eval(), about
