"""List the recipes, train one, and work with finished runs.

    python -m recipes                                  list the recipes
    python -m recipes.resnet18_20ep [flags]            train one of them; --help lists the flags
    python -m recipes train FILE [flags]               train the recipe of a run again, or a file of your own
    python -m recipes compare RUN ... [--out FOLDER]   tabulate and plot runs
    python -m recipes predict RUN PICTURE ...          predict the classes of pictures: files, folders
    python -m recipes explain RUN PICTURE ... --out F  draw heat maps over pictures
    python -m recipes export RUN --onnx F              export the net, compared with torch
    python -m recipes app RUN                          try the net in a browser, on this machine
    python -m recipes report RUN [--data DATA]         write the page of a run anew: report.html
    python -m recipes verify RUN                       check that a run's files are whole and agree

A figure stands in the list only where a file in benchmarks/results holds it, as `--seeds` writes it, measured
with the recipe's present values.
"""
import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from statistics import mean, stdev

from cifar_fastai import cli
from cifar_fastai.errors import InputError, UnknownName, report_errors
from cifar_fastai.recipe import Recipe, training_fields

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
            row, same = _parsed(line, path), ("data", "data_fingerprint")
            recipe = Recipe.from_dict(row["settings"])
            if row["judged_on"] == "test" and _fields(recipe) == fields:
                found.setdefault((*(row.get(k) for k in same), recipe.tta), {})[recipe.seed] = row
    return [f"{_of_seeds([r['accuracy'] for r in rows])}{_with_tta(rows)}, n={len(rows)} ({data})"
            for (data, *_), of_seed in found.items() for rows in [list(of_seed.values())]]


def _with_tta(rows: list[dict]) -> str:
    views = [r["accuracy_tta"] for r in rows if "accuracy_tta" in r]
    return f", {_of_seeds(views)} with TTA" if views else ""


def _of_seeds(values: list[float]) -> str:
    return f"{mean(values):.2%}" + (f" ± {100 * stdev(values):.2f} points" if len(values) > 1 else "")


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


def main(argv: list[str] | None = None) -> None:
    "List the recipes, or do what the first word of `argv` says"
    argv = sys.argv[1:] if argv is None else argv
    with report_errors(debug="--debug" in argv):
        if not argv: print(listing())
        elif argv[0] in ("-h", "--help"): print(__doc__.strip())
        elif argv[0] in recipes(): raise _is_recipe(argv[0])
        elif argv[0] not in COMMANDS: raise UnknownName("command of recipes", argv[0], COMMANDS)
        else: COMMANDS[argv[0]](argv[1:])


def _parser(command: str, about: str) -> argparse.ArgumentParser:
    "With errors in one line, as everywhere"
    parser = argparse.ArgumentParser(prog=f"python -m recipes {command}", description=about)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.error = cli.refuse
    return parser


def _train(argv: list[str]) -> None:
    "The recipe in a file, or in the folder of a run, with the flags that every recipe has"
    if argv[:1] in (["-h"], ["--help"]):
        about = "Train the recipe of a run again, or a file of your own. FILE: a run's folder or a .json."
        cli.create_parser("python -m recipes train FILE", about).print_help()
        return
    if not argv or argv[0].startswith("-"):
        raise InputError("python -m recipes train takes a recipe's file first. Give one, such as the "
                         "recipe.json of a run, then the flags.")
    from cifar_fastai.runs import begun, load_recipe
    path = Path(argv[0])
    if not path.exists() and argv[0] in recipes(): raise _is_recipe(argv[0])
    if path.is_dir(): path /= "recipe.json"
    recipe, how = load_recipe(path, name=path.stem), begun(path.parent)
    known = (("--data", how.get("data")), ("--data-split", how.get("data_split")))      # of the run
    kept = [str(v) for flag, value in known if value is not None for v in (flag, value)]
    resumes = any(word.split("=")[0] == "--resume" for word in argv)
    cli.main(recipe, [*([] if resumes else kept), *argv[1:]], prog=f"python -m recipes train {argv[0]}")


def _is_recipe(name: str) -> InputError:
    return InputError(f"{name} is a recipe of this book. Run python -m recipes.{name}, then the flags.")


def _compare(argv: list[str]) -> None:
    parser = _parser("compare", "Tabulate and plot runs side by side.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or one that holds some")
    parser.add_argument("--out", help="folder of the table and figures (default: runs/comparison-<time>)")
    args = parser.parse_args(argv)
    from cifar_fastai.runs import compare_runs
    out = Path(args.out or Path("runs") / f"comparison-{time.strftime('%Y%m%d-%H%M%S')}")
    print(compare_runs(args.runs, out).to_string(index=False))
    print(f"\nfigures and table in {out}")


def _net_parser(command: str, about: str) -> argparse.ArgumentParser:
    parser = _parser(command, about)
    parser.add_argument("run", metavar="RUN", help="a run folder, or its weights.safetensors")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …")
    return parser


