"""Small fastai callbacks, each the size of its idea. Every one works on a stock Learner too.

    learn.fit_one_cycle(5, 0.1, cbs=[Precision("bf16"), GradCAMCallback("layer3")])
"""
import sys

import numpy as np
import torch
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.callback.progress import ProgressCallback
from fastai.learner import Recorder
from fastcore.imports import IN_NOTEBOOK
from fastprogress.fastprogress import ConsoleProgressBar

from .errors import InputError
from .gradcam import GradCAM

__all__ = ["EpochSeed", "EpochTable", "GradCAMCallback", "WatchProgress"]


def fitting(learn) -> bool:
    """Whether the loop that begins trains for good: no `lr_find`, no `validate`, no `get_preds` and, if the
    Learner is ours, no `tta`"""
    if hasattr(learn, "lr_finder"): return False
    return vars(learn).get("fitting", not (learn.lock.locked() or hasattr(learn, "gather_preds")))


class EpochSeed(Callback):
    """Tell the loader which epoch comes, and seed torch's generator (dropout, mixup) from (seed, epoch,
    batch), so that an epoch does not depend on what ran before. A second fit counts on from the first."""
    order, state, counts = TrainEvalCallback.order + 1, None, False

    def __init__(self, seed: int = 0): self.seed, self.done = seed, 0

    def before_fit(self):
        self.state, self.counts = torch.random.get_rng_state(), fitting(self.learn)

    def before_validate(self):
        "`tta` shows other views each time, and the same ones again when it is called again"
        if hasattr(self.dl, "set_epoch"): self.dl.set_epoch(self.learn.epoch)

    def before_train(self):
        self.first = getattr(self.dl, "skip", 0)
        if hasattr(self.dl, "set_epoch"): self.dl.set_epoch(self.done + self.epoch, self.first)

    def before_batch(self):
        if not self.training: return
        key = np.random.SeedSequence((self.seed, self.done + self.epoch, self.first + self.iter))
        torch.manual_seed(int(key.generate_state(1)[0]))

    def after_fit(self):
        if self.counts: self.done += self.n_epoch
        self.cleanup()

    def cleanup(self):
        "Give the generator back as it was before the fit"
        if self.state is not None: torch.random.set_rng_state(self.state)
        self.state = None

    def state_dict(self): return {"done": self.done}
    def load_state_dict(self, state): self.done = state["done"]


class EpochTable(Callback):
    "One line an epoch: losses, accuracy, highest rate, time; in a notebook fastai's own table stands there"
    order, remove_on_fetch = Recorder.order + 1, True

    def __init__(self, write=print): self.write = write

    def before_fit(self):
        self.run = fitting(self.learn) and not IN_NOTEBOOK and self.learn.logger is print
        if self.run: self.learn.logger = _quiet   # of the Recorder, whose row this is
        head = (f"{'epoch':>8}  {'train loss':>10}  {'valid loss':>10}  {'accuracy':>8}  {'rate':>8}  "
                f"{'time':>6}")
        if self.run: self.write(head)

    def after_epoch(self):
        rec = self.recorder
        row = dict(zip(rec.metric_names[1:-1], rec.log[1:-1]))
        rate = max(rec.lrs[-len(self.dls.train):], default=0)
        cell = lambda key, form: format(row[key], form) if row.get(key) is not None else "-"
        self.write("  ".join([f"{f'{self.epoch + 1}/{self.n_epoch}':>8}", f"{cell('train_loss', '.4f'):>10}",
                              f"{cell('valid_loss', '.4f'):>10}", f"{cell('accuracy', '.2%'):>8}",
                              f"{rate:>8.2g}", f"{rec.log[-1]:>6}"]))


    def after_fit(self): self.cleanup()

    def cleanup(self):
        "Give the logger back"
        if self.learn.logger is _quiet: self.learn.logger = print


def _quiet(*_): "In the place of `print`"


class WatchProgress(ProgressCallback):
    """fastai's bars in a notebook; one live bar at a terminal; none where the output is piped.
    The loss is only read when it is shown"""
    name, live, pbar = "progress", False, None

    @staticmethod
    def wanted() -> bool:
        "Whether somebody watches: in a notebook or at a terminal"
        return IN_NOTEBOOK or sys.stdout.isatty()
    def before_fit(self):
        self.live = self.create_mbar and self.wanted()
        if IN_NOTEBOOK: super().before_fit()

    def _launch_pbar(self):
        if IN_NOTEBOOK: super()._launch_pbar()
        else: self.pbar = ConsoleProgressBar(range(len(self.dl)), leave=False) if self.live else None
        if self.live and not IN_NOTEBOOK: self.pbar.update(0)

    def after_batch(self):
        if self.pbar is None: return
        done, bar = self.iter + 1, self.pbar
        due = done <= bar.first_its or bar.last_v is None or done >= bar.last_v + getattr(bar, "wait_for", 1)
        if due and self.training and hasattr(self, "smooth_loss"):
            bar.comment = f"{self.smooth_loss.item():.4f}"
        bar.update(done)

    def after_train(self): self._end_bar()
    def after_validate(self): self._end_bar()

    def _end_bar(self):
        if self.pbar is not None: self.pbar.on_iter_end()
        self.pbar = None

    def after_fit(self): self.cleanup()

    def cleanup(self):
        "Close the bars"
        self._end_bar()
        super().after_fit()


