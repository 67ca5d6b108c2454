"Made pictures, data and folders, and a machine on which nothing is found"
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cifar_fastai.data import sources as search
from cifar_fastai.data.image_data import ImageData


@pytest.fixture
def alone(tmp_path, monkeypatch):
    "No variable, no network, an empty home, cache and working folder"
    for name in ("CIFAR10_DIR", "CIFAR100_DIR", "TORCH_HOME", "FASTAI_HOME"):
        monkeypatch.delenv(name, raising=False)
    for folder in ("home", "work"): (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(search, "_unreachable", lambda url: "there is no network here")


def names(folder): return sorted(p.name for p in folder.iterdir())


def some_pixels(h=32, w=32, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, c)[:2 + (c > 1)], np.uint8)


def file_of(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture_folder(root, classes=("cat", "dog"), n=3, side=32):
    "train/ with n and test/ with 1 lossless picture a class; returns {relative name: pixels}"
    made = {}
    for split, k in (("train", n), ("test", 1)):
        for c in classes:
            (root / split / c).mkdir(parents=True)
            for i in range(k):
                made[f"{split}/{c}/{i}.png"] = x = some_pixels(side, side, seed=len(made))
                Image.fromarray(x).save(root / split / c / f"{i}.png")
    return made


def some_data(n=200, classes=4, seed=0, size=8):
    "Random pictures, the classes of uneven size"
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n + 20, size, size, 3), np.uint8)
    y = rng.choice(classes, n + 20, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    names = tuple("abcdefgh"[:classes])
    return ImageData(x[:n], y[:n], x[n:], y[n:], names, "random", "", (0,) * 3, (1,) * 3)


def shuffled(data, seed=1):
    order = np.random.default_rng(seed).permutation(len(data.y_train))
    return replace(data, x_train=data.x_train[order], y_train=data.y_train[order])


def pictures(x): return {p.tobytes() for p in x}


def flip(path):
    "Change one bit in the middle of a file"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
