"""How accurate the recipes are: recipes × changes × seeds, one JSON line a run, and the page that shows them.

    python -m benchmarks accuracy DATA --plan final [--seeds 0 1 2] [--only NAME ...] [--json FILE]
    python -m benchmarks accuracy DATA --plan ablation --base cpu_15min [--limit N] [--epochs N] …
    python -m benchmarks accuracy DATA --plan rates [--limit N] [--epochs N]
    python -m benchmarks accuracy --page docs/accuracy.md README.md [--json FILE]
    python -m benchmarks accuracy --picture docs/figures/accuracy.png [--json FILE]

`final` trains every recipe as it is and tells of the test set. `ablation` trains one recipe with one change
at a time and tells of a holdout of the training pictures: the test set chooses nothing. `rates` compares the
rate that the range test finds with a quarter to four times as much, on three nets and three batch sizes, by
the holdout. --limit, --epochs, --size, --bs and --lr (a change's own rate stands) make short runs of all
alike. A run that FILE has is left out; one that was killed goes on from its checkpoint in the work folder.
FILE keeps the fingerprints of recipe and data with every row, so rows of other recipes, data and machines may
share it.
"""
import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from cifar_fastai.data import ImageData, load_data
from cifar_fastai.errors import InputError, UnknownName, report_errors
from cifar_fastai.explain import ImageInterpretation
from cifar_fastai.files import save_atomically
from cifar_fastai.machine import machine_name, versions
from cifar_fastai.parts import LRFind
from cifar_fastai.plots import new_figure, offscreen, save_figure
from cifar_fastai.policy import pad_crop_flip, side_at
from cifar_fastai.recipe import Recipe
from cifar_fastai.runs import train
from cifar_fastai.runs.compare import mean_sd
from cifar_fastai.runs.report import numbers
from recipes.listing import recipes

from .summary import write_block

__all__ = ["ABLATIONS", "drawn", "lost", "petaflop", "planned", "rates", "read_rows", "run", "sweep", "table"]

ROWS = Path(__file__).parent / "results" / "accuracy.jsonl"
ANCHORS = Path(__file__).parent / "results" / "anchors.json"      # what others have published
SETS = {"jpeg": "CIFAR-10 as JPEG pictures", "cifar10": "CIFAR-10, original pixels"}   # by the rows' names
SHORT = {"limit": int, "epochs": int, "size": int, "bs": int, "lr": float}     # what makes runs short
RATES = Recipe(name="rates", aug=pad_crop_flip(), epochs=4, valid="holdout", tta="none")
ABLATIONS = {   # recipe → change → what it amends
    "resnet18_20ep": {
        "as it is": {}, "sgd": {"opt": {"name": "sgd", "mom": .9}}, "momentum .6": {"opt.mom": .6},
        "no cutout": {"aug.cutout": 0}, "smoothing .2": {"loss.smoothing": .2},
        "alternating flip": {"aug.flip": "alternate"}, "whitened stem": {"build.whiten": .01},
        "whitened stem, biases × 16": {"build.whiten": .01, "opt.bias_lr": 16.},
        "whitened stem, biases × 64": {"build.whiten": .01, "opt.bias_lr": 64.},
        "ema": {"keep": {"name": "ema", "decay": .951}}, "zero residual": {"build.zero_residual": True},
        "biases and head × 4": {"opt.bias_lr": 4., "opt.head_lr": 4.},
        "rate .025": {"lr": .025}, "rate .05": {"lr": .05}, "rate .1": {"lr": .1}, "rate .2": {"lr": .2},
        "half the rate": {"lr": LRFind(divide=2.)}, "bs 256": {"bs": 256}},
    "cpu_15min": {
        "as it is": {}, "no whitening": {"build.whiten": 0.}, "biases × 1": {"opt.bias_lr": 1.},
        "lookahead": {"keep": {"name": "lookahead", "decay": .77}}, "random flip": {"aug.flip": .5},
        "sgd": {"opt": {"name": "sgd", "mom": .85, "bias_lr": 64., "head_lr": 1.}, "lr": 1.5},
        "smoothing .1": {"loss.smoothing": .1}, "cutout 6": {"aug": {"name": "pad_crop_flip_cutout", "pad": 2,
                                                                     "flip": "alternate", "cutout": 6}},
        "24 → 28 → 32": {"aug.sizes": ((0, 24), (3, 28), (6, 32))}}}