class GradCAMCallback(Callback):
    """Grad-CAM maps of the same pictures every so many epochs and at the end of an ordinary fit, from one
    more forward pass each time. `maps[epoch]` is (n,H,W) in 0…1 (a dict by layer for several), `strip()` the
    figure. Nothing of it stays in the model."""
    order, remove_on_fetch = Recorder.order + 2, True

    def __init__(
        self,
        layer="layer3",            # name, regular expression, module, or a list: see `gradcam.find_layers`
        every: int = 5,            # epochs from one set of maps to the next
        n: int = 8,                # pictures: the first of the validation set, a class each as far as they go
        items=None,                # positions in the validation set instead
        method: str = "gradcam",
        target=None,               # None: predicted class, "true", or a class
        path=None,                 # a PNG that is written anew with each set
    ):
        if every < 1: raise InputError(f"GradCAMCallback: every={every}. Give a number of epochs, 1 or more.")
        self.layer, self.every, self.n, self.chosen = layer, every, n, items
        self.method, self.target, self.path, self.maps, self.said = method, target, path, {}, {}

    def before_fit(self):
        self.run = fitting(self.learn)
        if not self.run: return
        self.cam = GradCAM(self.model, self.layer)   # an unknown layer is named here, before training
        self.maps, self.said = {}, {}
        dl = self.dls.valid
        idxs = _one_a_class(dl.dataset, self.n) if self.chosen is None else list(self.chosen)
        batch = dl.new(shuffle=False, drop_last=False, bs=len(idxs), num_workers=0, get_idxs=_Always(idxs),
                       n=len(idxs)).one_batch()
        self.xs, self.ys = (t.as_subclass(torch.Tensor) for t in batch[:2])
        self.shown = dl.decode(batch)[0]

    def after_epoch(self):
        if (self.epoch + 1) % self.every and self.epoch + 1 < self.n_epoch: return
        out = self.cam(self.xs, self.target, y=self.ys, method=self.method)
        several = isinstance(out.maps, dict)
        self.maps[self.epoch + 1] = {k: v.cpu() for k, v in out.maps.items()} if several else out.maps.cpu()
        self.said[self.epoch + 1] = out.target.cpu()
        if self.path is not None: self.save(self.path)

    def strip(self):
        "A row of maps for each set of them, over the pictures, with the class that each map is for"
        from .figures import Tile, as_picture, overlay, show_tiles
        rows = [[Tile(as_picture(p), str(self.dls.vocab[int(y)])) for p, y in zip(self.shown, self.ys)]]
        for epoch, maps in self.maps.items():
            for name, ms in (maps.items() if isinstance(maps, dict) else [("", maps)]):
                titles = [str(self.dls.vocab[int(k)]) for k in self.said[epoch]]
                titles[0] = f"epoch {epoch} {name}\n{titles[0]}"
                rows.append([Tile(overlay(as_picture(p), m), t) for p, m, t in zip(self.shown, ms, titles)])
        return show_tiles([[t] for row in rows for t in row], ncols=len(self.ys), size=1.0, fontsize=7)

    def save(self, path):
        "Write `strip` to `path`"
        from .figures import offscreen, save_figure
        with offscreen(): save_figure(self.strip(), path)

    def state_dict(self): return {"maps": self.maps, "said": self.said}
    def load_state_dict(self, state): self.maps, self.said = state["maps"], state["said"]


class _Always:
    def __init__(self, idxs): self.idxs = idxs
    def __call__(self): return self.idxs


def _one_a_class(dataset, n: int) -> list[int]:
    "Positions of `n` items, the first of each class, then the second …"
    order, seen = [], {}
    for i in range(len(dataset)):
        c = int(dataset.tls[-1][i])
        seen[c] = seen.get(c, 0) + 1
        order.append((seen[c], c, i))
        if seen[c] > n or i > 200 * n: break
    return [i for _, _, i in sorted(order)[:n]]
