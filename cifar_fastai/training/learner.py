"""An ordinary fastai Learner for small pictures: Nesterov SGD, channels_last, the fastest precision here.

    learn = cifar_learner(dls, resnet18)
    rates = learn.lr_find(n_epoch=20, suggest_funcs=(valley, slide, minimum, steep, peak))
    learn.fit_one_cycle(20, rates.peak)

Private parts of fastai that `ImageLearner` overrides, and what each is for. A test watches their signatures
(tests/training/test_private_parts.py); what a tiny net's step costs without the first two is measured by
`python -m benchmarks choices` (benchmarks/results/choices.txt).

    _call_one      only callbacks that listen to an event are asked, and they are sorted once
    _split         the model gets plain tensors, not fastai's subclasses, which cost time at each operation
    _with_events   callbacks clean up after Ctrl-C and errors, of which fastai tells them nothing
    __exit__       a prediction pass that failed is no row in the epoch table

`Checkpoint` puts its own `_with_events` on the instance until the first batch after a resume, see there.
"""
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from fastai.callback import hook  # noqa: F401  (patches `summary` into Learner)
from fastai.callback.core import TrainEvalCallback, _inner_loop
from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from fastai.torch_core import TensorBase
from fastcore.basics import listify
from fastcore.xtras import ContextManagers
from torch import nn

from ..errors import InputError
from ..loaders import LoaderError, worker_failed
from ..machine import keep_freed_memory
from ..models import check_head, create_model, layer_groups, wrong_head, zero_residuals
from ..parts import Build, Loss, LRFind, OneCycle, Optimizer
from ..processes import join, launched
from .callbacks import EpochSeed, EpochTable, look, loops
from .losses import create_loss
from .lr_finder import find_rate
from .optimizers import TorchOptimizer, groups_apart, norms_and_biases, optimizer
from .precision import Precision, ToPrecision, choose_precision
from .progress import WatchProgress, watched
from .records import DeviceRecorder, mean_metric
from .schedules import one_cycle

__all__ = ["ImageLearner", "cifar_learner"]


