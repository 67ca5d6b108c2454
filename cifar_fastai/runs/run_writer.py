"""Write a run folder while a recipe trains: lock, log lines, signals, checkpoints, results, checksums.

    with open_run(recipe, "runs/demo") as writer:
        writer.begin(learn, "digits", decided)
        fit(recipe, learn, rate, cbs=writer.callbacks())
        run = writer.finish(interp, found)
"""
import csv
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

import torch
from fastai.callback.hook import total_params
from fastcore.basics import noop

from ..checkpoints import Checkpoint, StopOnNonFinite, StopOnSignal
from ..data import ImageData
from ..explain import ImageInterpretation
from ..files import read_json, save_atomically, write_json
from ..gradcam import Evidence, cam_of, warnings_of
from ..machine import describe_device, versions
from ..models import model_summary
from ..page import FeatureRecorder, write_report
from ..processes import agreed, rank, world
from ..recipe import Recipe, counted, training_fields
from ..training import ImageLearner, RunDisplay
from ..weights import About, save_weights
from .console import announce, one_line_errors, show_log, silent_log
from .from_recipe import work_of
from .logs import History, TensorBoardLog
from .report import FoundRate, measure_evidence, numbers
from .run_folder import again, begin, begun, choose_folder, for_all, locked, remove_if_refused, seal

__all__ = ["Run", "RunWriter", "open_run"]

log = logging.getLogger("cifar_fastai")


class Run:
    "What a run came to: its folder, the numbers of results.json, the Learner and the interpretation"

    def __init__(self, folder: Path, results: dict, learn: ImageLearner,
                 interp: ImageInterpretation | None = None):    # None: predicted when it is asked for
        self.folder, self.results, self.learn = folder, results, learn
        if interp is not None: self.interp = interp

    @cached_property
    def interp(self) -> ImageInterpretation:
        "Of the test set"
        return ImageInterpretation.from_learner(self.learn, ds_idx=-1, tta=self.results.get("tta", "none"))

    @property
    def accuracy(self) -> float: return self.results["accuracy"]

    def __repr__(self): return f"Run({self.folder}: accuracy {self.accuracy:.2%})"


@contextmanager
def open_run(
    recipe: Recipe,
    out: str | Path | None = None,   # run folder; None: a new one in ./runs
    resume: bool = False,
    checkpoint_minutes: float | None = None,
    quiet: bool = False,
) -> Iterator["RunWriter"]:
    "Hold the run's folder, show and keep its lines, stop in time after a signal. Raises: InputError"
    folder = agreed(lambda: choose_folder(recipe, out, resume))
    if rank():
        with silent_log(), one_line_errors(folder, recipe.bs), StopOnSignal() as stop:
            yield Follower(recipe, folder, stop, resume, checkpoint_minutes, None, quiet=True)
        return
    with remove_if_refused(folder), locked(folder), one_line_errors(folder, recipe.bs), \
         show_log(folder / "log.txt", quiet), StopOnSignal() as stop, ExitStack() as shown:
        yield RunWriter(recipe, folder, stop, resume, checkpoint_minutes, shown, quiet)


