"""Processes that train together, as `accelerate launch` and `torchrun` start them: torch's own groups.

    device = join("cpu")                 # this process's own; nothing else happens where it is alone
    if rank() == 0: ...
    state = agreed(load)                 # what `load()` gave the first process
"""
import atexit
import os
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InputError

__all__ = ["agreed", "differs", "gathered", "highest", "join", "launched", "mean_over", "of_other_process",
           "rank", "same_buffers", "summed", "tried_device", "world"]

LIMIT = "CIFAR_FASTAI_WAIT"      # environment variable: seconds that a process waits for the others
_talk = []                       # the group that speaks by the CPU, beside that of the GPUs


def launched() -> bool:
    "Whether this process was started as one of several"
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    "Which of the processes this one is; 0, the first, where it is alone"
    return dist.get_rank() if _talk else 0


def world() -> int:
    "How many processes train together"
    return dist.get_world_size() if _talk else 1


def join(
    device: str | torch.device | None = None,   # as asked for; None: the best there is
) -> str | torch.device | None:                 # this process's own GPU, or `device` as it was
    """Meet the processes that were started together with this one.
    Raises: InputError where accelerate is missing, or where several processes would share one GPU"""
    if not launched(): return device
    on_cpu = torch.device(device).type == "cpu" if device is not None else not torch.cuda.is_available()
    if not _talk:
        wait = timedelta(seconds=float(os.environ.get(LIMIT, "600")))
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise InputError("several processes were started, and accelerate, which lets them train "
                             "together, is missing. Install it: pip install accelerate.") from error
        PartialState(cpu=on_cpu, timeout=wait)           # starts torch's group
        _talk.append(dist.new_group(backend="gloo", timeout=wait))
        atexit.register(_leave)
    if on_cpu: return "cpu"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise InputError(f"process {local} of this machine has no GPU of its own: there are "
                         f"{torch.cuda.device_count()}. Start fewer processes, or give --device cpu.")
    return torch.device("cuda", local)


def tried_device(device: str | torch.device) -> torch.device:
    "`device`, after a first tensor on it. Raises: InputError where it cannot be used here"
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as e:
        why = str(e).splitlines()[0].rstrip(". ")[:200]
        raise InputError(f"device {str(device)!r} cannot be used here: {why}. Try cpu.") from e
    return device


def _leave() -> None:
    _talk.clear()
    if dist.is_initialized(): dist.destroy_process_group()


def agreed(f: Callable):
    "What `f()` gives the first process, for all of them; an `InputError` is raised in each"
    if world() == 1: return f()
    told = [None]
    if rank() == 0:
        try: told = [(f(), None)]
        except InputError as error: told = [(None, (str(error), error.exit_status))]
    dist.broadcast_object_list(told, group=_talk[0])
    value, failed = told[0]
    if failed is None: return value
    error = InputError(failed[0])
    error.exit_status = failed[1]
    raise error


def differs(value) -> bool:
    "Whether a process has another `value` than the first one, as all are told"
    return world() > 1 and highest(int(agreed(lambda: value) != value)) > 0


def highest(value: int) -> int:
    "The highest of all processes' values"
    told = torch.tensor([value])
    dist.all_reduce(told, dist.ReduceOp.MAX, group=_talk[0])
    return int(told)


def mean_over(x: Tensor) -> Tensor:
    "The mean of all processes' values"
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world()


def summed(x: Tensor) -> Tensor:
    "The sum of all processes' values, on the CPU"
    x = x.detach().cpu().clone()
    if world() > 1: dist.all_reduce(x, group=_talk[0])
    return x


def gathered(x: Tensor) -> Tensor:
    "The rows of all processes, the first one's first, however many each has; the mean of plain numbers"
    if world() == 1: return x
    if x.ndim == 0: return mean_over(x)
    n = torch.zeros(world(), dtype=torch.int64)
    n[rank()] = len(x)
    n = summed(n).tolist()
    mine = x.new_zeros(max(n), *x.shape[1:])
    mine[:len(x)] = x
    group = _talk[0] if x.device.type == "cpu" else None
    parts = [torch.empty_like(mine) for _ in n]
    dist.all_gather(parts, mine, group=group)
    return torch.cat([part[:k] for part, k in zip(parts, n)])


def of_other_process(error: Exception) -> bool:
    "Whether an error says that another process cannot be reached any more"
    return world() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def same_buffers(model: torch.nn.Module) -> None:
    "Give every process the running averages of the first one"
    for buffer in model.buffers(): dist.broadcast(buffer, 0)
