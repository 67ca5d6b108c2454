"""The flags that every recipe shares. `cli.main(recipe)` is the last line of a recipe's module.

Imports nothing heavy, so that `--help` is there at once; fastai comes when a run starts.
"""
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastcore.script import anno_parser

from .errors import InputError, UnknownName, report_errors
from .recipe import Recipe, flat

__all__ = ["create_parser", "main", "parse", "refuse"]

_FOLDER = {"nargs": "?", "const": "newest", "metavar": "FOLDER"}


def flags(
    data: str = None,             # cifar10 (default), cifar100, digits, an archive, a folder, a .zip of one
    data_split: float = None,     # share of a folder without a test set that tests (0.2)
    unverified: bool = False,     # read an archive whose MD5 is not the official one
    epochs: int = None,           # passes over the training pictures
    bs: int = None,               # pictures a batch; given here it holds, whatever the data
    accumulate: int = None,       # batches whose gradients make one step
    lr: str = None,               # peak rate: a number, or find
    scale_lr: str = None,         # linear or sqrt: a given rate grows with the batches of a step
    lr_its: int = None,           # batches of the range test that finds it
    norm: str = None,             # bn, or gn (group norm of one group, a layer norm) throughout
    seed: int = None,             # of first weights, order, augmentation, limit and holdout
    seeds: Annotated[int, {"nargs": "+", "metavar": "K"}] = None,  # run these seeds in turn, give mean and sd
    limit: int = None,            # train on this many pictures only
    size: int = None,             # side of the pictures, pixels: others are resized
    valid: str = None,            # what is watched while training: test (nothing is chosen by it) or holdout
    workers: int = None,          # processes that augment
    device: str = None,           # cpu, cuda, cuda:1 …
    precision: str = None,        # auto (by device), fp32, bf16 or fp16
    compile: bool = False,        # train through torch.compile
    cam_layer: str = None,        # layer of the Grad-CAM maps, such as layer4 or layer4+layer2
    gallery: int = None,          # misclassified pictures that are shown
    summary: bool = False,        # print the settings and the net, layer by layer, instead of training
    checkpoint_minutes: float = None,  # also save within an epoch, every so many minutes
    out: str = None,              # run folder
    resume: Annotated[str, _FOLDER] = None,  # go on with the run in FOLDER, --out or the newest
    quiet: bool = False,          # print warnings and errors only
    debug: bool = False,          # show the traceback of an error
): pass


def parse(recipe: Recipe, argv: list[str], prog: str | None = None):
    "The values of the flags in `argv`. Raises: InputError for an unknown flag or a value of the wrong kind"
    about = f"Train the recipe {recipe.name}: {recipe.describe()}."
    parser = create_parser(prog or f"python -m recipes.{recipe.name}", about)
    args, rest = parser.parse_known_args(argv)
    known = [o for a in parser._actions for o in a.option_strings if o not in ("--pdb", "--xtra")]
    if rest: raise UnknownName("flag", rest[0].split("=")[0], known)
    return args


def create_parser(prog: str, description: str):
    "The parser of the flags that every recipe has. Raises: InputError for a value of the wrong kind"
    parser = anno_parser(flags, prog=prog)
    parser.error = refuse
    parser.allow_abbrev, parser.description = False, description
    return parser


def refuse(message: str):
    "An argparse error in one line: argparse's own prints all flags. Raises: InputError"
    raise InputError(f"{message}. See --help.")


def main(
    recipe: Recipe,
    argv: list[str] | None = None,   # None: those of the process
    prog: str | None = None,         # the command that --help shows; None: the recipe's module
    before: dict | None = None,      # how a run that is trained again was begun: its data, split …
) -> None:
    "Run `recipe` with the flags in `argv`; the process ends with 2 for a wrong input, 130 or 143 by a signal"
    argv = sys.argv[1:] if argv is None else argv
    with report_errors(debug="--debug" in argv):
        args = parse(recipe, argv, prog)
        changes = {"epochs": args.epochs, "bs": args.bs, "lr": _rate(args.lr), "seed": args.seed,
                   "limit": args.limit, "size": args.size, "valid": args.valid, "precision": args.precision,
                   "build.norm": args.norm, "min_steps": None if args.bs is None else 0,
                   "lr.num_it": args.lr_its, "opt.accumulate": args.accumulate,
                   "explain.layer": args.cam_layer, "explain.gallery": args.gallery}
        given = {k: v for k, v in changes.items() if v is not None}
        if args.summary:
            _summarise(recipe.but(**given), args.data)
            return
        out, resume, kept, how = _of_first(lambda: _begun(recipe, changes, args), args.device)
        if before and not how:        # trained again: what was said of other data or another rate is not
            other = ["data_split", "unverified"] * bool(args.data) + ["scale_lr"] * bool(args.lr)
            how = {k: v for k, v in before.items() if k not in other}
        args.data = args.data or how.get("data") or "cifar10"
        for flag in ("data_split", "scale_lr"):
            if getattr(args, flag) is None: setattr(args, flag, how.get(flag))
        args.compile = args.compile or how.get("compiled", False)
        args.unverified = args.unverified or how.get("unverified", False)
        _run(recipe.but(**kept | given), args, out, resume)