def planned(
    plan: str,                # "final" or "ablation"
    base: str,                # recipe that an ablation changes
    only: list[str] | None = None,   # recipes, or changes, several at once as "sgd + ema"; None: all
    **given,                  # limit, epochs …, for all runs alike
) -> list[tuple[str, Recipe]]:       # change, recipe
    "The runs of a plan, without their seeds. Raises: InputError for an unknown name"
    known = {r.name: r for of_module in recipes().values() for r in of_module}
    if plan == "final":
        for name in only or (): _known("recipe", name, known)
        return [("as it is", _shorter(r, given)) for name, r in known.items() if not only or name in only]
    _known("recipe with ablations", base, ABLATIONS)
    start, found = _shorter(known[base].but(valid="holdout"), given), []
    for name in only or ABLATIONS[base]:
        changed = start
        for part in name.split(" + "):
            _known("change", part, ABLATIONS[base])
            changed = changed.but(**ABLATIONS[base][part])
        found.append((name, changed))
    return found


def _shorter(recipe: Recipe, given: dict) -> Recipe:
    "With what is given; of smaller pictures the same share is cropped and covered"
    if "size" not in given: return recipe.but(**given)
    scale, aug = given["size"] / recipe.size, recipe.aug
    return recipe.but(**given, **{"aug.pad": round(scale * aug.pad), "aug.cutout": round(scale * aug.cutout)})


def rates(data: ImageData, seeds: list[int], path: Path, work: Path, **given) -> Iterator[dict]:
    "Rows of the found rate and of a grid around it, for each net and batch size, on the holdout"
    for model, bs in product(("resnet18", "custom_resnet", "airbench"), (64, 128, 256)):
        name = f"rates_{model}_{bs}"
        found = _shorter(RATES, given).but(name=name, model=model, bs=bs)
        for row in sweep([("as it is", found)], seeds, data, path, work, "holdout", given):
            yield row
            grid = [(f"{f:g} × the rate", found.but(lr=f * row["lr"])) for f in (.25, .5, 2., 4.)]
            yield from sweep(grid, [row["seed"]], data, path, work, "holdout", given, found)


def lost(rows: list[dict]) -> str:
    "A line a net, batch size and seed: points that the found rate loses to the best of its grid; the mean"
    lines, all_lost = [], []
    for name, seed in dict.fromkeys((r["recipe"], r["seed"]) for r in rows):
        of = [r for r in rows if (r["recipe"], r["seed"]) == (name, seed)]
        found = next(r for r in of if r["change"] == "as it is")
        best = max(of, key=lambda r: r["accuracy"])
        all_lost.append(100 * (best["accuracy"] - found["accuracy"]))
        lines.append(f"{name:26} seed {seed}: found {found['lr']:.3g}: {found['accuracy']:.2%}; best "
                     f"{best['lr']:.3g}: {best['accuracy']:.2%}; lost {all_lost[-1]:.2f}")
    return "\n".join([*lines, f"lost in the mean, n={len(all_lost)}: {mean_sd(all_lost, '.2f')} points"])


def _known(what: str, name: str, names) -> None:
    if name not in names: raise UnknownName(what, name, names)


