"""The pictures of docs/gradcam.md: a net learns digits that stand somewhere in noise, then five
methods and four layers are shown side by side.

    python -m benchmarks.gradcam_figure         # minutes on one core; writes docs/figures/gradcam_*.png
"""
import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cifar_fastai import ImageInterpretation, cifar_dataloaders, cifar_learner
from cifar_fastai.data.image_data import ImageData
from cifar_fastai.gradcam.cam import GradCAM
from cifar_fastai.gradcam.methods import METHODS
from cifar_fastai.plots.figures import Tile, add_colorbar, offscreen, overlay, save_figure, show_tiles

LAYERS = ("layer1", "layer2", "layer3", "layer4")        # 32×32, 16×16, 8×8 and 4×4 places, as in ResNet-18


def scenes(seed: int = 0) -> tuple[ImageData, np.ndarray, np.ndarray]:
    "scikit-learn's digits, 16×16, one in each 32×32 picture of noise; 40 pictures with two, and which two"
    from sklearn.datasets import load_digits
    rng, found = np.random.default_rng(seed), load_digits()
    digits, y = (found.images * 15.9).astype(np.uint8).repeat(2, 1).repeat(2, 2), found.target
    x, order = noise(rng, len(y)), rng.permutation(len(y))
    for picture, digit, (r, c) in zip(x, digits, rng.integers(0, 17, (len(y), 2))): put(picture, digit, r, c)
    train, test = order[:-300], order[-300:]
    two, pairs = noise(rng, 40), rng.choice(test, (40, 2))
    for picture, (a, b) in zip(two, pairs): put(picture, digits[a], 0, 0), put(picture, digits[b], 16, 16)
    data = ImageData(x[train], y[train], x[test], y[test], tuple("0123456789"), "digits in noise", "",
                     (.3,) * 3, (.25,) * 3)
    return data, two, y[pairs]


def noise(rng, n: int) -> np.ndarray: return rng.integers(0, 128, (n, 32, 32, 1), np.uint8).repeat(3, -1)


def put(picture: np.ndarray, digit: np.ndarray, r: int, c: int):
    place = picture[r:r + 16, c:c + 16]
    np.maximum(place, digit[..., None], out=place)


def net(n_out: int, n_in: int = 3, norm: str = "bn") -> nn.Module:
    "A small net whose layers are as large as those of ResNet-18; 130,000 weights"
    def conv(i, o, s): return [nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    def stage(i, o, s): return nn.Sequential(*conv(i, o, s), *conv(o, o, 1))
    return nn.Sequential(OrderedDict(
        layer1=stage(n_in, 16, 1), layer2=stage(16, 32, 2), layer3=stage(32, 48, 2), layer4=stage(48, 64, 2),
        pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(64, n_out)))


def trained(data: ImageData, epochs: int) -> ImageInterpretation:
    dls = cifar_dataloaders(data, 64, None, device="cpu", num_workers=0)
    learn = cifar_learner(dls, net, opt="adam", wd=0, precision="fp32", seed=0)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, .005)
    return ImageInterpretation.from_learner(learn)


def clearest(learn, two: np.ndarray, labels: np.ndarray) -> list[int]:
    "Which two pictures of two different digits the net sees both digits in best"
    xb = learn.dls.test_dl(list(two), bs=len(two)).one_batch()[0]
    with torch.no_grad(): logits = learn.model.eval()(xb)
    weaker = logits.gather(1, torch.as_tensor(labels)).amin(1).masked_fill(
        torch.as_tensor(labels[:, 0] == labels[:, 1]), -1e9)
    return weaker.argsort(descending=True)[:2].tolist()


def rows(interp, two, labels) -> tuple[torch.Tensor, list, list[int], list[str]]:
    "Normalised pictures, the same as pixels, the class each is asked about, and what to write under it"
    learn, data = interp.learn, interp.learn.dls.data
    chosen = clearest(learn, two, labels)
    pictures = [data.x_test[0], *(two[i] for i in chosen for _ in (0, 1))]
    classes = [interp.decoded[0].item(), *(int(c) for i in chosen for c in labels[i])]
    texts = [f"only {data.y_test[0]}", *("{} and {}".format(*labels[i]) for i in chosen for _ in (0, 1))]
    xb = learn.dls.test_dl(pictures, bs=len(pictures)).one_batch()[0].as_subclass(torch.Tensor)
    return xb, pictures, classes, texts


def draw(path: Path, columns: dict[str, torch.Tensor], pictures, classes, texts):
    "A row a picture, a column for each set of maps"
    groups = []
    for i, picture in enumerate(pictures):
        maps = [Tile(overlay(picture, m[i]), name if i == 0 else "") for name, m in columns.items()]
        groups.append([Tile(picture, "picture" if i == 0 else "", f"{texts[i]}: why {classes[i]}?"), *maps])
    fig = show_tiles(groups, ncols=1, size=1.15)
    add_colorbar(fig)
    print(save_figure(fig, path, dpi=90))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradcam_figure", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    data, two, labels = scenes()
    interp = trained(data, args.epochs)
    print(f"{interp.accuracy:.1%} of {len(interp)} test pictures right")
    xb, *known = rows(interp, two, labels)
    model, classes = interp.learn.model, torch.as_tensor(known[1])
    with offscreen():
        draw(args.out / "gradcam_methods.png",
             {m: GradCAM(model, "layer3")(xb, classes, method=m).maps for m in METHODS}, *known)
        layers = GradCAM(model, LAYERS)(xb, classes)
        names = {k: f"{k}, {'×'.join(map(str, r.shape[1:]))}" for k, r in layers.raw.items()}
        draw(args.out / "gradcam_layers.png", {names[k]: m for k, m in layers.maps.items()}, *known)


if __name__ == "__main__": main()
