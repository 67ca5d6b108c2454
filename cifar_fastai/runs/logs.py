"""Callbacks that write history.csv and TensorBoard logs; both continue after a resume.

    board = TensorBoardLog("runs/demo/tensorboard")
    learn.fit_one_cycle(20, 0.1, cbs=[History("runs/demo/history.csv"), board])
"""
import csv
import io
import logging
import time
import warnings
from copy import deepcopy
from numbers import Real
from pathlib import Path

import torch
from fastai.callback.core import Callback
from fastai.learner import Recorder

from ..files import save_atomically
from ..training import epoch_row, fitting

__all__ = ["History", "TensorBoardLog"]

log = logging.getLogger("cifar_fastai")


class History(Callback):
    "One row an epoch in a CSV file that is always whole: losses, metrics, the last rate and momentum"
    order, remove_on_fetch = Recorder.order + 3, True

    def __init__(self, path: str | Path):
        self.path, self.rows, self.seconds, self.earlier, self.started = Path(path), [], [], 0, None

    def before_fit(self):
        self.run = fitting(self.learn)
        if self.run: self.rows, self.seconds, self.earlier = [], [], 0

    def before_epoch(self): self.started = time.monotonic()

    def after_epoch(self):
        hyper, begun, self.started = self.opt.hypers[-1], self.started, None      # None: it was passed over
        row = {"epoch": self.epoch + 1, **(_numbers(self.recorder) if begun else {})}
        self.rows.append(row | {"lr": hyper["lr"], "mom": hyper.get("mom")})
        self.seconds.append(time.monotonic() - begun if begun else 0.0)
        out = io.StringIO()
        names = dict.fromkeys(k for row in sorted(self.rows, key=len, reverse=True) for k in row)
        table = csv.DictWriter(out, list(names), lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        save_atomically(self.path, out.getvalue())

    def state_dict(self):
        begun = 0 if self.started is None else time.monotonic() - self.started     # of the epoch at hand
        return {"rows": self.rows, "seconds": self.seconds, "begun": begun}

    def load_state_dict(self, state):
        self.rows, self.seconds, begun = list(state["rows"]), list(state["seconds"]), state.get("begun", 0)
        self.started, self.earlier = time.monotonic() - begun, sum(self.seconds) + begun    # before


def _numbers(recorder) -> dict[str, float]:
    "Of the epoch: no value where nothing was measured, or of a metric that gives text"
    return {k: float(v) for k, v in epoch_row(recorder).items() if isinstance(v, Real)}


class TensorBoardLog(Callback):
    """Scalars of each batch (loss, rate, momentum) and each epoch (losses, accuracy), and figures.
    All steps are batches: so a resumed run can purge what was written after its checkpoint"""
    order, remove_on_fetch = Recorder.order + 4, True

    def __init__(self, folder: str | Path):
        self.folder, self.writer, self.waiting, self.step = Path(folder), None, [], 0

    def before_fit(self):
        self.run = fitting(self.learn)
        if self.run: self.waiting, self.step = [], 0

    def _open(self):
        from torch.utils.tensorboard import SummaryWriter
        first = self.waiting[0][0] if self.waiting else self.step + 1
        self.writer = SummaryWriter(str(self.folder), purge_step=first)

    def after_batch(self):
        if not self.training: return
        hyper, self.step = self.opt.hypers[-1], self.train_iter
        self.waiting.append((self.step, self.learn.loss.detach(), hyper["lr"], hyper.get("mom")))
        if self.writer is None: self._open()

    def after_train(self):
        "Fetch the epoch's losses from the device at once"
        if not self.waiting: return
        if self.writer is None: self._open()
        steps, losses, rates, moms = zip(*self.waiting)
        losses = [v.to(losses[-1].device) for v in losses]      # those of before a stop are on the CPU
        for step, loss, lr, mom in zip(steps, torch.stack(losses).float().cpu().tolist(), rates, moms):
            self.writer.add_scalar("train/loss", loss, step)
            self.writer.add_scalar("train/lr", lr, step)
            if mom is not None: self.writer.add_scalar("train/momentum", mom, step)
        self.waiting = []

    def after_epoch(self):
        if self.writer is None: self._open()
        for name, value in _numbers(self.recorder).items():
            self.writer.add_scalar(f"epoch/{name}", value, self.step)
        self.writer.flush()

    def add_graph(self, model, x):
        "The net's graph, traced on the CPU from a copy in fp32; a net that cannot be traced is passed over"
        if self.writer is None: self._open()
        net, x = deepcopy(model).cpu().float().eval(), x.as_subclass(torch.Tensor).cpu().float()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")               # torch.jit is deprecated, and TensorBoard needs it
            try: self.writer.add_graph(net, x)
            except RuntimeError as error:
                log.warning("tensorboard has no graph of this net: %s", str(error).splitlines()[0])

    def add_range_test(self, lrs, losses):
        "The loss at each rate of a range test, by the number of its batch: a folder, and a count, of its own"
        if not lrs: return
        from torch.utils.tensorboard import SummaryWriter
        with SummaryWriter(str(self.folder / "range_test"), purge_step=0) as writer:
            for step, (lr, loss) in enumerate(zip(lrs, losses)):
                writer.add_scalar("range_test/lr", lr, step)
                writer.add_scalar("range_test/loss", loss, step)

    def state_dict(self): return {"waiting": self.waiting, "step": self.step}
    def load_state_dict(self, state): self.waiting, self.step = list(state["waiting"]), state["step"]

    def add_picture(self, name: str, path: Path):
        "The PNG at `path` under `name`, one step past the last batch"
        import numpy as np
        from PIL import Image
        if self.writer is None: self._open()
        with Image.open(path) as im: pixels = np.asarray(im.convert("RGB"))
        self.writer.add_image(name, pixels, self.step + 1, dataformats="HWC")

    def close(self):
        "Write what is left and let the file go"
        if self.writer is not None: self.writer.close()
        self.writer = None

    def cleanup(self): self.close()
