"""Train one recipe with several seeds: mean ± sd and n.

    train_seeds(recipe, "cifar10", [1, 2, 3], out="runs/three")
"""
import logging
import time
from pathlib import Path
from statistics import mean, stdev

from ..errors import InputError
from ..files import read_json, write_json
from ..processes import agreed, join, rank
from ..recipe import Recipe, mean_and_spread
from .console import show_log
from .one_run import train
from .run_folder import choose_folder

__all__ = ["summary", "train_seeds"]

log = logging.getLogger("cifar_fastai")


def train_seeds(
    recipe: Recipe,
    data,                   # see `train`
    seeds: list[int],
    out: str | Path | None = None,  # a folder for each seed, and seeds.json; None: runs/<recipe>/<time>-seeds
    **kwargs,               # further arguments of `train`
) -> dict:                  # what seeds.json holds
    "Train `recipe` once for each of `seeds`, in turn, and write mean ± sd of its results"
    if len(set(seeds)) < len(seeds): raise InputError(f"seeds {seeds} repeat. Give each one once.")
    folder = Path(out or Path("runs") / recipe.name / f"{time.strftime('%Y%m%d-%H%M%S')}-seeds")
    runs, results = {folder / f"seed{seed}": recipe.but(seed=seed) for seed in seeds}, []
    join(kwargs.get("device"))
    agreed(lambda: _check_folders(folder, runs, kwargs.get("resume", False)))
    with show_log(quiet=kwargs.get("quiet", False)):
        for own, of_seed in runs.items(): results.append(train(of_seed, data, own, **kwargs).results)
        if rank(): return {}                # the first of several processes tells
        if not recipe.limit and len({r.get("data_fingerprint") for r in results}) > 1:
            raise InputError(f"the seeds in {folder} had other pictures each. Train them in another folder.")
        settings = {k: v for k, v in recipe.as_dict().items() if k != "seed"}
        found = summary(results) | {"settings": settings}
        write_json(folder / "seeds.json", found)
        for name, label in (("accuracy", "accuracy"), ("accuracy_tta", "with TTA")):
            if name in found: log.info("%-11s %s", label, found[name]["text"])
        log.info("folder      %s", folder)
    return found


def _check_folders(folder: Path, runs: dict[Path, Recipe], resume: bool) -> None:
    "Raises: InputError, before the first seed trains, where a later one could not, or others were told of"
    for own, recipe in runs.items(): choose_folder(recipe, own, resume)
    there = read_json(folder / "seeds.json").get("seeds", []) if (folder / "seeds.json").exists() else None
    if there is None or resume and set(there) <= {recipe.seed for recipe in runs.values()}: return
    raise InputError(f"{folder} already holds the results of seeds {there}. Give another folder, or these "
                     "seeds and --resume.")


def summary(results: list[dict]) -> dict:
    "Mean, sd (n - 1; None of one seed) and n of accuracies, losses and seconds over the results of seeds"
    first = results[0]
    about = ("recipe", "data", "data_fingerprint", "device", "precision", "versions")
    found = {"seeds": [r["seed"] for r in results]} | {k: first[k] for k in about if k in first}
    for name in ("accuracy", "accuracy_tta", "loss", "cross_entropy", "seconds"):
        values = [r[name] for r in results if name in r]
        if not values: continue
        sd = stdev(values) if len(values) > 1 else None
        found[name] = {"mean": mean(values), "sd": sd, "n": len(values), "values": values}
        if name.startswith("accuracy"): found[name]["text"] = f"{mean_and_spread(values)}, n={len(values)}"
    return found
