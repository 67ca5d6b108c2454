"""P9: from 5,000 to 1,000,000 pictures: set-up, memory, the fixed cost of an epoch, and that the range test
and Grad-CAM cost what they cost on few pictures; a process for each size."""
import json
import subprocess
import sys

from .harness import Row

SIZES = (5_000, 50_000, 500_000, 1_000_000)
CHILD = """
import json, sys, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, torch
from torch import nn
from cifar_fastai import GradCAM, ImageData, cifar_dataloaders, cifar_learner
from cifar_fastai.explain.any_picture import choose
from fastai.data.core import TfmdDL, TfmdLists
torch.set_num_threads(1)
n, rng = int(sys.argv[1]), np.random.default_rng(0)
cifar_dataloaders("digits", 64, None, device="cpu").one_batch()
def kib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
Path("/proc/self/clear_refs").write_text("5")   # the peak is counted from here on
base = kib("VmRSS")
x = np.empty((n, 32, 32, 3), np.uint8)
x[:] = rng.integers(256, size=(1, 32, 32, 3), dtype=np.uint8)
y = np.arange(n) % 10
def median_of_five(work):
    times = []
    for _ in range(5):
        start = time.process_time()     # one thread, no files: the same as the clock where nothing else runs
        work()
        times.append(time.process_time() - start)
    return sorted(times)[2]
def first(dl):
    def batch():
        for _ in dl: break
    return median_of_five(batch)
classes = tuple("0123456789")
data = ImageData(x, y, x[:100], y[:100], classes, "made", "made", (.5,) * 3, (.25,) * 3)
def set_up(): return cifar_dataloaders(data, 64, None, device="cpu")
dls = set_up()
ours = first(dls.train)
peak = kib("VmHWM")
setup = median_of_five(set_up)
lists = TfmdLists(np.arange(n), [lambda i: torch.from_numpy(x[i])])
stock = first(TfmdDL(lists, bs=64, shuffle=True, num_workers=0))
def net(n_out, n_in, norm):
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, n_out)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), *head)
data = ImageData(x, y, x[:n // 5], y[:n // 5], classes, "made", "made", (.5,) * 3, (.25,) * 3)
learn = cifar_learner(cifar_dataloaders(data, 64, None, device="cpu"), net, precision="fp32")
def explain():
    GradCAM(learn.model, "2")(choose(learn, range(64)).xb)
with learn.no_bar():
    find = median_of_five(lambda: learn.lr_find(num_it=60, show_plot=False))
    explained = median_of_five(explain)
print(json.dumps({"setup": setup, "epoch": ours, "stock": stock, "kib": peak - base, "find": find,
                  "explain": explained}))
"""


def measured(n: int) -> dict:
    command = [sys.executable, "-c", CHILD, str(n)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def run(rounds: int = 5) -> list[Row]:
    found = {n: measured(n) for n in SIZES}
    small, middle, large, million = (found[n] for n in SIZES)
    kib = (large["kib"] - small["kib"]) / (SIZES[2] - SIZES[0])
    line = ("{:,}: set-up {:.2f} s, {:,.0f} MiB, first batch {:.1f} ms, stock {:.0f}, lr_find {:.0f}, "
            "Grad-CAM {:.1f}")
    times = ("epoch", "stock", "find", "explain")
    note = "; ".join(line.format(n, f["setup"], f["kib"] / 1024, *(1e3 * f[k] for k in times))
                     for n, f in found.items())
    return [Row("P9", "memory a picture, 5,000 → 500,000", "", 3.2, kib, at_most=True, unit="KiB"),
            Row("P9", "set-up time, 500,000 over 50,000 pictures", "linear", 12,
                large["setup"] / middle["setup"], at_most=True),
            Row("P9", "set-up time, 1,000,000 over 500,000 pictures", "linear", 2.4,
                million["setup"] / large["setup"], at_most=True),
            Row("P9", "lr_find of 60 batches, tiny net, 500,000 over 5,000", "flat", 1.25,
                large["find"] / small["find"], at_most=True),
            Row("P9", "Grad-CAM of 64 pictures, tiny net, 500,000 over 5,000", "flat", 1.25,
                large["explain"] / small["explain"], at_most=True),
            Row("P9", "fixed cost of an epoch at 500,000", "stock fastai", 1 / 10,
                large["epoch"] / large["stock"], at_most=True, note=note)]