def petaflop(learn, sizes: dict[int, int]) -> float:
    "10^15 multiplications and additions of the training; `sizes`: side of the pictures → how many are shown"
    total, model = 0, learn.model
    was = {m: m.training for m in model.modules()}
    model.eval()                  # two pictures are no statistics for a batch norm
    for side, n in sizes.items():
        x = torch.zeros(2, 3, side, side, device=next(model.parameters()).device)
        with FlopCounterMode(display=False) as counter: model(x).sum().backward()
        total += counter.get_total_flops() / 2 * n
    model.zero_grad()
    for m, training in was.items(): m.training = training
    return total / 1e15


def _sizes(recipe: Recipe, n: int) -> dict[int, int]:
    "Side of the training pictures → how many are shown at it in the whole fit"
    steps, shown = getattr(recipe.aug, "sizes", ()) or ((0, recipe.size),), {}
    for epoch in range(recipe.epochs):
        side = side_at(steps, epoch)
        shown[side] = shown.get(side, 0) + n
    return shown


def run(
    change: str,
    recipe: Recipe,
    data: ImageData,
    work: Path,               # folder of the run folders
    judge: str = "test",      # whose pictures the row tells of: "test", or "holdout" of the recipe
) -> dict:
    "Train, or go on where a run was killed, and give its row"
    folder = work / f"{recipe.name}-{recipe.fingerprint()}-{data.fingerprint[:8]}"
    done = train(recipe, data, folder, resume=True, checkpoint_minutes=5)      # begins where nothing is
    found = done.results
    if judge == "holdout":
        found = found | numbers(ImageInterpretation.from_learner(done.learn, ds_idx=1, tta=recipe.tta))
    shown = len(done.learn.dls.train) * done.learn.dls.train.bs
    kept = ("accuracy", "accuracy_tta", "cross_entropy", "ece", "pictures", "training_pictures", "lr",
            "device", "precision", "versions", "seconds", "seed", "epochs", "resumed")
    return {"recipe": recipe.name, "change": change, "judged_on": judge, "data": Path(data.source).name,
            "data_fingerprint": data.fingerprint, "fingerprint": _of_all_seeds(recipe),
            "petaflop": round(petaflop(done.learn, _sizes(done.learn.recipe, shown)), 4),
            **{k: found[k] for k in kept if k in found}, "settings": recipe.as_dict()}


def _of_all_seeds(recipe: Recipe) -> str: return recipe.but(seed=0).fingerprint()


def read_rows(path: Path) -> list[dict]:
    "The rows of a file, none where there is no file. Raises: InputError for a broken line"
    rows, lines = [], path.read_text().splitlines() if path.exists() else []
    for k, line in enumerate(lines, 1):
        try: rows.append(json.loads(line))
        except ValueError: raise InputError(f"{path}, line {k}: no JSON. Restore or remove it.") from None
    return rows


def _append(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(r, ensure_ascii=False) + "\n" for r in [*read_rows(path), row]]
    save_atomically(path, "".join(lines))


def sweep(runs, seeds: list[int], data: ImageData, path: Path, work: Path, judge: str,
          given: dict | None = None, base: Recipe | None = None) -> Iterator[dict]:
    """The rows of all runs, seed by seed, those that `path` has among them. `given`: what all had in common;
    `base`: what they are changes of"""
    for seed in seeds:
        for change, recipe in runs:
            key = _of_all_seeds(recipe), seed, data.fingerprint, judge
            have = {(r["fingerprint"], r["seed"], r["data_fingerprint"], r["judged_on"]): r
                    for r in read_rows(path)}
            if key not in have:
                print(f"{recipe.name}, {change}, seed {seed} …", flush=True)
                row = run(change, recipe.but(seed=seed), data, work, judge)
                row |= {"given": given or {}, "base": _of_all_seeds(base or recipe)}
                _append(path, row)
                yield row
            else: yield have[key]


def groups(rows: list[dict]) -> dict[tuple, list[dict]]:
    "Rows that differ by their seed alone"
    found = {}
    for r in rows:
        found.setdefault((r["fingerprint"], r["data_fingerprint"], r["judged_on"]), []).append(r)
    return found


