"""What several processes do together, or one alone, as tests ask for it; the first one writes it as JSON.

    torchrun --nproc-per-node 2 tests/helpers/together.py OUT.json fitted predicted …
"""
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import F1Score, accuracy
from fastcore.basics import noop
from fits import SignalAt
from stock import stock_dls
from tiny import learnable, tiny_net

from cifar_fastai import cifar_dataloaders, cifar_learner, minimum, peak
from cifar_fastai.checkpoints import StopOnSignal, Stopped
from cifar_fastai.errors import InputError
from cifar_fastai.explain import ImageInterpretation
from cifar_fastai.policy import pad_crop_flip_cutout
from cifar_fastai.processes import gathered, join, rank, world
from cifar_fastai.tricks import AverageWeights

TOTAL = 64       # pictures a batch, of all processes together
UNEVEN = 45      # pictures of the test set
DEVICE = join(os.environ.get("TOGETHER_ON", "cpu"))


def make(norm="gn", bs=None, arch=tiny_net, **kwargs):
    dls = cifar_dataloaders(learnable(400, UNEVEN), bs or TOTAL // world(), pad_crop_flip_cutout(2, cutout=4),
                            num_workers=0, device=DEVICE)
    learn = cifar_learner(dls, arch, norm=norm, precision="fp32", **kwargs)
    learn.logger = noop
    return learn


def weights(learn) -> list:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()]).tolist()


def fitted(**kwargs):
    "Three epochs with augmentation: losses, what the Recorder says, weights"
    learn = make(metrics=[accuracy, F1Score(average="macro")], **kwargs)
    with learn.distrib_ctx(), learn.no_bar():
        learn.fit_one_cycle(3, .1, cbs=AverageWeights(.5, 2))
        looked = learn.validate()
    rec = learn.recorder
    return {"losses": [float(v) for v in rec.losses], "rows": [list(row) for row in rec.values],
            "weights": weights(learn), "validate": list(looked), "plain": type(learn.model).__name__}


def predicted():
    "Predictions of an untrained net for a set that no number of processes divides: fastai's way and ours"
    learn = make()
    with learn.distrib_ctx(), learn.no_bar():
        probs, targs, losses = learn.get_preds(with_loss=True)
        interp = ImageInterpretation.from_learner(learn, tta="mirror")
    return {"probs": probs.tolist(), "targs": targs.tolist(), "losses": losses.tolist(),
            "own": interp.preds.tolist(), "own targs": interp.targs.tolist(), "tta": interp.tta.tolist()}


def found():
    "A range test by all together"
    learn = make()
    before = weights(learn)
    with learn.distrib_ctx(), learn.no_bar():
        rates = learn.lr_find(num_it=40, show_plot=False, suggest_funcs=(minimum, peak))
    return {"rates": list(rates), "losses": [float(v) for v in learn.recorder.losses],
            "untouched": before == weights(learn)}


def read():
    "Which pictures each process reads in two epochs, and how many of them"
    learn, items = make(), []
    with learn.distrib_ctx():
        for epoch in (0, 1):
            learn.dls.train.set_epoch(epoch)
            order = learn.dls.train.get_idxs()
            parts = [order[slice(*learn.dls.train.places(b))] for b in range(len(learn.dls.train))]
            items.append(gathered(torch.tensor(parts).flatten()).tolist())
        shown = gathered(torch.cat([y for _, y in learn.dls.valid]).as_subclass(torch.Tensor))
    return {"items": items, "validated": len(shown)}


def normed():
    "Batch norms on the CPU: their averages after a fit, as every process has them"
    learn = make("bn")
    with learn.distrib_ctx(), learn.no_bar(): learn.fit(1, .1)
    averages = torch.cat([b.flatten().float() for b in learn.model.buffers()])
    return {"averages": gathered(averages[None]).tolist()}


def dropped():
    "What dropout leaves of a row of ones in the first batch, in each process"
    learn, kept = make(), []
    class Drop(Callback):
        def after_pred(self):
            if not kept: kept.append(torch.nn.functional.dropout(torch.ones(64)))
    with learn.distrib_ctx(), learn.no_bar(): learn.fit(1, .1, cbs=Drop())
    return {"kept": gathered(kept[0][None]).tolist()}


def accumulated():
    "One process that takes a step every two batches of half the size, two that take one at each"
    learn = make(bs=TOTAL // 2)
    wait = [GradientAccumulation(TOTAL)] if world() == 1 else []
    with learn.distrib_ctx(), learn.no_bar(): learn.fit_one_cycle(3, .1, cbs=[AverageWeights(.5, 2), *wait])
    return {"weights": weights(learn), "losses": [float(v) for v in learn.recorder.losses]}


def stopped():
    "Where each process stops when the last one is sent a signal in the second epoch"
    learn = make()
    here = [SignalAt("before_step", 7, signal.SIGTERM)] if rank() == world() - 1 else []
    with suppress(Stopped), StopOnSignal() as stop, learn.distrib_ctx(), learn.no_bar():
        learn.fit_one_cycle(3, .1, cbs=[stop, *here])
    return {"at": gathered(torch.tensor([[learn.epoch, learn.iter]])).tolist()}


def refused():
    "A loader that cannot be shared, and more processes than the set has pictures"
    few, said = cifar_dataloaders(learnable(400, 1), 32, device="cpu", num_workers=0), []
    for dls in (stock_dls(), few):
        learn = cifar_learner(dls, tiny_net, precision="fp32", loss_func=CrossEntropyLossFlat())
        try:
            with learn.distrib_ctx(): said.append("nothing")
        except InputError as error: said.append(str(error))
    return {"said": said}


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    results = {name: globals()[name]() for name in names}
    if rank() == 0: Path(out).write_text(json.dumps(results))


if __name__ == "__main__": main(*sys.argv[1:])
