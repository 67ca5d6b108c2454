"""The recipes of this book, and what each came to: the list that `python -m recipes` prints.

A figure stands in it only where a file in benchmarks/results holds it, as `--seeds` or `python -m benchmarks
accuracy` writes it, measured with the recipe's present values.
"""
import json
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from cifar_fastai.errors import InputError
from cifar_fastai.recipe import Recipe, mean_and_spread, training_fields

__all__ = ["listing", "measured", "recipes", "schedule"]

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def recipes() -> dict[str, list[Recipe]]:
    "Module → its recipes, the main one first"
    names = sorted(m.name for m in iter_modules([str(Path(__file__).parent)]) if m.name != "__main__")
    modules = {n: import_module(f"recipes.{n}") for n in names}
    return {n: [v for k, v in sorted(vars(m).items()) if k == "recipe" or k.startswith("recipe_")]
            for n, m in modules.items() if hasattr(m, "recipe")}


def measured(
    recipe: Recipe,
    folder: Path = RESULTS,      # of files as `--seeds` leaves them (seeds.json), and rows of `accuracy`
) -> str:
    "mean ± sd, n and data of the results that were measured with the recipe as it now trains"
    if not folder.is_dir(): return "see benchmarks/results of the repository"     # installed without it
    found, now = [], _fields(recipe)
    for path in sorted(folder.glob("*.json")):
        result = _parsed(path.read_text(), path)
        if not isinstance(result, dict) or not isinstance(result.get("settings"), dict): continue
        if _fields(Recipe.from_dict(result["settings"])) == now:
            found.append(f"{result['accuracy']['text']} ({result['data']})")
    found += _swept(now, folder)
    small = all(text.endswith("(digits)") for text in found)
    return "; ".join([*found, *(["nobody has run it on all of CIFAR-10"] if small else [])])


def _parsed(text: str, path: Path):
    try: return json.loads(text)
    except ValueError as e: raise InputError(f"{path} is no JSON ({e}). Restore or remove it.") from None


def _swept(fields: dict, folder: Path) -> list[str]:
    "The same of the lines that `python -m benchmarks accuracy` has written, by data set: each seed once"
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            row = _parsed(line, path)
            recipe = Recipe.from_dict(row["settings"])
            if row["judged_on"] != "test" or _fields(recipe) != fields: continue
            alike = row["data"], row.get("data_fingerprint"), recipe.tta
            found.setdefault(alike, {})[recipe.seed] = row
    return [f"{_accuracies(list(of_seed.values()))}, n={len(of_seed)} ({data})"
            for (data, *_), of_seed in found.items()]


def _accuracies(rows: list[dict]) -> str:
    views = [r["accuracy_tta"] for r in rows if "accuracy_tta" in r]
    plain = mean_and_spread([r["accuracy"] for r in rows])
    return f"{plain}, {mean_and_spread(views)} with TTA" if views else plain


def _fields(recipe: Recipe) -> dict:
    "What decides the weights but for the seed; min_steps decides the batch size on other data"
    return training_fields(recipe.but(seed=0).as_dict()) | {"min_steps": recipe.min_steps}


def schedule(r: Recipe) -> str:
    "The schedule in a few words"
    s = r.schedule
    if s.name == "plateau": return "plateau (holdout loss)"
    return f"one_cycle, {s.anneal}, peak at epoch {r.warm_up:g}" if s.name == "one_cycle" else s.name


def listing() -> str:
    "A recipe, and what it is and came to in three lines below it, which fit a terminal"
    said = []
    for module, found in recipes().items():
        for r in found:
            name = module if r.name == module else f"{module} --norm {r.build.norm}"
            model = r.model if r.build.norm == "bn" else f"{r.model} with {r.build.norm}"
            said += [name, f"    {model}, {r.epochs} epochs, {r.opt.name}, {schedule(r)}", f"    {r.aug}",
                     f"    test accuracy: {measured(r)}", ""]
    return "\n".join([*said, "Run one with python -m recipes.<recipe>; --help shows its flags."])
