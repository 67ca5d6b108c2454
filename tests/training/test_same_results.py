"""Speed changes no result: bf16 learns as well as fp32, mapped pictures are never copied.

That the fast and the item path show the same pixels stands in test_batch_dl.py, and that losses in fp32
are golden to 1e-5 in test_learner.py.
"""
import os
import subprocess
import sys
from statistics import mean, variance

import pytest
import torch
from fastai.callback.core import Callback
from scipy.stats import t as student
from torch import nn

from cifar_fastai import cifar_dataloaders, cifar_learner


def small_net(n_out=10, n_in=3, norm="bn"):
    def block(i, o): return [nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*block(n_in, 16), *block(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(32, n_out))


class TwoBits(Callback):
    "A precision too low to learn in: weights keep two bits of their mantissa"
    def after_step(self):
        for p in self.model.parameters():
            fraction, exponent = torch.frexp(p.data)
            p.data = torch.ldexp((fraction * 4).round() / 4, exponent)


def accuracies(digits, precision: str, cbs=None, n: int = 5) -> list[float]:
    "On the test digits, in percent, for `n` seeds"
    found = []
    for seed in range(n):
        dls = cifar_dataloaders(digits, 64, "pad_crop", seed=seed, device="cpu")
        learn = cifar_learner(dls, small_net, precision=precision, seed=seed, smoothing=0.0, cbs=cbs)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(12, 0.2)
        found.append(100 * learn.recorder.values[-1][-1])
    return found


def within_noise(a: list[float], b: list[float]) -> bool:
    "Welch's t-test does not tell the means apart at 5 % (two-sided)"
    va, vb = variance(a) / len(a), variance(b) / len(b)
    freedom = (va + vb) ** 2 / (va ** 2 / (len(a) - 1) + vb ** 2 / (len(b) - 1))
    return abs(mean(a) - mean(b)) <= student.ppf(.975, freedom) * (va + vb) ** .5


@pytest.mark.slow
def test_bf16_learns_digits_as_well_as_fp32_and_two_bits_do_not(digits):
    full, half = accuracies(digits, "fp32"), accuracies(digits, "bf16")
    poor = accuracies(digits, "fp32", TwoBits())
    assert mean(full) > 88 and full != half
    assert within_noise(full, half) and abs(mean(full) - mean(half)) < 1.5
    assert not within_noise(full, poor) and mean(poor) < mean(full) - 1.5


MEMORY = """
import sys
import numpy as np
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from cifar_fastai import ImageData, cifar_dataloaders

def mib(pid, field, file):
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

n, shape = 100_000, (100_000, 32, 32, 3)
cifar_dataloaders("digits", 64, device="cpu").one_batch()
before = mib("self", "RssAnon", "status")
x = np.memmap(sys.argv[1], np.uint8, "r", shape=shape)
if sys.argv[2] == "copied": x = np.array(x)
y, classes = np.arange(n) % 10, tuple("0123456789")
data = ImageData(x, y, x[:256], y[:256], classes, "mapped", "mapped", (.5,) * 3, (.25,) * 3)
dls = cifar_dataloaders(data, 256, num_workers=2, device="cpu")
batches = iter(dls.train)   # kept: an epoch that is left ends its processes
for _ in islice(batches, 40): pass
workers = [p.pid for p in active_children()]
print(mib("self", "RssAnon", "status") - before)
print(max(mib(w, "Private_Dirty", "smaps_rollup") for w in workers))
"""


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    "100,000 black pictures in a sparse file, 293 MiB"
    path = tmp_path_factory.mktemp("mapped") / "pictures.u8"
    path.touch()
    os.truncate(path, 100_000 * 32 * 32 * 3)
    return path


def grown(path, how: str) -> list[float]:
    "MiB that the process has grown by, and that the larger of two workers has for itself"
    command = [sys.executable, "-W", "ignore", "-c", MEMORY, str(path), how]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return [float(v) for v in out.split()]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's /proc")
def test_mapped_pictures_are_never_copied_and_workers_share_them(mapped):
    own, worker = grown(mapped, "mapped")
    assert own < 100 and worker < 150
    assert grown(mapped, "copied")[0] > own + 200   # the control: 293 MiB of pictures