def table(rows: list[dict], machines: bool = False) -> str:
    """A line a recipe and change; with the same seeds of `as it is` beside it, the paired difference. Recipes
    alone have no columns for changes; `machines`: a column for what each was measured on"""
    changed = any(r["change"] != "as it is" for r in rows)
    head = ["recipe", *(["change"] if changed else []), "n", "plain", "TTA",
            *(["difference to as it is"] if changed else []), "epochs", "PFLOP", "seconds",
            *(["machine"] if machines else [])]
    lines = [_line(head), "|" + "---|" * len(head)]
    for of in groups(rows).values():
        first = of[0]
        pairs = [r["accuracy"] - base["accuracy"] for r in of for base in _bases(r, rows)[-1:]]
        less = mean_sd(pairs, ".2f", 100) if pairs and first["change"] != "as it is" else ""
        tta = [r["accuracy_tta"] for r in of if "accuracy_tta" in r]
        lines.append(_line([
            f"`{first['recipe']}`", *([first["change"]] if changed else []), f"{len(of)}",
            mean_sd([r["accuracy"] for r in of], ".2f", 100), mean_sd(tta, ".2f", 100) if tta else "",
            *([less] if changed else []),
            f"{first['epochs']}", f"{first['petaflop']:.3g}", f"{mean(r['seconds'] for r in of):,.0f}",
            *([_measured_on(of)] if machines else [])]))
    return "\n".join(lines)


def _bases(row: dict, rows: list[dict]) -> list[dict]:
    "The rows of what `row` is a change of, with its seed; rows of before do not say which recipe that was"
    same = ("recipe", "judged_on", "data_fingerprint", "epochs", "training_pictures", "given", "seed")
    return [r for r in rows if r["change"] == "as it is" and all(r.get(k) == row.get(k) for k in same)
            and (r.get("base") == row.get("base") or None in (r.get("base"), row.get("base")))]


def _measured_on(rows: list[dict]) -> str:
    return "; ".join(sorted({f"{r['device']}, torch {r['versions']['torch']}" for r in rows}))


def _line(cells: list[str]) -> str: return f"| {' | '.join(cells)} |"


def page(rows: list[dict]) -> str:
    "Tables of runs that can be compared, each with the machine that it was measured on, or one a line"
    if not rows:
        return "Nobody has measured a recipe on all of CIFAR-10 yet; `benchmarks accuracy DATA` does."
    kinds, parts = {}, []
    for r in rows:
        same = *(r[k] for k in ("data", "judged_on", "training_pictures", "pictures")), r["settings"]["size"]
        options = " ".join(f"--{k} {v}" for k, v in r.get("given", {}).items())
        kinds.setdefault((*same, options), []).append(r)
    for (data, judge, trained, n, side, options), of in kinds.items():
        several = len({_measured_on([r]) for r in of}) > 1
        machine = "" if several else f" {_measured_on(of)}."
        kind = "test" if judge == "test" else "holdout"
        parts += [f"**{SETS.get(data, data)}**, {trained:,} training pictures of {side}×{side}, "
                  f"accuracy on {n:,} {kind} pictures, in per cent (mean ± sd over n seeds)"
                  f"{f', by `{options}`' if options else ''}.{machine}", "", table(of, several), ""]
    return "\n".join(parts).strip()


def drawn(rows: list[dict], anchors: list[dict]) -> Figure:
    "Accuracy against work on a panel a data set: a dot for each recipe, a cross for each published result"
    whole = [r for r in rows if not r.get("given")]
    finals = [r for r in whole if r["change"] == "as it is" and r["judged_on"] == "test"]
    panels = [d for d in dict.fromkeys(a["data"] for a in anchors)
              if any(r["data"] == d for r in finals)] or ["jpeg"]
    with offscreen(): fig, axes = new_figure(1, len(panels), (7.2 * len(panels), 4.6))
    for ax, data in zip(axes[0], panels): _panel(ax, anchors, finals, data)
    return fig