class ImageLearner(ToPrecision, Learner):
    """A fastai `Learner` with less overhead a batch, that also cleans up where a fit is interrupted or fails,
    and whose `lr_find` changes nothing but the recorder."""
    _listeners, deaf = None, ()   # `deaf`: see `training.callbacks.look`
    bias_lr = head_lr = 1.0       # rates of biases and of the head, × the others'

    def add_cb(self, cb):
        self._listeners = None
        return super().add_cb(cb)

    def remove_cb(self, cb):
        self._listeners = None
        return super().remove_cb(cb)

    @Learner.metrics.setter
    def metrics(self, v):
        Learner.metrics.fset(self, v)
        self._metrics = self._metrics.map(mean_metric)

    def _call_one(self, event_name):
        "Call the callbacks that listen to `event_name`, in order (fastai sorts and asks all at each event)"
        if self._listeners is None: self._listeners = {}
        if event_name not in self._listeners:
            deaf = self.deaf if event_name in _of_fit else ()
            self._listeners[event_name] = [cb for cb in self.cbs.sorted("order")
                                           if _listens(cb, event_name) and cb not in deaf]
        inner, training = event_name in _inner_loop, self.training
        try:
            for cb in self._listeners[event_name]:
                wanted = not inner or (cb.run_train if training else cb.run_valid)
                if cb.run and wanted: getattr(cb, event_name)()
        except InputError: raise   # says what to do in one line
        except Exception as e:
            e.add_note(f"Exception occurred in `{type(cb).__name__}` when calling event `{event_name}`")
            raise
        finally:
            if event_name == "after_fit": self.cbs.map(_runs_again)

    def _split(self, b):
        "Plain tensors for the model: fastai's subclasses cost microseconds at each operation"
        super()._split(b)
        self.xb, self.yb = _plain(self.xb), _plain(self.yb)

    def _with_events(self, f, event_type, ex, final=lambda: None):
        try: super()._with_events(f, event_type, ex, final)
        except BaseException as e:
            alone = event_type == "validate" and "fit" not in loops(self)
            if event_type != "fit" and not alone: raise
            self.cleanup()
            if not str(e).startswith("DataLoader worker"): raise
            raise LoaderError(worker_failed(str(e), f"batch {self.iter} of epoch {self.epoch}")) from e

    def __exit__(self, kind, error, trace):
        "The end of a pass that only predicts; one that failed is no epoch, which its table would show"
        self("after_fit") if kind else super().__exit__(kind, error, trace)

    def cleanup(self):
        "Let every callback put back what it changed elsewhere: fastai calls no event on Ctrl-C or an error"
        for cb in self.cbs:
            if hasattr(type(cb), "cleanup"): cb.cleanup()
            _runs_again(cb)
        self.training = False

    def fit(self, *args, **kwargs):
        "fastai's; the logger is afterwards as before. Raises: InputError within another fit of this Learner"
        if "fit" in loops(self):       # which it would spoil
            raise InputError("a fit or lr_find was started from a callback of a fit of the same Learner. "
                             "Start it after that fit, or on another Learner with a copy of the model.")
        if next(self.model.parameters()).device.type == "cpu": keep_freed_memory()
        logger = self.logger
        try: super().fit(*args, **kwargs)
        finally: self.logger = logger

    def freeze_to(self, n):
        "fastai's; what a net says is `fixed`, as the whitened stem of `airbench`, does not train for it"
        super().freeze_to(n)
        for m in self.model.modules():
            for name in vars(m).get("fixed", ()): getattr(m, name).requires_grad_(False)

    def create_opt(self):
        "fastai's; what has a rate or decay of its own is no layer group, which `freeze` would take it for"
        super().create_opt()
        spared = [] if self.wd_bn_bias else norms_and_biases(self.model)
        if not isinstance(self.opt, OptimWrapper):
            for p in spared: self.opt.state[p]["do_wd"] = False
            spared = []
        apart = groups_apart(self.model, spared, self.bias_lr, self.head_lr)
        if apart and not isinstance(self.opt, TorchOptimizer):
            raise InputError("wd_norm_bias=False, bias_lr and head_lr do nothing to fastai's optimisers. "
                             "Give one by name, or as `training.optimizers.TorchOptimizer`.")
        if apart and self.opt.n_layers: return           # it came built, and was split before
        for params, lr, wd in apart: self.opt.set_apart(params, lr, wd)

    def tta(self, *args, **kwargs):
        "fastai's `tta`, without bars where the output is piped"
        with look(self), nullcontext() if watched() else self.no_bar():
            return super().tta(*args, **kwargs)

    def validate(self, ds_idx=1, dl=None, cbs=None):
        "fastai's `validate`; within a fit it has a Recorder of its own"
        if "fit" not in loops(self): return super().validate(ds_idx, dl, cbs)
        own = DeviceRecorder(add_time=False)
        super().validate(ds_idx, dl, [own, *listify(cbs)])
        return own.values[-1]

    def validation_context(self, cbs=None, inner=False):
        "fastai's; within a fit, that goes on afterwards as if nobody had looked"
        return ContextManagers([look(self), super().validation_context(cbs, inner)])

    @contextmanager
    def no_bar(self):
        "No bars for a while (fastai's own would put its own kind back)"
        with self.removed_cbs([cb for cb in self.cbs if isinstance(cb, ProgressCallback)]): yield self

    def fit_one_cycle(
        self,
        n_epoch: int,
        lr_max: float | slice | None = None,  # peak rate
        div: float = OneCycle.div,              # the first rate is lr_max / div
        div_final: float = OneCycle.div_final,  # the last rate is lr_max / div_final
        pct_start: float = OneCycle.pct_start,  # where in the run the peak stands, 0…1
        wd=None,
        moms: tuple | None = None,  # momentum at the start, the peak and the end
        cbs=None, reset_opt=False, start_epoch=0,
        anneal: str = OneCycle.anneal,          # "linear", or "cos" as in fastai
    ):
        "Fit for `n_epoch` by the 1cycle policy (Smith 2018)"
        if self.opt is None: self.create_opt()
        self.opt.set_hyper("lr", self.lr if lr_max is None else lr_max)
        peak = np.array([h["lr"] for h in self.opt.hypers])
        moms = self.moms if moms is None else moms
        cycle = one_cycle(peak, n_epoch, pct_start, None, div, div_final, anneal, moms)
        self.fit(n_epoch, cbs=[cycle, *listify(cbs)], reset_opt=reset_opt, wd=wd, start_epoch=start_epoch)

    def distrib_ctx(self, sync_bn=True, in_notebook=False, **kwargs):    # told by the environment, too
        "fastai's, for processes on CPUs too: see `training.shared_fit`. Raises: InputError"
        if not launched(): return nullcontext(self)
        join(self.dls.device)
        from .shared_fit import shared  # which needs accelerate: `join` refuses a machine without it
        return shared(self, sync_bn, **kwargs)

    def lr_find(self, start_lr=LRFind.start_lr, end_lr=LRFind.end_lr, num_it=LRFind.num_it, stop_div=True,
                show_plot=True, suggest_funcs=None, **kwargs):
        """fastai's `lr_find`: no weight, generator or file is changed. `n_epoch=` is the length of the fit
        that the rate is for; this and further arguments: `training.lr_finder.find_rate`"""
        return find_rate(self, start_lr, end_lr, num_it, stop_div=stop_div, show_plot=show_plot,
                         suggest_funcs=suggest_funcs, **kwargs)