class RunWriter:
    "The folder of a run while the recipe is trained"

    def __init__(self, asked: Recipe, folder: Path, stop: StopOnSignal, resume: bool, checkpoint_minutes,
                 shown: ExitStack, quiet: bool):     # `shown` closes the live display
        self.asked, self.folder, self.stop, self.resume = asked, folder, stop, resume
        self.started, self.checkpoint_minutes = time.monotonic(), checkpoint_minutes
        self.before, self.evidence = agreed(lambda: begun(folder) if resume else {}), {}
        self.shown, self.quiet, self.display = shown, quiet, None

    def begin(self, learn: ImageLearner, data: ImageData | str | Path, decided: dict) -> None:
        "Write down what is decided before training. Raises: InputError where a resumed run had other values"
        self.learn = learn
        cam_of(learn.model, learn.recipe.explain.layer)        # refuses a layer that is not there
        self._say_start()
        learn.epoch_table.write = log.info
        self._show_progress()
        learn.add_cb(self.stop)
        named = None
        if not isinstance(data, ImageData): named = str(Path(data).resolve() if Path(data).exists() else data)
        decided = decided | {"data": named, "data_fingerprint": learn.dls.data.fingerprint,
                             "precision": learn.precision_name, "device": describe_device(learn.dls.device),
                             "processes": world()}
        begin(self.folder, learn.recipe, decided, self.resume)
        save_atomically(self.folder / "model.txt", model_summary(learn.model, learn.dls.data.size))

    def _show_progress(self) -> None:
        "A live display of the whole run, where somebody watches at a terminal"
        if (bar := getattr(self.learn, "progress", None)) is None: return
        self.shown.callback(vars(bar).update, display=None, quiet=bar.quiet)     # as it was, after the run
        bar.quiet = self.quiet
        if self.quiet or not sys.stdout.isatty(): return
        work = work_of(self.learn.recipe, self.learn.dls, known_rate=self.rate_found() is not None)
        self.display = bar.display = self.shown.enter_context(RunDisplay(work))

    def _stage(self, name: str): return self.display.stage(name) if self.display else nullcontext()

    def _say_start(self) -> None:
        "The recipe as it is trained, the data, the device and the net"
        asked, recipe, dls = self.asked, self.learn.recipe, self.learn.dls
        steps = counted(len(dls.train.dataset) // asked.bs, "step")
        smaller = f" ({asked.bs} would leave {steps} an epoch)" if recipe.bs < asked.bs else ""
        log.info("recipe      %s: %s, %s, batches of %d%s", recipe.name, recipe.model,
                 counted(recipe.epochs, "epoch"), recipe.bs, smaller)
        if recipe.size != asked.size: log.info("            size %d, as the data has it", recipe.size)
        for line in recipe.settings(96).splitlines(): log.info("            %s", line)
        log.info("data        %s, mean %s, std %s", repr(dls.data)[10:-1], _rounded(dls.data.mean),
                 _rounded(dls.data.std))
        log.info("device      %s, %d loader workers%s", describe_device(dls.device),
                 dls.train.fake_l.num_workers, f", {world()} processes" if world() > 1 else "")
        log.info("net         %s, %s parameters, %s, channels_last", recipe.model,
                 f"{total_params(self.learn.model)[0]:,}", self.learn.precision_name)

    def rate_found(self) -> FoundRate | None:
        "What the range test of the run that is resumed found"
        return agreed(lambda: found_rate(self.folder) if self.resume else None)

    def keep_rate(self, found: FoundRate) -> None:
        "Save what a range test found. Raises: Stopped after a signal"
        if found.lrs: write_json(self.folder / "checkpoints" / "lr_find.json", found._asdict())
        self.stop.check()

    def callbacks(self) -> list:
        "Curves as CSV and in TensorBoard, checkpoints, and the end of a fit whose loss is not finite"
        self.history = History(self.folder / "history.csv")
        self.board = TensorBoardLog(self.folder / "tensorboard")
        return [self.history, self.board, *self._of_every_process()]

    def _of_every_process(self) -> list:
        fields = for_all(training_fields(self.learn.recipe.as_dict()), world())
        saved = Checkpoint(self.folder / "checkpoints", fields, self.checkpoint_minutes, resume=self.resume)
        self.features = FeatureRecorder()
        return [saved, StopOnNonFinite(), self.features]

    def recorded(self) -> dict:
        "What the fit recorded, as `write_training` takes it. Raises: Stopped after a signal"
        self.stop.check()
        hps = self.learn.recorder.hps
        return {"history": self.history.rows, "lrs": hps["lr"], "moms": hps.get("mom"),
                "steps_per_epoch": len(self.learn.dls.train)}

    def measure_maps(self, interp: ImageInterpretation) -> dict[str, list[Evidence]]:
        "Insertion and deletion of the maps by figure, for results.json and the captions; said in the log"
        recipe, trained = self.learn.recipe, len(self.learn.dls.train.dataset)
        with self._stage("maps"):
            self.evidence = measure_evidence(interp, recipe.explain.layer, recipe.epochs * trained)
        shown, *others = self.evidence.values() or [[]]
        for e in [e for e in shown if e.better]: log.info("Grad-CAM    %s", e.caption)
        for line in warnings_of(shown, sum(others, [])): log.warning("Grad-CAM    %s", line)
        return self.evidence

    def finish(self, interp: ImageInterpretation, found: FoundRate) -> Run:
        "Predictions, weights, results and TensorBoard's pictures; then the seal"
        folder, learn, recipe, data = self.folder, self.learn, self.learn.recipe, self.learn.dls.data
        interp.to_csv(folder / "predictions.csv")
        about = About(recipe.model, recipe.build.norm, tuple(data.classes), data.size, tuple(data.mean),
                      tuple(data.std))
        save_weights(folder / "weights.safetensors", learn.model, about)
        self.stop.check()
        run = Run(folder, self._results(interp, found), learn, interp)
        write_json(folder / "results.json", run.results)
        with self._stage("page"):
            write_page(run, self.history.rows, found, self.recorded()["lrs"], self.features.features)
        self._to_tensorboard(found)
        learn.remove_cb(self.stop)
        seal(folder)
        self.shown.close()                               # the table stands where the display was
        announce(run.results, folder, in_table=self.display is not None)
        return run

    def _results(self, interp, found) -> dict:
        learn, recipe, data, dls = self.learn, self.learn.recipe, self.learn.dls.data, self.learn.dls
        return {**numbers(interp), "gradcam": [e.as_dict() for e in sum(self.evidence.values(), [])],
                "recipe": recipe.name, "recipe_fingerprint": recipe.fingerprint(),
                "lr": found.chosen, "epochs": recipe.epochs, "bs": dls.train.bs, "seed": recipe.seed,
                "tta": recipe.tta, "judged_on": "test set", "valid": recipe.valid,
                "parameters": total_params(learn.model)[0], "data": data.source,
                "data_fingerprint": data.fingerprint, "training_pictures": len(dls.train.dataset),
                "device": describe_device(dls.device), "precision": learn.precision_name,
                "workers": dls.train.fake_l.num_workers, "processes": world(), "versions": versions(),
                **({"epoch_of_best": learn.epoch_of_best} if recipe.keep.name == "best" else {}),
                "seconds": round(self.history.earlier + time.monotonic() - self.started, 1),
                "epoch_seconds": self.history.seconds, "resumed": bool(self.before)}

    def _to_tensorboard(self, found: FoundRate) -> None:
        "The figures, the range test and the graph of the net beside the scalars"
        board, data = self.board, self.learn.dls.data
        for path in sorted((self.folder / "figures").glob("*.png")): board.add_picture(path.stem, path)
        board.add_range_test(found.lrs, found.losses)
        board.add_graph(self.learn.model, torch.zeros(1, 3, *data.x_train.shape[1:3]))
        board.close()


class Follower(RunWriter):
    "Of a run by several processes, all but the first: they train and predict as it does, and write nothing"

    def begin(self, learn, data, decided) -> None:
        self.learn, learn.epoch_table.write = learn, noop
        learn.add_cb(self.stop)

    def keep_rate(self, found: FoundRate) -> None: self.stop.check()
    def callbacks(self) -> list: return self._of_every_process()


def write_page(
    run: Run,
    history: list[dict],          # a row an epoch
    found: FoundRate | None,      # of the range test
    lrs: Sequence[float] = (),    # of each step; none: the last of each epoch
    features=None,                # of the training pictures, if the last epoch left them
) -> Path:
    "report.html in the folder of `run`"
    r = run.results
    return write_report(run.folder, run.interp, r, history=history, found=found, command=again(run.folder, r),
                        lrs=lrs or [row["lr"] for row in history if row.get("lr")], features=features,
                        layer=run.learn.recipe.explain.layer)


def found_rate(folder: Path) -> FoundRate | None:
    "What the range test of a run found; None where its rate was given"
    path = folder / "checkpoints" / "lr_find.json"
    return FoundRate(**read_json(path)) if path.exists() else None


def read_history(folder: Path) -> list[dict]:
    "The rows of history.csv; a cell that is empty is None"
    with open(folder / "history.csv", newline="") as file:
        return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


def _rounded(values) -> str: return "(" + ", ".join(f"{v:.4f}".lstrip("0") for v in values) + ")"
