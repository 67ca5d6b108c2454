"""A net, pictures and a recipe that train in seconds; as a script, the recipe's command line:

    python tests/helpers/tiny.py --data FOLDER --out FOLDER
"""
import os
from hashlib import sha256
from pathlib import Path

import numpy as np

from cifar_fastai import Recipe, cli
from cifar_fastai.data.image_data import ImageData, statistics

CLASSES = ("cat", "dog", "frog", "ship")
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 40]])


def own_cores() -> int:
    "How many threads are this process's share, where pytest runs several"
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def tiny_net(n_out=10, n_in=3, norm="bn"):
    "Two convolutions and a head, under torchvision's names; some 1,300 parameters"
    from collections import OrderedDict

    from torch import nn

    from cifar_fastai.models import NORMS

    def layer(i, o): return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), NORMS[norm](o), nn.ReLU())
    return nn.Sequential(OrderedDict(
        layer1=layer(n_in, 8), layer2=nn.Identity(), layer3=layer(8, 12), layer4=nn.Identity(),
        avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(12, n_out)))


def undrawn(put=setattr, page: bool = False) -> None:
    "No figures, which take most of a tiny run's time, and no page but where it is asked for"
    from cifar_fastai.runs import one_run, run_writer
    for name in ("write_data", "write_training", "write_interpretation"):
        put(one_run, name, lambda *args, **kwargs: {})
    if not page: put(run_writer, "write_page", lambda *args: None)


def register():
    "Let recipes and weights find `tiny_net` by the name tiny"
    from cifar_fastai.models import MODELS
    MODELS["tiny"] = tiny_net


def learnable(n_train=160, n_test=48, size=16, seed=0):
    "Pictures of noise with a coloured square somewhere, whose colour is the class; none is there twice"
    rng = np.random.default_rng(seed)
    n, side = n_train + n_test, size // 2
    y = np.arange(n) % len(CLASSES)
    x = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    for k, (top, left) in enumerate(rng.integers(0, size - side + 1, (n, 2))):
        noise = rng.integers(-30, 31, (side, side, 3))
        x[k, top:top + side, left:left + side] = (COLOURS[y[k]] + noise).clip(0, 255)
    mean, std = statistics(x[:n_train])
    return ImageData(x[:n_train], y[:n_train], x[n_train:], y[n_train:], CLASSES, "learnable",
                     sha256(x.tobytes() + y.tobytes()).hexdigest(), mean, std)


def write_folder(data: ImageData, root: Path) -> Path:
    "`data` as train/<class>/*.png and test/<class>/*.png"
    from PIL import Image
    for split, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        for k, (picture, label) in enumerate(zip(x, y)):
            path = root / split / data.classes[label] / f"{k:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    return root


recipe = Recipe(name="tiny", model="tiny", epochs=2, bs=32, min_steps=4, lr={"num_it": 40}, size=16,
                precision="fp32", aug="pad_crop_flip", explain={"every": 1, "gallery": 8})


if __name__ == "__main__":
    register()
    cli.main(recipe)
