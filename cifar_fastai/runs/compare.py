"""Compare runs: a table with means over seeds, curves over each other, differences of confusion matrices.

    python -m recipes compare runs/a runs/b-seeds --out comparison
    compare_runs(["runs/a", "runs/b-seeds"], "comparison")
"""
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import InputError
from ..files import read_json, save_atomically
from ..page import disagreements, write_comparison
from ..plots import new_figure, offscreen, save_figure, short, text
from ..recipe import flat
from ..serve import tested_pictures

__all__ = ["Group", "SavedRun", "compare_runs", "grouped", "mean_sd", "read_runs", "table"]

NUMBERS = ("accuracy", "loss", "seconds", "epochs", "parameters", "seed")   # of results.json
HISTORY = ["epoch", "train_loss", "valid_loss", "accuracy"]
COLUMNS = ("recipe", "n", "accuracy", "TTA", "cross-entropy", "epochs", "seconds", "parameters", "data",
           "maps", "insertion", "deletion")


@dataclass(frozen=True, eq=False)
class SavedRun:
    "What a run left in its folder"
    folder: Path
    results: dict              # of results.json
    recipe: dict               # of recipe.json, under dotted names
    history: pd.DataFrame      # a row an epoch
    predictions: pd.DataFrame  # a row a test picture: true, predicted

    @property
    def confusion(self) -> np.ndarray:     # (C,C)
        "Counts, row: true class, column: predicted class"
        return pd.crosstab(self.predictions["true"], self.predictions["predicted"], dropna=False).to_numpy()

    @property
    def classes(self) -> list[str]: return list(self.results["accuracy_per_class"])


@dataclass(frozen=True, eq=False)
class Group:
    "Runs of the same recipe on the same pictures, which differ by their seed"
    label: str
    runs: list[SavedRun]

    def values(self, name: str) -> list[float]:
        "That number of each run which has it; no `seconds` where the runs had several machines"
        if name == "seconds" and len({r.results.get("device") for r in self.runs}) > 1: return []
        return [r.results[name] for r in self.runs if name in r.results]

    def shares(self) -> np.ndarray:     # (C,C): share of true row predicted as column, mean over runs
        "The mean confusion of the runs"
        return np.mean([r.confusion / np.maximum(r.confusion.sum(1, keepdims=True), 1) for r in self.runs], 0)


def read_runs(
    paths: Sequence[str | Path],     # run folders, or folders that hold some, as `--seeds` leaves them
) -> list[SavedRun]:
    "Every run, each once. Raises: InputError for a folder that holds none, or a file that is damaged"
    folders = dict.fromkeys(f for p in paths for f in _folders(Path(p)))
    return [_read(f) for f in folders]


def _folders(path: Path) -> list[Path]:
    if (path / "results.json").is_file(): return [path.resolve()]
    if (path / "recipe.json").is_file():
        raise InputError(f"the run in {path} did not end. Resume it, or leave it out.")
    inside = sorted(p.parent.resolve() for p in path.glob("*/results.json")) if path.is_dir() else []
    if not inside: raise InputError(f"{path} holds no run: there is no results.json. Give a run's folder.")
    return inside


def _read(folder: Path) -> SavedRun:
    results, recipe = read_json(folder / "results.json"), flat(read_json(folder / "recipe.json"))
    recipe["processes"] = results.get("processes", 1)
    recipe["precision"] = results.get("precision", recipe.get("precision"))    # what "auto" came to
    if isinstance(recipe.get("lr"), (int, float)): recipe["lr"] = results.get("lr", recipe["lr"])  # scaled
    if not recipe.get("loss.smoothing", recipe.get("smoothing")) and "loss" in results:   # a run of before
        results = {"cross_entropy": results["loss"]} | results
    wrong = [k for k in NUMBERS if type(results.get(k)) not in (int, float)]
    wrong += [k for k in ("recipe", "data", "data_fingerprint") if not isinstance(results.get(k), str)]
    if not isinstance(results.get("accuracy_per_class"), dict): wrong.append("accuracy_per_class")
    if wrong: raise InputError(f"{folder}/results.json has no {', '.join(wrong)}. Give the folder of a run.")
    try:
        history = pd.read_csv(folder / "history.csv")[HISTORY].astype(float)
        said = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
        classes = pd.CategoricalDtype(list(results["accuracy_per_class"]))
        pairs = said[["true", "predicted"]].astype(classes)
        if pairs.isna().any(axis=None): raise ValueError("a class that results.json has not")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{folder} is damaged: history.csv or predictions.csv cannot be read ({e!r}). "
                         "See python -m recipes verify.") from e
    return SavedRun(folder, results, recipe, history, pairs)