def _panel(ax, anchors: list[dict], finals: list[dict], data: str) -> None:
    points = [(a["petaflop"], a[k], f"{a['name']} ({label})", "x", "tab:grey") for a in anchors
              for k, label in (("plain", "plain"), ("tta", "TTA")) if a["data"] == data and k in a]
    for of in groups([r for r in finals if r["data"] == data]).values():
        for k, label in (("accuracy", "plain"), ("accuracy_tta", "TTA")):
            if k not in of[0]: continue
            value, label = 100 * mean(r[k] for r in of), f"{of[0]['recipe']} ({label}, n={len(of)})"
            points.append((of[0]["petaflop"], value, label, "o", "tab:blue"))
    work = [x for x, *_ in points]
    middle = (min(work) * max(work)) ** .5
    for x, y, label, mark, color in points:
        ax.plot(x, y, mark, color=color)
        right = x > middle                                     # the label stands where there is room
        ax.annotate(label, (x, y), (-7 if right else 7, 0), textcoords="offset points", fontsize=8,
                    ha="right" if right else "left", va="center")
    ax.set_xscale("log")
    ticks = .1, .2, .5, 1, 2, 5, 10, 20, 50
    ax.set_xticks(ticks, labels=[f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_xlim(min(work) / 1.5, max(work) * 1.5)
    ax.set_xlabel("PFLOP of the training")
    ax.set_ylabel("test accuracy, %")
    ax.set_title(f"{SETS.get(data, data)}: recipes (dots) and others (crosses)", fontsize=10)
    ax.margins(y=.1)
    ax.grid(alpha=.3)


def main(argv: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks accuracy", description=__doc__,
                                     formatter_class=raw)
    parser.add_argument("data", nargs="?", help="see --data of a recipe")
    parser.add_argument("--plan", choices=["final", "ablation", "rates"], default="final")
    parser.add_argument("--base", default="resnet18_20ep", help="recipe that an ablation changes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes, or changes of an ablation")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    for name, kind in SHORT.items(): parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--json", type=Path, default=ROWS)
    parser.add_argument("--work", type=Path, default=Path("runs") / "accuracy", help="for the run folders")
    parser.add_argument("--page", nargs="+", type=Path, help="write the tables into these pages")
    parser.add_argument("--picture", type=Path, help="draw accuracy against work")
    args = parser.parse_args(argv)
    with report_errors():
        if (args.page or args.picture) and not args.json.exists():
            raise InputError(f"no results at {args.json}. Give the file that has them.")
        if args.picture:
            save_figure(drawn(read_rows(args.json), json.loads(ANCHORS.read_text())), args.picture, dpi=120)
        if args.page:
            judged = {"accuracy": [], "ablations": []}
            for r in read_rows(args.json):
                judged["accuracy" if r["judged_on"] == "test" else "ablations"].append(r)
            for path in args.page:
                text = path.read_text()
                for name, rows in judged.items():
                    if f"<!-- {name} -->" in text: text = write_block(text, name, page(rows))
                path.write_text(text)
        if args.page or args.picture: return
        if not args.data: raise InputError("no data to train on. Give it: accuracy DATA.")
        given = {k: v for k in SHORT if (v := getattr(args, k)) is not None}
        data = load_data(args.data, size=given.get("size", Recipe.size))
        if args.plan == "rates":
            if {"bs", "lr"} & given.keys():
                raise InputError("--bs and --lr have no meaning for rates, which tries both. Leave them out.")
            print(lost(list(rates(data, args.seeds, args.json, args.work, **given))))
        else:
            runs = planned(args.plan, args.base, args.only, **given)
            ablation = args.plan == "ablation"
            base = planned(args.plan, args.base, ["as it is"], **given)[0][1] if ablation else None
            judge = "holdout" if ablation else "test"
            print(table(list(sweep(runs, args.seeds, data, args.json, args.work, judge, given, base))))
        print(f"{machine_name()}, {', '.join(f'{k} {v}' for k, v in versions().items())}")
