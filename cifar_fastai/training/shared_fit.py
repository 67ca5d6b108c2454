"""A fit by several processes, on CPUs too: fastai's `DistributedTrainer` and accelerate, made exact.

    with learn.distrib_ctx(): learn.fit_one_cycle(20, .1)     # accelerate launch, torchrun, notebook_launcher

Every process reads its own part of each batch of one (seed, epoch) plan, so nothing is sent but gradients.
Losses, metrics and predictions are of all pictures, each once. fastai's own needs CUDA, sends the order of
each epoch, repeats pictures where parts are uneven, and records the loss of one process.
"""
from contextlib import ExitStack, contextmanager

from fastai.distributed import DistributedTrainer
from fastai.torch_core import get_model
from fastcore.basics import noop
from torch import nn, tensor

from ..errors import InputError
from ..processes import highest, join, mean_over, rank, same_buffers, summed, world

__all__ = ["SharedFit", "shared"]


class SharedFit(DistributedTrainer):
    """fastai's `DistributedTrainer` for loaders that know their part. Batch norms are synchronised on GPUs.
    On CPUs, where torch has no such norm, each process normalises by its own part of a batch, and the
    running averages are those of the first process: torch's rule for `DistributedDataParallel`"""
    name = "shared_fit"

    def __init__(self, sync_bn: bool = True, **kwargs):     # kwargs: of accelerate's `Accelerator`
        super().__init__(sync_bn, **kwargs)
        self.whole, self.outer, self.signum = None, [], None

    def before_fit(self):
        self.signum = None
        if rank(): self.learn.logger = noop

    def before_train(self):
        plain = get_model(self.learn.model)
        if self.whole is None or self.whole.module is not plain:
            on_gpu = next(plain.parameters()).device.type == "cuda"
            synced = nn.SyncBatchNorm.convert_sync_batchnorm(plain) if self.sync_bn and on_gpu else plain
            self.whole = self.accelerator.prepare(synced)
        self.learn.model = self.whole

    def after_loss(self):
        "The loss of the whole batch, and a signal that any process has had, are the same for all"
        if not self.training: return
        self.learn.loss = mean_over(self.learn.loss)
        heard = [getattr(cb, "signum", None) or 0 for cb in self.learn.cbs if cb is not self]
        self.signum = highest(max(heard)) or None

    def after_train(self):
        self.learn.model = get_model(self.learn.model)
        same_buffers(self.learn.model)

    def before_validate(self):
        self.outer.append((self.learn.model, self.learn.dl, share(self.learn.dl)))
        self.learn.model = get_model(self.learn.model)

    def after_validate(self):
        "Sums of what each process has seen of the set"
        self.learn.model, dl, before = self.outer.pop()
        dl.share(*before)
        for metric in getattr(getattr(self.learn, "recorder", None), "_valid_mets", []):
            if not hasattr(metric, "total"): continue
            found = summed(tensor([float(metric.total), metric.count]).double())
            metric.total, metric.count = float(found[0]), int(found[1])

    def after_fit(self): self.cleanup()

    def cleanup(self):
        "The plain model is the Learner's again, also where a fit fails"
        self.learn.model, self.outer = get_model(self.learn.model), []


def share(dl) -> tuple[int, int]:
    "Let a loader read this process's part, and give the part that it read. Raises: InputError"
    if not hasattr(dl, "share"):
        raise InputError(f"{type(dl).__name__} cannot be shared by processes. Take cifar_dataloaders, or "
                         "dl_type=BatchDL in your DataBlock.")
    before = dl.rank, dl.processes
    dl.share(rank(), world())
    return before


@contextmanager
def shared(learn, sync_bn: bool = True, **kwargs):
    "A context in which all processes fit `learn` together, see `SharedFit`"
    device = next(learn.model.parameters()).device
    join(device)
    with ExitStack() as parts:
        for dl in learn.dls.loaders:
            before = share(dl)
            parts.callback(dl.share, *before)
        if rank(): parts.enter_context(learn.no_bar())
        with learn.added_cbs([SharedFit(sync_bn, cpu=device.type == "cpu", **kwargs)]): yield learn