def _predict(argv: list[str]) -> None:
    "Exit status 1 where a picture could not be read; the others are predicted"
    parser = _net_parser("predict", "Predict the classes of pictures.")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files, folders, - for standard input")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="so many classes of each (1)")
    kinds = parser.add_mutually_exclusive_group()
    for kind in ("json", "csv"):
        kinds.add_argument(f"--{kind}", action="store_true", help=f"print {kind.upper()}")
    args = parser.parse_args(argv)
    if args.top < 1: raise InputError(f"--top {args.top}: give 1 or more.")
    from cifar_fastai.data import read_picture
    from cifar_fastai.serve import TABLES, Classifier, find_pictures, prediction_rows
    net, names, read, unread = Classifier.load(args.run, args.device), [], [], 0
    for picture in find_pictures(args.pictures):
        try: read.append(read_picture(picture.source, net.size, picture.name))
        except InputError as error:
            print(f"cifar_fastai: {error}", file=sys.stderr)
            unread += 1
        else: names.append(picture.name)
    if read:
        rows = prediction_rows(names, net.probabilities(read), net.classes, args.top)
        print(TABLES["json" if args.json else "csv" if args.csv else "text"](rows))
    if unread: raise SystemExit(1)


def _explain(argv: list[str]) -> None:
    parser = _net_parser("explain", "Draw the heat map of a net over pictures.")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files, folders, - for standard input")
    parser.add_argument("--layer", nargs="+", default=[],
                        help="such as layer3; default: the last stage with detail")
    parser.add_argument("--method", default="gradcam",
                        help="gradcam, hirescam, xgradcam, layercam or gradcam++")
    parser.add_argument("--target", metavar="CLASS", help="class of the map (default: the predicted one)")
    parser.add_argument("--alpha", type=float, default=.5, help="weight of the colours, 0 to 1 (0.5)")
    parser.add_argument("--out", required=True, metavar="FILE.png")
    args = parser.parse_args(argv)
    if not 0 <= args.alpha <= 1: raise InputError(f"--alpha {args.alpha}: give a number from 0 to 1.")
    if Path(args.out).suffix.lower() != ".png": raise InputError(f"--out {args.out}: name a .png file.")
    from cifar_fastai.serve import TABLES, Classifier, explain_pictures, find_pictures
    net = Classifier.load(args.run, args.device)
    rows = explain_pictures(net, find_pictures(args.pictures), args.out, args.layer, args.method, args.target,
                            args.alpha)
    print(TABLES["text"](rows))
    print(args.out)


def _export(argv: list[str]) -> None:
    parser = _net_parser("export", "Export a net, and compare what it gives with torch.")
    parser.add_argument("--onnx", metavar="FILE", help="ONNX; onnxruntime compares it")
    parser.add_argument("--pt2", metavar="FILE", help="what torch.export.load reads")
    parser.add_argument("--normalised", action="store_true", help="the graph takes normalised pictures")
    args = parser.parse_args(argv)
    if not (args.onnx or args.pt2): raise InputError("no file to export to. Give --onnx FILE or --pt2 FILE.")
    from cifar_fastai.serve import Classifier, export_onnx, export_torch
    for path, write in ((args.onnx, export_onnx), (args.pt2, export_torch)):
        if path is None: continue
        off = write(Classifier.load(args.run, "cpu"), path, not args.normalised)
        print(f"{path}: logits within {off:.1e} of torch's")


def _app(argv: list[str]) -> None:
    parser = _net_parser("app", "Try the net of a run in a browser.")
    parser.add_argument("--host", default="127.0.0.1", help="127.0.0.1: this machine alone")
    parser.add_argument("--port", type=int, help="default: the first that is free from 7860 on")
    args = parser.parse_args(argv)
    from cifar_fastai.serve import Classifier, build_app, mistakes_of
    app = build_app(Classifier.load(args.run, args.device), mistakes_of(args.run))
    app.launch(server_name=args.host, server_port=args.port, quiet=True, prevent_thread_lock=True)
    print(f"at {app.local_url}; Ctrl-C ends it", flush=True)
    app.block_thread()


def _report(argv: list[str]) -> None:
    parser = _parser("report", "Write the page of a run anew: report.html in its folder.")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--data", help="its pictures (default: where the run had them from)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …")
    args = parser.parse_args(argv)
    from cifar_fastai.runs import report_again
    print(report_again(args.run, data=args.data, device=args.device))


def _verify(argv: list[str]) -> None:
    "Exit status 1 where something is wrong or missing, 2 where there is no run"
    parser = _parser("verify", "Check that a run's files are whole and agree.")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    run = parser.parse_args(argv).run
    from cifar_fastai.runs import verify_run
    wrong, notes = verify_run(run)
    for line in wrong: print(f"wrong   {line}")
    for line in notes: print(f"note    {line}")
    print(f"{run}: " + (f"{len(wrong)} thing{'s' * (len(wrong) > 1)} wrong" if wrong else "whole"))
    if wrong: raise SystemExit(1)


COMMANDS = {"train": _train, "compare": _compare, "predict": _predict, "explain": _explain, "export": _export,
            "app": _app, "report": _report, "verify": _verify}

if __name__ == "__main__": main()
