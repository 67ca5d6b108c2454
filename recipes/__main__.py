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
"""
import argparse
import sys
import time
from pathlib import Path

from cifar_fastai import cli
from cifar_fastai.errors import InputError, UnknownName, report_errors

from .listing import listing, recipes


def main(argv: list[str] | None = None) -> None:
    "List the recipes, or do what the first word of `argv` says"
    argv = sys.argv[1:] if argv is None else argv
    with report_errors(debug="--debug" in argv):
        if not argv: print(listing())
        elif argv[0] in ("-h", "--help"): print(__doc__.strip())
        elif argv[0] in COMMANDS: COMMANDS[argv[0]](argv[1:])
        elif argv[0] in recipes(): raise _is_recipe(argv[0])
        else: raise UnknownName("command of recipes", argv[0], COMMANDS)


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
    recipe = load_recipe(path, name=path.stem)
    cli.main(recipe, argv[1:], prog=f"python -m recipes train {argv[0]}", before=begun(path.parent))


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
        if Path(path).is_dir(): raise InputError(f"{path} is a folder. Give a file.")
        off = write(Classifier.load(args.run, "cpu"), path, not args.normalised)
        print(f"{path}: logits within {off:.1e} of torch's")


def _app(argv: list[str]) -> None:
    parser = _net_parser("app", "Try the net of a run in a browser.")
    parser.add_argument("--host", default="127.0.0.1", help="127.0.0.1: this machine alone")
    parser.add_argument("--port", type=int, help="default: the first that is free from 7860 on")
    args = parser.parse_args(argv)
    from cifar_fastai.serve import Classifier, build_app, mistakes_of
    app = build_app(Classifier.load(args.run, args.device), mistakes_of(args.run))
    try: app.launch(server_name=args.host, server_port=args.port, quiet=True, prevent_thread_lock=True)
    except OSError as e:
        said = str(e).rstrip(". ")
        raise InputError(f"the app cannot listen: {said}. Give another --port or --host.") from e
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
