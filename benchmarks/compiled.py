"""What `torch.compile` buys: steps of one Learner with plain and with compiled steps, by turns.

    python -m benchmarks compiled [--nets resnet18 airbench] [--bs 128] [--steps 4] [--rounds 5]
                                  [--device cpu]

The first epoch of each compiles, and is told apart. The Learner is `cifar_learner`'s, in the precision that
it chooses for the device.
"""
import argparse
import os

import torch

from cifar_fastai import models
from cifar_fastai.machine import machine_name, versions
from cifar_fastai.tricks import Compiled

from .harness import alternate, clock, spread
from .step import fit, learner

__all__ = ["main", "measured"]


def measured(arch, bs: int, steps: int, rounds: int, device: str) -> tuple[float, dict[str, list[float]]]:
    "Seconds of the first compiled epoch beyond a plain one, and of each later epoch by its steps"
    plain, compiled = (learner(arch, steps, bs, True, precision="auto", device=device) for _ in range(2))
    compiled.add_cb(Compiled())
    first = clock(fit(compiled)) - clock(fit(plain))
    return first, alternate({"plain": fit(plain), "compiled": fit(compiled)}, rounds)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks compiled", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["resnet18", "airbench"], choices=models.MODELS)
    for name, value in (("bs", 128), ("steps", 4), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    print(f"batches of {args.bs}, {args.device}; time of a compiled step in % of a plain one")
    for net in args.nets:
        first, times = measured(models.MODELS[net], args.bs, args.steps, args.rounds, args.device)
        print(f"    {net:16}{spread(times, 'compiled', 'plain')}, compiled in {first:.0f} s", flush=True)
    print(f"{machine_name()}, {os.cpu_count()} cores, torch {versions()['torch']}, "
          f"{torch.get_num_threads()} threads")
