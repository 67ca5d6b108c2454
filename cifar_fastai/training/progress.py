"""What is going on: fastai's bars in a notebook, a live bar at a terminal, one display for a whole run there.

    learn.add_cb(WatchProgress())
    with RunDisplay({"range test": 1e5, "training": 3e6}) as display: ...
"""
import sys
import time
from contextlib import contextmanager

from fastai.callback.progress import ProgressCallback
from fastcore.imports import IN_NOTEBOOK
from fastprogress.fastprogress import ConsoleProgressBar, format_time, progress_bar

from .callbacks import fitting, inside_fit

__all__ = ["BACKWARD", "RunDisplay", "WatchProgress", "watched"]

BACKWARD = 3    # a training step costs about three forward passes


def watched() -> bool:
    "Whether somebody watches: in a notebook or at a terminal"
    return IN_NOTEBOOK or sys.stdout.isatty()


class RunDisplay:
    """Two live lines below the log at a terminal: the stage at hand, and the whole run with the time that is
    left. Colours are rich's, which honours NO_COLOR"""

    def __init__(self, work: dict[str, float]):     # stage → forward passes of a picture, in order
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        self.work, self.total, self.position, self.worked = work, sum(work.values()), 0.0, 0.0
        columns = TextColumn("{task.description:14}"), BarColumn(30), TextColumn("{task.fields[note]}")
        self.bars = Progress(*columns, console=Console(highlight=False), transient=True, refresh_per_second=4)
        self.at_hand = self.bars.add_task("", total=None, note="")
        self.whole = self.bars.add_task("whole run", total=self.total, note="")

    def __enter__(self):
        self.bars.start()
        self.started = time.monotonic()
        return self

    def __exit__(self, *_): self.bars.stop()

    @contextmanager
    def stage(self, name: str):
        "A stage without batches to count: figures, maps, the page"
        start = self._start_of(name)
        self.begin(name, None, start)
        yield
        self._advance(start + self.work[name])

    def begin(self, label: str, n: int | None, start: float) -> None:
        "What is at hand is `label`, of `n` batches; what a resumed run skips before `start` is no work"
        self.position = max(self.position, start)
        self.bars.reset(self.at_hand, total=n, description=label, note="")
        self.bars.refresh()                               # a short stage is seen, too

    def show(self, done: int, n: int, position: float, note: str = "") -> None:
        "`done` of `n` batches"
        self.bars.update(self.at_hand, completed=done, note=f"{done}/{n}  {note}")
        self._advance(position)

    def _advance(self, position: float) -> None:
        self.worked += max(0.0, position - self.position)
        self.position = max(self.position, position)
        spent = time.monotonic() - self.started
        left = (self.total - position) * spent / self.worked if self.worked else 0
        known = f", {format_time(left)} left" if left >= 1 and spent > 2 else ""
        note = f"{position / self.total:.0%}  {format_time(spent)} gone{known}"
        self.bars.update(self.whole, completed=position, note=note)

    def _start_of(self, name: str) -> float:
        names = list(self.work)
        return sum(self.work[k] for k in names[:names.index(name)])

    def place_of(self, cb: "WatchProgress") -> tuple[str, float, float]:
        "Of the loop that begins: its name, where in the run it begins, and its work"
        learn = cb.learn
        if cb.of_range_test() is not None: name = "range test"
        else: name = "training" if fitting(learn) else "test set"
        start, work = self._start_of(name), self.work[name]
        if name != "training": return name, start, work
        work, trained = work / learn.n_epoch, BACKWARD * len(learn.dls.train.dataset)
        start += learn.epoch * work
        if learn.training: return f"epoch {learn.epoch + 1}/{learn.n_epoch}", start, min(trained, work)
        return "validation", start + min(trained, work), max(0.0, work - trained)


class _Loop:
    "The line of the loop at hand, as `WatchProgress` uses a bar of fastprogress"
    first_its, last_v, wait_for, comment = 1, None, 1, ""

    def __init__(self, display: RunDisplay, cb: "WatchProgress"):
        test, self.display, self.shown = cb.of_range_test(), display, 0.0
        self.n = len(cb.dl) if test is None else test.num_it
        label, self.start, self.work = display.place_of(cb)
        display.begin(label, self.n, self.start)

    def update(self, done: int) -> None:
        self.display.show(done, self.n, self.start + self.work * min(1.0, done / self.n), self.comment)
        self.last_v, now = done, time.monotonic()
        self.wait_for = max(1, round(self.wait_for * .2 / max(now - self.shown, .01))) if self.shown else 1
        self.shown = now

    def on_iter_end(self): "The next loop takes the line"


class _NoBars:
    "Stands where fastai's master bar is missing: `ShowGraphCallback` draws into it, in notebooks only"
    def __bool__(self): return False
    def update_graph(self, *args, **kwargs): "Nothing to draw on"


class WatchProgress(ProgressCallback):
    """fastai's bars in a notebook; one live bar at a terminal, or a run's `display`; none where the output is
    piped, or on the wish of being `quiet`. The loss is only read when it is shown"""
    name, live, pbar, mbar, display, quiet = "progress", False, None, _NoBars(), None, False

    def before_fit(self):
        self.run = not self.quiet and not inside_fit(self.learn)
        if not self.run: return
        self.live = watched() and (self.create_mbar or self.display is not None)
        if IN_NOTEBOOK: super().before_fit()

    def _launch_pbar(self):
        if IN_NOTEBOOK and self.mbar: super()._launch_pbar()
        elif IN_NOTEBOOK: self._show(progress_bar(self.dl, leave=False))   # no master bar: it only predicts
        elif not self.live: self.pbar = None
        elif self.display is not None: self.pbar = _Loop(self.display, self)
        elif (test := self.of_range_test()) is None: self._show(ConsoleProgressBar(self.dl, leave=False))
        elif self.pbar is None:                               # one for all its passes
            self._show(ConsoleProgressBar(range(test.num_it), leave=False), "lr_find")

    def _show(self, bar, label: str = ""):
        self.pbar, bar.prefix = bar, label
        bar.update(0)

    def of_range_test(self):
        "The callback of the range test that is at work"
        return getattr(self.learn, "lr_finder", None)

    def after_batch(self):
        if self.pbar is None: return
        done, bar = self.iter + 1 if self.of_range_test() is None else self.train_iter, self.pbar
        due = done <= bar.first_its or bar.last_v is None or done >= bar.last_v + getattr(bar, "wait_for", 1)
        if due and self.training and hasattr(self, "smooth_loss"):
            bar.comment = f"{self.smooth_loss.item():.4f}"
        bar.update(done)

    def after_train(self):
        if IN_NOTEBOOK or self.of_range_test() is None: self._end_bar()

    def after_validate(self): self.after_train()

    def _end_bar(self):
        if self.pbar is not None:
            self.pbar.prefix = ""               # it would be left on the line
            self.pbar.on_iter_end()
        self.pbar = None

    def after_fit(self): self.cleanup()

    def cleanup(self):
        "Close the bars"
        self._end_bar()
        super().after_fit()
