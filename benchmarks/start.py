"""P10: seconds until `--help` stands there, and the second start on a folder against the first."""
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from .harness import Row, alternate
from .pictures import coloured, write_folder

N = 10_000


def helped():
    subprocess.run([sys.executable, "-m", "recipes.resnet18_20ep", "--help"], check=True, capture_output=True)


def run(rounds: int = 5) -> list[Row]:
    help_seconds = median(alternate({"help": helped}, rounds)["help"])
    from cifar_fastai.data.sources import load_data
    firsts, seconds = [], []
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as tmp:
        folder = write_folder(coloured(N, 1000), Path(tmp) / "pictures")
        try:
            for k in range(rounds):
                os.environ["XDG_CACHE_HOME"] = f"{tmp}/cache{k}"
                times = alternate({"start": lambda: _loaded(load_data, folder)}, rounds=2, warm=0)["start"]
                firsts.append(times[0])
                seconds.append(times[1])
        finally:
            if before is None: os.environ.pop("XDG_CACHE_HOME")
            else: os.environ["XDG_CACHE_HOME"] = before
    note = f"{N + 1000:,} PNG files: first {median(firsts):.2f} s, second {median(seconds):.3f} s"
    return [Row("P10", "--help of a recipe", "", .5, help_seconds, at_most=True, unit="s"),
            Row("P10", "second start on an image folder", "the first", 20,
                median(a / b for a, b in zip(firsts, seconds)), note=note)]


def _loaded(load_data, folder): assert len(load_data(folder).x_train) == N
