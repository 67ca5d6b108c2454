"""A million pictures in a folder: how long they take to be decoded, set up, trained on, in how much memory.

    python -m benchmarks million FOLDER [--n 1000000] [--processes 1 2]

FOLDER is made, with n/5, n/2 and n pictures of 32×32 in ten classes (PNG of noise around a colour), or taken
as it was left. For each size, and for the largest with each number of processes: one that finds no cache
decodes, and a second one sets up, trains one epoch with a small net, and tells its memory without the pages
of files (RssAnon and RssShmem of /proc), at its highest.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

CHILD = """
import json, os, sys, time, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
start = time.perf_counter()
import torch
from fastai.callback.core import Callback
from torch import nn
from cifar_fastai import cifar_dataloaders, cifar_learner, load_data
from cifar_fastai.processes import join, rank
torch.set_num_threads(1)
join("cpu")
told, most = {"import": time.perf_counter() - start}, 0
def memory():
    global most
    lines = dict(l.split(":", 1) for l in Path("/proc/self/status").read_text().splitlines())
    most = max(most, sum(int(lines[k].split()[0]) for k in ("RssAnon", "RssShmem")) / 2**20)
def timed(name, work):
    start = time.perf_counter()
    value = work()
    told[name] = time.perf_counter() - start
    memory()
    return value
class Memory(Callback):
    def after_batch(self):
        if self.iter % 50 == 0: memory()
def net(n_out, n_in, norm):
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_out)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU(), *head)
data = timed("load", lambda: load_data(sys.argv[1]))
told["pictures"] = len(data.x_train)
if sys.argv[2] == "train":
    dls = timed("loaders", lambda: cifar_dataloaders(data, 256, device="cpu", num_workers=0))
    learn = timed("learner", lambda: cifar_learner(dls, net, precision="fp32"))
    with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
        timed("epoch", lambda: learn.fit_one_cycle(1, .1, cbs=Memory()))
if rank() == 0: print(json.dumps({**told, "GiB": most}))
"""


def make(folder: Path, n: int) -> Path:
    "`n` pictures below `folder`, a fiftieth of them to test"
    root = folder / str(n)
    if (root / "whole").exists(): return root / "pictures"
    shutil.rmtree(root, ignore_errors=True)
    for part in ("train", "test"):
        for c in "0123456789": (root / "pictures" / part / c).mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        starts = range(0, n, 5000)
        for _ in pool.map(partial(write, root / "pictures", n), starts): pass
    (root / "whole").touch()
    return root / "pictures"


def write(root: Path, n: int, start: int) -> None:
    import cv2
    import numpy as np
    rng = np.random.default_rng(start)
    for k in range(start, min(start + 5000, n)):
        colour = np.array([25 * (k % 10), 128, 255 - 25 * (k % 10)])
        x = (colour + rng.integers(-20, 21, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        part = "test" if k % 50 < 1 else "train"
        cv2.imwrite(str(root / part / str(k // 50 % 10 if part == "test" else k % 10) / f"{k}.png"), x,
                    [cv2.IMWRITE_PNG_COMPRESSION, 1])


def child(root: Path, what: str, cache: str, processes: int = 1) -> dict:
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(CHILD)
        script.flush()
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(start if processes > 1 else ()), script.name, str(root), what]
        env = os.environ | {"XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), env.get("PYTHONPATH", "")])
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    from cifar_fastai.machine import machine_name, versions
    parser = argparse.ArgumentParser(prog="python -m benchmarks million", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args(argv)
    print("  pictures  processes  decoded  cached  loaders  learner    epoch  memory a process")
    with tempfile.TemporaryDirectory(dir=args.folder.parent) as cache:
        for n in (args.n // 5, args.n // 2, args.n):
            root = make(args.folder, n)
            decoded = child(root, "load", cache)["load"]
            for processes in args.processes if n == args.n else args.processes[:1]:
                t = child(root, "train", cache, processes)
                print(f"{n:10,} {processes:10}  {decoded:5.0f} s {t['load']:5.1f} s  {t['loaders']:5.1f} s  "
                      f"{t['learner']:5.1f} s  {t['epoch']:5.0f} s  {t['GiB']:.2f} GiB", flush=True)
    print(f"{machine_name()}, {os.cpu_count()} cores, {', '.join(f'{k} {v}' for k, v in versions().items())}")