def grouped(runs: list[SavedRun]) -> list[Group]:
    """Runs that differ by nothing but the seed stand together, each seed once: the same again is a group of
    its own. Names that recur say what differs"""
    groups, times = {}, Counter()
    for r in runs:
        fields = {k: v for k, v in r.recipe.items() if k != "seed"}
        key = json.dumps([fields, _pictures(r)], sort_keys=True)
        groups.setdefault((key, times[key, r.results["seed"]]), []).append(r)
        times[key, r.results["seed"]] += 1
    names = [g[0].results["recipe"] for g in groups.values()]
    alike = [[o[0] for o, n in zip(groups.values(), names) if n == name] for name in names]
    labels = [_label(name, g[0], same) for name, g, same in zip(names, groups.values(), alike)]
    place = lambda run: f", {run.folder.parent.name}/{run.folder.name}"
    return [Group(label + (place(g[0]) if labels.count(label) > 1 else ""), g)
            for label, g in zip(labels, groups.values())]


def _pictures(run: SavedRun) -> tuple:
    "What tells data sets apart; with a limit each seed trains on pictures of its own and tests on the same"
    if not run.recipe.get("limit"): return (run.results["data_fingerprint"],)
    return run.results["data"], *run.predictions["true"]


def _label(name: str, run: SavedRun, same: list[SavedRun]) -> str:
    if len(same) == 1: return name
    differ = [k for k in run.recipe if k != "seed" and any(o.recipe.get(k) != run.recipe[k] for o in same)]
    if len({_pictures(o) for o in same}) > 1: differ.append("data")
    shown = {**run.recipe, "data": run.results["data"]}
    values = [f"{k}={shown[k]}" for k in differ]
    if not values: return name
    more = f", {len(values) - 4} more" if len(values) > 5 else ""
    return f"{name} ({', '.join(values[:4 if more else 5])}{more})"


def mean_sd(values: list[float], form: str, scale: float = 1.0) -> str:
    "mean ± sd, or the one value; sd with n - 1, without the sign that `form` may ask for"
    if not values: return "-"
    one = format(scale * mean(values), form)
    return one if len(values) == 1 else f"{one} ± {format(scale * stdev(values), form.lstrip('+'))}"


def table(groups: list[Group]) -> pd.DataFrame:     # a row a group
    "What is compared, as text: accuracies in per cent, mean ± sd over n runs"
    rows = []
    for g in groups:
        first = g.runs[0].results
        rows.append((g.label, len(g.runs), mean_sd(g.values("accuracy"), ".2f", 100),
                     mean_sd(g.values("accuracy_tta"), ".2f", 100), mean_sd(g.values("cross_entropy"), ".4f"),
                     first["epochs"], mean_sd(g.values("seconds"), ".0f"), f"{first['parameters']:,}",
                     f"{first['data']}, {first.get('training_pictures', '?')} pictures",
                     *_of_maps([r.results for r in g.runs])))
    return pd.DataFrame(rows, columns=COLUMNS)


def _of_maps(results: list[dict]) -> tuple[str, str, str]:
    "Of the Grad-CAM maps that the runs show: layer and method, insertion, deletion"
    found = [r["gradcam"][0] for r in results if r.get("gradcam")]
    if not found: return "-", "-", "-"
    kinds = ", ".join(dict.fromkeys(f"{e['method']} at {e['layer']}" for e in found))
    return kinds, *(mean_sd([e[k] for e in found], ".3f") for k in ("insertion", "deletion"))


def compare_runs(
    paths: Sequence[str | Path],     # as `read_runs` takes them
    out: str | Path,                 # a folder for comparison.csv and .html, and three figures
) -> pd.DataFrame:                   # `table` of them
    "Read the runs, write a table and figures. Raises: InputError"
    groups, out = grouped(read_runs(paths)), Path(out)
    found = table(groups)
    save_atomically(out / "comparison.csv", found.to_csv(index=False))
    with offscreen():
        save_figure(plot_history(groups), out / "curves.png")
        save_figure(plot_results(groups), out / "accuracy.png")
        others = [g for g in groups[1:] if g.runs[0].classes == groups[0].runs[0].classes]
        if others: save_figure(plot_confusion_difference(groups[0], others), out / "confusion.png")
    _write_page(groups, [groups[0], *others], found, out / "comparison.html")
    return found


