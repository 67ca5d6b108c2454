"""One run: data → loaders → Learner → rate → fit → explanation → a folder.
What `python -m recipes.<name>` calls.

    run = train(recipe, data="digits", out="runs/demo")
    run.accuracy, run.folder, run.interp.plot_gradcam(9)
"""
import logging
import time
from dataclasses import dataclass
from math import log2
from pathlib import Path

import torch

from ..checkpoints import Checkpoint, StopOnNonFinite, StopOnSignal
from ..data import ImageData, load_data
from ..errors import InputError, UnknownName
from ..explain import GradCAMCallback, ImageInterpretation
from ..files import read_json, save_atomically, write_json
from ..gradcam import find_layers
from ..loaders import build_augmentation, cifar_dataloaders, subsets, usable_device
from ..machine import describe_device, versions
from ..models import MODELS, model_summary
from ..recipe import Recipe, counted
from ..training import ImageLearner, careful_rate, cifar_learner, explain_rate, optimizer, settled_rate
from ..weights import About, save_weights
from .console import lines_to, plain_failures
from .from_recipe import callbacks_of, peak_factor, regularisers_of, suggestions_of
from .lock import RunLock
from .logs import History, TensorBoardLog
from .report import FoundRate, numbers, write_data, write_interpretation, write_predictions, write_training
from .run_folder import begin, begun, choose_folder, gone_unless_begun, seal, training_fields

__all__ = ["Run", "train"]

log = logging.getLogger("cifar_fastai")


@dataclass(eq=False)
class Run:
    "What a run came to: its folder, the numbers of results.json, the Learner and the interpretation"
    folder: Path
    results: dict
    learn: ImageLearner
    interp: ImageInterpretation

    @property
    def accuracy(self) -> float: return self.results["accuracy"]

    def __repr__(self): return f"Run({self.folder}: accuracy {self.accuracy:.2%})"


def train(
    recipe: Recipe,
    data: ImageData | str | Path = "cifar10",  # pictures, or a source for `load_data`
    out: str | Path | None = None,    # run folder; None: runs/<recipe>/<time>-seed<k>
    *,
    unverified: bool = False,         # read archives whose MD5 is not the official one
    split: float | None = None,       # share of a folder without a test set that tests; None: 0.2
    workers: int | None = None,       # processes that augment; None: chosen by device and cores
    device: str | None = None,        # "cpu", "cuda" …; None: the best there is
    resume: bool = False,             # go on from the newest checkpoint in `out` that verifies
    checkpoint_minutes: float | None = None,  # save within an epoch too, so often
    quiet: bool = False,              # print warnings only
) -> Run:
    """Train `recipe` on `data`, explain the result on the test set and leave it all in a folder.
    Raises: InputError for a wrong input, before training starts; Stopped after a signal."""
    _check_parts(recipe)
    folder = choose_folder(recipe, out, resume)
    with gone_unless_begun(folder), RunLock(folder), plain_failures(folder, recipe.bs), \
         lines_to(folder / "log.txt", quiet), StopOnSignal() as stop:
        started = time.monotonic()
        before = begun(folder) if resume else {}
        split = before.get("data_split") if split is None else split
        device = usable_device(device)
        asked, kept = recipe, _load(recipe, data, unverified, split)
        recipe = _settled(asked, kept)
        learn = _prepare(recipe, asked, kept, workers, device, before)
        learn.add_cb(stop)
        begin(folder, recipe, _decided(data, learn) | {"data_split": split}, resume)
        found = _rate(recipe, learn, folder, resume)
        stop.check()
        write_data(folder, learn.dls)
        save_atomically(folder / "model.txt", model_summary(learn.model, learn.dls.data.size).encode())
        history, board = _fit(recipe, learn, found.chosen, folder, resume, checkpoint_minutes)
        stop.check()
        run = _explain(recipe, learn, found, folder, history)
        stop.check()
        run.results |= {"seconds": round(history.earlier + time.monotonic() - started, 1),
                        "epoch_seconds": history.seconds, "resumed": bool(before)}
        write_json(folder / "results.json", run.results)
        _to_tensorboard(board, folder, learn, found)
        learn.remove_cb(stop)
        seal(folder)
        _announce(run)
        return run


def _check_parts(recipe: Recipe) -> None:
    "What a recipe cannot know when it is made. Raises: InputError with the nearest names"
    if recipe.model not in MODELS: raise UnknownName("model", recipe.model, MODELS)
    optimizer(recipe.opt, recipe.mom)
    build_augmentation(recipe.aug, recipe.size)