def _summarise(recipe: Recipe, data: str | None) -> None:
    "The settings and the net of `recipe`, of a hundred classes for cifar100 and of ten for other data"
    from .models import create_model, model_summary
    print(recipe.settings())
    net = create_model(recipe.model, 100 if data == "cifar100" else 10, norm=recipe.build.norm)
    print(model_summary(net, recipe.size))


def _rate(lr: str | None) -> float | str | None:
    try: return lr if lr in (None, "find") else float(lr)
    except ValueError:
        raise InputError(f"--lr {lr}: neither a number nor find. Give a rate such as 0.1.") from None


def _run(recipe: Recipe, args, out, resume: bool) -> None:
    if args.seeds and args.seed is not None:
        raise InputError("both --seed and --seeds were given. Give one of them.")
    if args.seeds and args.resume == "newest" and args.out is None:
        raise InputError("--resume with --seeds takes the folder that holds them. Give it: --resume FOLDER.")
    _bring(args.data, recipe.size, args)
    from .runs import train, train_seeds
    common = {"unverified": args.unverified, "workers": args.workers, "device": args.device,
              "split": args.data_split, "quiet": args.quiet, "scale_lr": args.scale_lr,
              "compiled": args.compile, "checkpoint_minutes": args.checkpoint_minutes}
    if args.seeds: train_seeds(recipe, args.data, args.seeds, out, resume=resume, **common)
    else: train(recipe, args.data, out, resume=resume, **common)


def _bring(source: str, size: int, args) -> None:
    "Fetch or refuse data that is not here, before the seconds that fastai takes to be imported"
    if source == "digits": return
    from . import data
    if source in data.NAMES: here = os.environ.get(f"{source.upper()}_DIR") or data.already_here(source)
    else: here = os.path.exists(os.path.expanduser(source))
    if here: return
    from .runs import show_log
    with show_log(quiet=args.quiet): data.load_data(source, size=size, unverified=args.unverified)


def _resumed(recipe: Recipe, args) -> tuple[str | None, bool]:
    "The run folder and whether to resume it"
    if args.resume is None: return args.out, False
    if args.resume == "newest" and args.out is not None: return args.out, True     # may still be to be made
    from .runs import newest_run
    folder = newest_run(recipe) if args.resume == "newest" else Path(args.resume)
    if folder is None:
        raise InputError(f"no run to resume in runs/{recipe.name}. Give its folder: --resume FOLDER.")
    if not folder.exists():
        raise InputError(f"no run to resume: {folder} does not exist. Give the folder of a run.")
    return str(folder), True


def _begun(recipe: Recipe, flags, args) -> tuple[str | None, bool, dict, dict]:
    """The run folder; of a run to resume (of seeds, the first that was begun): that it is, what its flags
    were and how it was begun. A flag that is given again must say the same"""
    out, resume = _resumed(recipe, args)
    if not resume: return out, resume, {}, {}
    from .runs import begun, saved_recipe
    if args.seeds:
        return out, resume, {}, next(filter(None, (begun(Path(out, f"seed{k}")) for k in args.seeds)), {})
    if not Path(out, "recipe.json").exists(): return out, resume, {}, {}
    saved = saved_recipe(Path(out))
    known = flat(saved) | saved
    kept = {k: known[k] for k in ("explain", *flags) if k in known and k != "lr.num_it"}    # `lr` has that
    return out, resume, kept, begun(Path(out))


def _of_first(find: Callable, device: str | None):
    "What `find()` gives the first of several processes: others may be on hosts without the run's folder"
    if "WORLD_SIZE" not in os.environ: return find()
    from .processes import agreed, join
    join(device)
    return agreed(find)
