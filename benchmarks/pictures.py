"""Pictures for the benchmarks, so that nothing must be fetched: scikit-learn's digits in colours.

    data = coloured(4096, 256)
    folder = write_folder(data, Path("pictures"))     # the same as PNG files
"""
from pathlib import Path

import numpy as np

from cifar_fastai.data.image_data import ImageData, statistics
from cifar_fastai.data.sources import load_data

__all__ = ["coloured", "write_folder"]


def coloured(n_train: int, n_test: int, seed: int = 0) -> ImageData:
    "Digits, each in a colour of its own on another: `n_train` and `n_test` of them, drawn with repetition"
    digits, rng = load_data("digits"), np.random.default_rng(seed)

    def draw(x, y, n):
        k = rng.integers(len(x), size=n)
        ink, paper = rng.integers(256, size=(2, n, 1, 1, 3), dtype=np.int32)
        return (paper + (ink - paper) * x[k].astype(np.int32) // 255).astype(np.uint8), y[k]
    x, y = draw(digits.x_train, digits.y_train, n_train)
    xt, yt = draw(digits.x_test, digits.y_test, n_test)
    mean, std = statistics(x)
    name = f"coloured-{n_train}-{n_test}-{seed}"
    return ImageData(x, y, xt, yt, digits.classes, "coloured digits", name, mean, std)


def write_folder(data: ImageData, root: Path) -> Path:
    "`data` as PNG files train/<class>/<k>.png and test/<class>/<k>.png; returns `root`"
    from PIL import Image
    for part, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        for c in data.classes: (root / part / c).mkdir(parents=True, exist_ok=True)
        for k in range(len(x)):
            file = root / part / data.classes[y[k]] / f"{k:06}.png"
            Image.fromarray(x[k]).save(file, compress_level=1)
    return root
