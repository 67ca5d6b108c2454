"""Each recipe beside its predecessor's own settings, mistakes included: the same pictures, the same seeds.

    python -m benchmarks predecessors DATA [--only RECIPE ...] [--seeds 0 1 2] [--limit N] [--json FILE]

A pair that FILE has already is not trained again.

Net, loader and steps are ours on both sides, momentum is Nesterov's: what is compared are the settings, as
docs/predecessors.md and the recipes' docstrings tell them. Two cannot be repeated here: C let the *test* loss
lower its rate (a holdout does it on both sides), B filled its border with a colour of its own.
"""
import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import albumentations as A
import cv2
import numpy as np

from cifar_fastai import Cutout, Recipe, load_data, policy, train
from cifar_fastai.errors import InputError, UnknownName, report_errors
from cifar_fastai.files import write_json
from cifar_fastai.runs.compare import mean_sd

from .harness import machine

__all__ = ["SETTINGS", "pair", "run"]

MEAN, STD = np.array([.4914, .4822, .4465]), np.array([.247, .243, .261])


class ClipNormalised(A.ImageOnlyTransform):
    "What Albumentations' colour transforms did to D's pictures, which came normalised: values cut to 0…1"
    def apply(self, img, **params):
        kept = ((img / 255 - MEAN) / STD).clip(0, 1)
        return np.uint8((255 * (kept * STD + MEAN)).round().clip(0, 255))


def _jitter_after_normalising() -> list:
    jitter = A.ColorJitter((1, 1), (.9, 1.1), (.8, 1.2), (-.1, .1), p=1)
    return [A.Pad(4, border_mode=cv2.BORDER_REFLECT_101), A.RandomCrop(32, 32), A.HorizontalFlip(p=.5),
            A.Sequential([jitter, ClipNormalised(p=1)], p=.5), A.ToGray(num_output_channels=3, p=.2),
            Cutout(16)]


HOLES = {"cutout": 8, "holes": (1, 3), "cutout_p": .8}
SETTINGS = {   # recipe: what its predecessor had instead
    "resnet18_adam_20ep": {"opt": "adam", "lr": 6.28e-4, "aug": policy.pad_crop(pad=2, cutout=16)},
    "custom_resnet_l1_24ep": {
        "lr": .0655, "regularise.l1": 0.0,
        "aug": policy.pad_crop(pad=4, mode="constant", cutout=16, cutout_p=.5)},
    "resnet18_plateau_50ep": {
        "keep": "last", "aug": policy.pad_crop_flip_cutout(pad=2, cutout=8, holes=(4, 4), cutout_p=.5)},
    "resnet18_jitter_20ep": {"lr": .0657, "opt.wd": 0.0, "aug": _jitter_after_normalising()},
    "custom_resnet_24ep": {"lr": .0416, "aug": policy.pad_crop_flip_cutout(pad=4, flip=1.0, **HOLES)}}


def pair(
    name: str,       # of a recipe
    changes: dict,   # fields that both sides share: epochs, limit …
) -> dict[str, Recipe]:
    "Ours and the predecessor's. Raises: InputError for a recipe that has none"
    if name not in SETTINGS: raise UnknownName("recipe with a predecessor", name, SETTINGS)
    ours = import_module(f"recipes.{name}").recipe
    return {"ours": ours.but(**changes), "theirs": ours.but(**SETTINGS[name] | changes)}


def run(data, names: list[str], seeds: list[int], folder: Path, have=(), **changes) -> Iterator[dict]:
    "Train both sides of each with each seed, by turns: recipe, seed and the test accuracy of either side"
    pairs = {name: pair(name, changes) for name in names}
    for seed in seeds:
        for name, sides in pairs.items():
            row = {"recipe": name, "seed": seed}
            if (name, seed) in have: continue
            for side, recipe in sides.items():
                out = folder / f"{name}-{side}-seed{seed}"
                result = train(recipe.but(seed=seed), data, out, quiet=True).results
                row |= {side: result["accuracy"], f"{side} lr": result["lr"]}
                print(f"{name} seed {seed} {side}: {result['accuracy']:.2%}", file=sys.stderr, flush=True)
            yield row


class Record:
    "Rows with what they were measured on, and the file that keeps them"
    def __init__(self, path: Path | None, about: dict):
        self.path, self.about, self.kept = path, about, []
        if path and path.exists() and self._read() != about | {"rows": self.rows()}:
            raise InputError(f"{path} was measured on another machine, other data or settings. Name another "
                             "file, or remove it.")

    def _read(self) -> dict: return json.loads(self.path.read_text())

    def rows(self) -> list[dict]:
        return self._read()["rows"] if self.path and self.path.exists() else self.kept

    def add(self, row: dict) -> None:
        others = [r for r in self.rows() if (r["recipe"], r["seed"]) != (row["recipe"], row["seed"])]
        self.kept = sorted([*others, row], key=lambda r: (list(SETTINGS).index(r["recipe"]), r["seed"]))
        if self.path: write_json(self.path, self.about | {"rows": self.kept})


def table(rows: list[dict]) -> str:
    "A line a recipe: mean ± sd of either side, and of the difference seed by seed, in points"
    lines = []
    for name in dict.fromkeys(r["recipe"] for r in rows):
        mine = [r for r in rows if r["recipe"] == name]
        said = [mean_sd([r[side] for r in mine], ".2f", 100) for side in ("ours", "theirs")]
        gain = mean_sd([r["ours"] - r["theirs"] for r in mine], "+.2f", 100)
        lines.append(f"{name:22}  ours {said[0]} %, predecessor's settings {said[1]} %: {gain} points, "
                     f"n={len(mine)}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks predecessors", description=__doc__,
                                     formatter_class=raw)
    parser.add_argument("data", help="see --data of a recipe")
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), metavar="RECIPE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limit", type=int, help="train on so many pictures only")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's own")
    parser.add_argument("--valid", choices=["test", "holdout"], help="what is watched; a holdout is smaller")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    given = {k: v for k in ("limit", "epochs", "valid") if (v := getattr(args, k)) is not None}
    with report_errors(), tempfile.TemporaryDirectory() as tmp:
        for name in args.only: pair(name, given)
        data = load_data(args.data)
        record = Record(args.json, {"machine": machine(), "data": Path(data.source).name,
                                    "data_fingerprint": data.fingerprint, **given})
        have = {(r["recipe"], r["seed"]) for r in record.rows()}
        for row in run(data, args.only, args.seeds, Path(tmp), have, **given): record.add(row)
        print(table(record.rows()))