def _decided(data, learn) -> dict:
    "What a resumed run takes over: where the data lies, and what was found best on this machine"
    given = not isinstance(data, ImageData)
    named = str(Path(data).resolve() if Path(data).exists() else data) if given else None
    return {"data": named, "data_fingerprint": learn.dls.data.fingerprint, "precision": learn.precision_name,
            "device": describe_device(learn.dls.device)}


def _load(recipe: Recipe, data, unverified: bool, split: float | None) -> ImageData:
    "The pictures, no more of them than the recipe's limit"
    if not isinstance(data, ImageData):
        data = load_data(data, size=recipe.size, unverified=unverified, split=split)
    elif split is not None: raise InputError("split= is for a path: this data is split. Leave it out.")
    return data if recipe.limit is None else data.limit(recipe.limit, recipe.seed)


def _settled(recipe: Recipe, data: ImageData) -> Recipe:
    "The recipe with the batch size and the side of the pictures that it trains with: what recipe.json holds"
    n = len(subsets(data, recipe.valid, recipe.seed)[0])
    return recipe.but(bs=_batch_size(recipe, n), min_steps=recipe.min_steps, size=data.size)


def _prepare(recipe: Recipe, asked: Recipe, kept: ImageData, workers, device, before) -> ImageLearner:
    "Loaders and Learner, with everything checked that can be checked before training"
    dls = cifar_dataloaders(kept, recipe.bs, recipe.aug, recipe.valid, recipe.seed, workers, device=device)
    steps = counted(len(dls.train.dataset) // asked.bs, "step")
    smaller = f" ({asked.bs} would leave {steps} an epoch)" if recipe.bs < asked.bs else ""
    log.info("recipe      %s: %s, %s, batches of %d%s", recipe.name, recipe.model,
             counted(recipe.epochs, "epoch"), recipe.bs, smaller)
    if recipe.size != asked.size: log.info("            size %d, as the data has it", recipe.size)
    for line in recipe.settings(96).splitlines(): log.info("            %s", line)
    log.info("data        %s, mean %s, std %s", repr(kept)[10:-1], _rounded(kept.mean), _rounded(kept.std))
    log.info("device      %s, %d loader workers", describe_device(dls.device), dls.train.fake_l.num_workers)
    learn = cifar_learner(dls, recipe.model, norm=recipe.norm, opt=recipe.opt, mom=recipe.mom, wd=recipe.wd,
                          wd_norm_bias=recipe.wd_norm_bias, smoothing=recipe.smoothing, loss_func=recipe.loss,
                          precision=before.get("precision", recipe.precision), seed=recipe.seed)
    find_layers(learn.model, recipe.cam)
    learn.epoch_table.write = log.info
    log.info("net         %s, %s parameters, %s, channels_last", recipe.model,
             f"{sum(p.numel() for p in learn.model.parameters()):,}", learn.precision_name)
    return learn


def _batch_size(recipe: Recipe, n: int) -> int:
    """The recipe's, or the largest power of two that leaves `min_steps` steps an epoch.
    Raises: InputError where the recipe's must hold and there are fewer pictures"""
    if not recipe.min_steps and recipe.bs > n:
        raise InputError(f"batches of {recipe.bs}, but only {counted(n, 'training picture')}. "
                         f"Give a batch size (--bs) of {n} or less.")
    if not recipe.min_steps: return recipe.bs
    most = max(2, n // recipe.min_steps)
    return recipe.bs if recipe.bs <= most else 2 ** int(log2(most))


def _rounded(values) -> str: return "(" + ", ".join(f"{v:.4f}".lstrip("0") for v in values) + ")"


def _rate(recipe: Recipe, learn: ImageLearner, folder: Path, resume: bool) -> FoundRate:
    "The recipe's rate, or the one that the range test finds; a resumed run keeps what it found"
    if recipe.lr != "find":
        log.info("rate        %g (given)", recipe.lr)
        return FoundRate([], [], {}, float(recipe.lr))
    kept = folder / "checkpoints" / "lr_find.json"
    if resume and kept.exists(): return FoundRate(**read_json(kept))
    steps = len(learn.dls.train)
    its = min(recipe.lr_its, max(60, recipe.epochs * steps))   # no longer than the training
    with learn.added_cbs(regularisers_of(recipe)):
        rates = learn.lr_find(*recipe.lr_range, its, suggest_funcs=suggestions_of(recipe, steps),
                              show_plot=False, mode=recipe.lr_mode, on=recipe.lr_on)
    fell = learn.recorder.fell
    taken = settled_rate(rates, recipe.lr_rule, recipe.lr_range[0]) if fell else careful_rate(recipe.opt)
    chosen = taken / recipe.lr_divide if fell else taken
    whose = {"train": "training", "holdout": "holdout"}[recipe.lr_on]
    said = explain_rate(rates, recipe.lr_rule, taken, fell)
    log.info("rate        %s, from the %s loss alone", said, whose)
    if taken == rates.peak:
        log.info("            the peak is %.2g × where it is lowest", peak_factor(recipe, steps))
    if chosen != taken: log.info("            divided by %g: %.3g", recipe.lr_divide, chosen)
    found = FoundRate(learn.recorder.lrs, [float(v) for v in learn.recorder.losses], rates._asdict(), chosen,
                      recipe.lr_mode, recipe.lr_on)
    write_json(kept, found._asdict())
    return found


def _fit(recipe, learn, rate, folder, resume, checkpoint_minutes) -> tuple[History, TensorBoardLog]:
    history, board = History(folder / "history.csv"), TensorBoardLog(folder / "tensorboard")
    cams = GradCAMCallback(recipe.cam, every=recipe.cam_every, path=folder / "figures" / "gradcam_epochs.png")
    saved = Checkpoint(folder / "checkpoints", training_fields(recipe.as_dict()), checkpoint_minutes,
                       resume=resume)
    learn.fit(recipe.epochs, rate, cbs=[history, board, cams, saved, StopOnNonFinite(),
                                        *callbacks_of(recipe, rate)])
    return history, board


def _explain(recipe, learn, found: FoundRate, folder: Path, history: History) -> Run:
    "Predict the test set once; figures, predictions, weights and numbers from that"
    test = len(learn.dls.loaders) - 1
    views = False if recipe.tta == "none" else recipe.tta
    interp = ImageInterpretation.from_learner(learn, ds_idx=test, tta=views)
    steps = len(learn.dls.train)
    write_training(folder, history=history.rows, lrs=learn.recorder.hps["lr"],
                   moms=learn.recorder.hps.get("mom"), steps_per_epoch=steps,
                   found=found if found.lrs else None)
    write_interpretation(folder, interp, layer=recipe.cam, n=recipe.gallery)
    write_predictions(interp, folder / "predictions.csv")
    data = learn.dls.data
    about = About(recipe.model, recipe.norm, tuple(data.classes), data.size, tuple(data.mean),
                  tuple(data.std))
    save_weights(folder / "weights.safetensors", learn.model, about)
    return Run(folder, _results(recipe, learn, found, interp), learn, interp)


def _results(recipe, learn, found, interp) -> dict:
    data, dls = learn.dls.data, learn.dls
    return {**numbers(interp), "recipe": recipe.name, "recipe_fingerprint": recipe.fingerprint(),
            "lr": found.chosen,
            "epochs": recipe.epochs, "bs": dls.train.bs, "seed": recipe.seed, "tta": recipe.tta,
            "judged_on": "test set", "valid": recipe.valid,
            "parameters": sum(p.numel() for p in learn.model.parameters()), "data": data.source,
            "data_fingerprint": data.fingerprint, "training_pictures": len(dls.train.dataset),
            "device": describe_device(dls.device), "precision": learn.precision_name,
            "workers": dls.train.fake_l.num_workers, "versions": versions(),
            **({"epoch_of_best": learn.epoch_of_best} if recipe.keep == "best" else {})}


def _to_tensorboard(board: TensorBoardLog, folder: Path, learn: ImageLearner, found: FoundRate):
    "The figures, the range test and the graph of the net beside the scalars"
    for path in sorted((folder / "figures").glob("*.png")): board.add_picture(path.stem, path)
    board.add_range_test(found.lrs, found.losses)
    board.add_graph(learn.model, torch.zeros(1, 3, *learn.dls.data.x_train.shape[1:3]))
    board.close()


def _announce(run: Run):
    r = run.results
    tta = f", {r['accuracy_tta']:.2%} with {r['tta']} TTA" if "accuracy_tta" in r else ""
    log.info("test        %.2f %% of %s%s; cross-entropy %.4f, %s", 100 * r["accuracy"],
             counted(r["pictures"], "picture"), tta, r["cross_entropy"], counted(r["mistakes"], "mistake"))
    log.info("took        %.0f s", r["seconds"])
    log.info("folder      %s", run.folder)
