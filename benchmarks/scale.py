"""P9: from 5,000 to 500,000 pictures: set-up, memory, the fixed cost of an epoch; a process for each size."""
import json
import subprocess
import sys

from .harness import Row

SIZES = (5_000, 50_000, 500_000)
CHILD = """
import json, sys, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, torch
from cifar_fastai import ImageData, cifar_dataloaders
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
print(json.dumps({"setup": setup, "epoch": ours, "stock": stock, "kib": peak - base}))
"""


def measured(n: int) -> dict:
    command = [sys.executable, "-c", CHILD, str(n)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def run(rounds: int = 5) -> list[Row]:
    found = {n: measured(n) for n in SIZES}
    small, middle, large = (found[n] for n in SIZES)
    kib = (large["kib"] - small["kib"]) / (SIZES[-1] - SIZES[0])
    line = "{:,}: set-up {:.2f} s, {:,.0f} MiB, first batch {:.1f} ms, stock {:.0f}"
    note = ", ".join(line.format(n, f["setup"], f["kib"] / 1024, 1e3 * f["epoch"], 1e3 * f["stock"])
                     for n, f in found.items())
    return [Row("P9", "memory a picture, 5,000 → 500,000", "", 3.2, kib, at_most=True, unit="KiB"),
            Row("P9", "set-up time, 500,000 over 50,000 pictures", "linear", 12,
                large["setup"] / middle["setup"], at_most=True),
            Row("P9", "fixed cost of an epoch at 500,000", "stock fastai", 1 / 10,
                large["epoch"] / large["stock"], at_most=True, note=note)]
