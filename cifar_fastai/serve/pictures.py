"""The pictures that a command is given (files, folders, standard input), and those that tested a run."""
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data import SUFFIXES, load_data
from ..errors import InputError
from ..files import read_json

__all__ = ["Named", "find_pictures", "tested_pictures"]


@dataclass(frozen=True)
class Named:
    "A picture that is to be read, and what messages call it"
    name: str
    source: Path | bytes


def find_pictures(
    given: Iterable[str],     # files, folders (also pictures in folders inside), "-": standard input
) -> list[Named]:
    "In the order given, those of a folder by name. Raises: InputError for what is not there, or nothing"
    found = [picture for what in given for picture in _found(what)]
    if not found: raise InputError("no picture was given. Name files or folders, or - for standard input.")
    return found


def _found(what: str) -> list[Named]:
    if what == "-": return [Named("standard input", sys.stdin.buffer.read())]
    path = Path(what).expanduser()
    if not path.exists(): raise InputError(f"picture {what} is not there. Check the path.")
    if not path.is_dir(): return [Named(str(path), path)]
    inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not inside: raise InputError(f"folder {what} holds no pictures. Give another.")
    return [Named(str(p), p) for p in inside]


def tested_pictures(folder: str | Path) -> np.ndarray | None:     # (N,S,S,3) uint8
    "The test set of a run, where the data that it had still is, and is the same"
    folder = Path(folder)
    try:
        recipe, results = read_json(folder / "recipe.json"), read_json(folder / "results.json")
        begun = read_json(folder / "checkpoints" / "begun.json")
        data = load_data(begun["data"], size=recipe["size"], unverified=begun.get("unverified", False),
                         download=False, split=begun.get("data_split"))
        if recipe["limit"]: data = data.limit(recipe["limit"], recipe["seed"])
        return data.x_test if data.fingerprint == results["data_fingerprint"] else None
    except (InputError, LookupError, TypeError): return None