def _write_page(groups: list[Group], alike: list[Group], found: pd.DataFrame, path: Path) -> None:
    "`alike` have the classes of the first group"
    curves = [(f"{short(g.label, 40)}, seed {r.results['seed']}", r.history.to_dict("list"))
              for g in groups for r in g.runs]
    shares = [(g.label, g.shares().diagonal().tolist()) for g in alike]
    first, pairs = alike[0].runs[0], []
    for g in alike[1:]:
        if _pictures(g.runs[0]) != _pictures(first): continue
        pairs += disagreements((alike[0].label, first.predictions), (g.label, g.runs[0].predictions))
    write_comparison(path, COLUMNS, found.to_numpy().tolist(), curves, first.classes, shares, pairs,
                     tested_pictures(first.folder) if pairs else None)


def plot_history(groups: list[Group]) -> Figure:
    "Training loss and validation accuracy over the epochs: a line a run, a colour a group"
    fig, axs = new_figure(1, 2, figsize=(10, 3.6 + .2 * len(groups)))
    for k, g in enumerate(groups):
        for j, r in enumerate(g.runs):
            style = {"color": f"C{k % 10}", "lw": 1.4, "alpha": .85,
                     "label": short(g.label, 60) if j == 0 else None,
                     "marker": "o" if len(r.history["epoch"]) < 3 else None}
            axs[0, 0].plot(r.history["epoch"], r.history["train_loss"], **style)
            axs[0, 1].plot(r.history["epoch"], 100 * r.history["accuracy"], **style)
    titles = "Training loss, each recipe's own", "Validation accuracy"
    for ax, label, title in zip(axs.flat, ("loss", "accuracy, %"), titles):
        ax.set(xlabel="epoch", ylabel=label, title=title)
        ax.grid(color="#888888", alpha=.15)
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    fig.legend(*axs[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, frameon=False)
    return fig


def plot_results(groups: list[Group]) -> Figure:
    "Test accuracy and time of each group: a dot a run, a bar from mean - sd to mean + sd"
    fig, axs = new_figure(1, 2, figsize=(10, 1.4 + .45 * len(groups)), sharey=True)
    shown = ("accuracy", 100, "test accuracy, %"), ("seconds", 1, "seconds")
    for ax, (name, scale, label) in zip(axs[0], shown):
        for k, g in enumerate(groups):
            values = [scale * v for v in g.values(name)]
            if len(values) > 1:
                ax.errorbar(mean(values), k, xerr=stdev(values), fmt="|", color="#444444", capsize=4)
            ax.plot(values, [k] * len(values), "o", color=f"C{k % 10}", alpha=.7)
        ax.set(xlabel=label, ylim=(len(groups) - .5, -.5))
        ax.grid(color="#888888", alpha=.15)
        ax.spines[["top", "right"]].set_visible(False)
    text(axs[0, 0].set_yticks, range(len(groups)), [short(g.label, 50) for g in groups], fontsize=8)
    return fig


def plot_confusion_difference(first: Group, others: list[Group]) -> Figure:
    "Difference of confusion matrices: each group minus the first one, in percentage points"
    names = [short(c, 14) for c in first.runs[0].classes]
    diffs = [100 * (g.shares() - first.shares()) for g in others]
    most, n = max(1e-9, *(np.abs(d).max() for d in diffs)), len(names)
    side = max(3.6, .42 * min(n, 30) + 1.2)
    fig, axs = new_figure(len(others), 1, figsize=(side + 1, side * len(others)))
    for ax, g, d in zip(axs.flat, others, diffs):
        drawn = ax.imshow(d, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        text(ax.set_title, f"{short(g.label, 44)}\nminus {short(first.label, 44)}", fontsize=9)
        text(ax.set_xticks, range(n), names, rotation=90, fontsize=8 if n <= 30 else 4)
        text(ax.set_yticks, range(n), names, fontsize=8 if n <= 30 else 4)
        ax.set(xlabel="Predicted", ylabel="Actual")
        for i, j in np.ndindex(d.shape) if n <= 15 else ():
            said, color = f"{d[i, j]:+.0f}", "white" if abs(d[i, j]) > .6 * most else "black"
            if round(d[i, j]): ax.text(j, i, said, ha="center", va="center", fontsize=6.5, color=color)
    fig.colorbar(drawn, ax=axs, label="percentage points", shrink=.6 if len(others) == 1 else .3)
    return fig
