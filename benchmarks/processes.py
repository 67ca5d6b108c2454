"""What several processes buy: steps of ResNet-18 by one with all threads, and by more with fewer each.

    python -m benchmarks processes [--n 1 2] [--pictures 1024] [--bs 128] [--rounds 5] [--device cpu]

`bs` is of all processes together. Each number of processes starts anew for each round, by turns; the first of
two epochs warms up and is not counted.
"""
import argparse
import os
import subprocess
import sys
from statistics import median

CHILD = """
import sys, time, warnings
warnings.filterwarnings("ignore")
import numpy as np, torch
from fastcore.basics import noop
from cifar_fastai import ImageData, cifar_dataloaders, cifar_learner
from cifar_fastai.processes import join, rank, world
pictures, bs, threads, device = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(threads)
device = join(device)
rng = np.random.default_rng(0)
x, y = rng.integers(0, 256, (pictures, 32, 32, 3), np.uint8), np.arange(pictures) % 10
few = max(10, world())
data = ImageData(x, y, x[:few], y[:few], tuple("0123456789"), "noise", "noise", (.5,) * 3, (.25,) * 3)
learn = cifar_learner(cifar_dataloaders(data, bs // world(), device=device), "resnet18")
learn.logger = noop
with learn.distrib_ctx(), learn.no_bar():
    learn.fit(1, .01)
    start = time.perf_counter()
    learn.fit(1, .01)
    if str(device).startswith("cuda"): torch.cuda.synchronize()
    if rank() == 0: print(len(learn.dls.train) * bs / (time.perf_counter() - start))
"""


def speed(n: int, pictures: int, bs: int, device: str) -> float:
    "Pictures a second that `n` processes train on together"
    threads = max(1, (os.cpu_count() or 1) // n)
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "--no-python",
             sys.executable] if n > 1 else []
    command = [sys.executable, *start, "-c", CHILD, str(pictures), str(bs), str(threads), device]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, check=True)
    return float(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    from cifar_fastai.machine import machine_name, versions
    parser = argparse.ArgumentParser(prog="python -m benchmarks processes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[1, 2])
    for name, value in (("pictures", 1024), ("bs", 128), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    found = {n: [] for n in args.n}
    for _ in range(args.rounds):
        for n, speeds in found.items(): speeds.append(speed(n, args.pictures, args.bs, args.device))
    first = found[args.n[0]]
    print(f"ResNet-18, batches of {args.bs} in all, {args.device}; pictures a second, "
          f"medians of {args.rounds} rounds")
    for n, speeds in found.items():
        ratios = sorted(s / one for s, one in zip(speeds, first))
        print(f"{n} processes  {median(speeds):6.0f}  "
              f"{median(ratios):.2f} × ({ratios[0]:.2f} … {ratios[-1]:.2f})")
    print(f"{machine_name()}, {os.cpu_count()} cores, torch {versions()['torch']}")