_of_fit = ("before_fit", "before_epoch", "after_epoch", "after_fit")
def _runs_again(cb): cb.run = True
def _listens(cb, event_name) -> bool: return hasattr(type(cb), event_name) or event_name in vars(cb)
def _plain(ts): return tuple(t.as_subclass(torch.Tensor) if isinstance(t, TensorBase) else t for t in ts)


def cifar_learner(
    dls,                          # `cifar_dataloaders`, or any fastai DataLoaders of pictures with a `vocab`
    arch="resnet18",              # a function or name of `models` or torchvision, or a torch module
    n_out: int | None = None,     # classes; None: those of `dls`
    norm: str = Build.norm,       # "bn" (batch norm) or "gn" (group norm of one group)
    zero_residual: bool = Build.zero_residual,     # residual blocks start as the identity
    opt=Optimizer.name,           # name (see `optimizer`) or any fastai `opt_func`
    lr: float = 0.1,              # default rate of `fit`
    mom: float = Optimizer.mom,   # momentum
    wd: float = Optimizer.wd,     # weight decay, torch's meaning (coupled for SGD)
    wd_norm_bias: bool = Optimizer.wd_norm_bias,   # decay norms and biases too
    bias_lr: float = Optimizer.bias_lr,   # rate of the biases but the head's, × the others'; decay ÷ it
    head_lr: float = Optimizer.head_lr,   # the same of the last linear layer
    smoothing: float | None = None,   # label smoothing, 0…1 (Szegedy et al. 2016); None: .1 for "ce"
    loss_func=Loss.name,          # "ce", "nll" (nets that end in log_softmax), or a loss function
    metrics=accuracy,
    precision: str = "auto",      # "auto" (by device), "fp32", "bf16" or "fp16"
    seed: int | None = None,      # of the first weights; None: the seed of `dls`
    cbs=None,
    **kwargs,                     # further arguments of `Learner`
) -> ImageLearner:
    """A Learner around `arch` with Nesterov SGD, memory in channels_last and the precision fastest here.
    torchvision's `resnet18`, which `from fastai.vision.all import *` binds, means ours of that name, whose
    stem is for small pictures. Layer groups: early stages, late stages and head, see `models.layer_groups`.
    Raises: InputError for an unknown architecture, optimiser or precision, classes that do not fit the
    head, or smoothing beside a loss function that is given."""
    seed = getattr(dls.train, "seed", 0) if seed is None else seed
    if smoothing is None: smoothing = Loss.smoothing if loss_func in (None, "ce") else 0.0
    loss, opt_func = create_loss(loss_func, smoothing), optimizer(opt, mom)
    device = torch.device(dls.device or "cpu")
    if n_out not in (None, len(dls.vocab)): raise wrong_head(n_out, len(dls.vocab))
    model = _model(arch, len(dls.vocab), norm, zero_residual, seed)
    if loss_func is None or isinstance(loss_func, str): check_head(model, len(dls.vocab))
    model = model.to(device, memory_format=torch.channels_last)
    precision = choose_precision(precision, device)
    defaults = [TrainEvalCallback, DeviceRecorder(), WatchProgress, EpochTable, EpochSeed(seed)]
    if precision != "fp32": defaults.append(Precision(precision))
    learn = ImageLearner(dls, model, loss, lr=lr, opt_func=opt_func, wd_bn_bias=wd_norm_bias,
                         metrics=metrics, cbs=[*defaults, *listify(cbs)], default_cbs=False,
                         **{"wd": wd, "moms": (mom, mom, mom), "splitter": layer_groups} | kwargs)
    learn.precision_name, learn.bias_lr, learn.head_lr = precision, bias_lr, head_lr
    return learn


def _model(arch, n_out: int, norm: str, zero_residual: bool, seed: int) -> nn.Module:
    if isinstance(arch, nn.Module): model = arch
    else:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            model = create_model(arch, n_out, norm=norm)
    if zero_residual: zero_residuals(model)
    return model
