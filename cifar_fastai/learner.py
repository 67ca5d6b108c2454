"""An ordinary fastai Learner for small pictures: Nesterov SGD, channels_last, the fastest precision here.

    learn = cifar_learner(dls, resnet18)
    learn.lr_find(suggest_funcs=(valley, slide, minimum, steep))
    learn.fit_one_cycle(20, 0.2)
"""
import inspect
from functools import partial

import fastai.optimizer
import numpy as np
import torch
from fastai.callback.core import TrainEvalCallback, _inner_loop
from fastai.callback.schedule import ParamScheduler, SchedCos, SchedLin, combine_scheds
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from fastai.torch_core import TensorBase, norm_bias_params
from torch import nn

from .callbacks import EpochSeed, EpochTable, WatchProgress
from .errors import InputError, unknown
from .finder import find_rate
from .models import create_model
from .precision import Precision, choose_precision
from .recorder import DeviceRecorder, mean_metric

__all__ = ["ImageLearner", "cifar_learner", "optimizer"]

ANNEALS = {"cos": SchedCos, "linear": SchedLin}


class ImageLearner(Learner):
    """A fastai `Learner` with less overhead a batch, that also cleans up where a fit is interrupted or fails,
    and whose `lr_find` changes nothing but the recorder."""
    _listeners = None

    def add_cb(self, cb):
        self._listeners = None
        return super().add_cb(cb)

    def remove_cb(self, cb):
        self._listeners = None
        return super().remove_cb(cb)

    @property
    def metrics(self): return self._metrics
    @metrics.setter
    def metrics(self, v):
        Learner.metrics.fset(self, v)
        self._metrics = self._metrics.map(mean_metric)

    def _call_one(self, event_name):
        "Call the callbacks that listen to `event_name`, in order (fastai sorts and asks all at each event)"
        if self._listeners is None: self._listeners = {}
        if event_name not in self._listeners:
            self._listeners[event_name] = [cb for cb in self.cbs.sorted("order") if _listens(cb, event_name)]
        inner, training = event_name in _inner_loop, self.training
        for cb in self._listeners[event_name]:
            wanted = not inner or (cb.run_train if training else cb.run_valid)
            if cb.run and wanted: getattr(cb, event_name)()
        if event_name == "after_fit":
            for cb in self.cbs: cb.run = True

    def _split(self, b):
        "Plain tensors for the model: fastai's subclasses cost microseconds at each operation"
        super()._split(b)
        self.xb, self.yb = _plain(self.xb), _plain(self.yb)

    def _with_events(self, f, event_type, ex, final=lambda: None):
        try: super()._with_events(f, event_type, ex, final)
        except BaseException:
            if event_type in ("fit", "validate"): self.cleanup()
            raise

    def cleanup(self):
        "Let every callback put back what it changed elsewhere: fastai calls no event on Ctrl-C or an error"
        for cb in self.cbs:
            if hasattr(type(cb), "cleanup"): cb.cleanup()
        self.training = False

    def fit_one_cycle(
        self,
        n_epoch: int,
        lr_max: float | slice | None = None,  # peak rate
        div: float = 25.0,        # the first rate is lr_max / div
        div_final: float = 1e5,   # the last rate is lr_max / div_final
        pct_start: float = 0.25,  # where in the run the peak stands, 0…1
        wd=None,
        moms: tuple | None = None,  # momentum at the start, the peak and the end
        cbs=None, reset_opt=False, start_epoch=0,
        anneal: str = "cos",      # "cos" (as fastai) or "linear"
    ):
        "Fit for `n_epoch` by the 1cycle policy (Smith 2018)"
        if anneal not in ANNEALS: raise unknown("annealing", anneal, ANNEALS)
        if not 0 < pct_start < 1:
            raise InputError(f"pct_start={pct_start}. Give a share of the run between 0 and 1.")
        if self.opt is None: self.create_opt()
        self.opt.set_hyper("lr", self.lr if lr_max is None else lr_max)
        peak = np.array([h["lr"] for h in self.opt.hypers])
        moms = self.moms if moms is None else moms
        scheds = {"lr": _up_and_down(pct_start, peak / div, peak, peak / div_final, anneal),
                  "mom": _up_and_down(pct_start, *moms, anneal)}
        if not any("mom" in h for h in self.opt.hypers): del scheds["mom"]
        self.fit(n_epoch, cbs=[ParamScheduler(scheds), *_listed(cbs)], reset_opt=reset_opt, wd=wd,
                 start_epoch=start_epoch)

    def lr_find(self, start_lr=1e-5, end_lr=10.0, num_it=100, stop_div=True, show_plot=True,
                suggest_funcs=None, **kwargs):
        "fastai's `lr_find`, see `finder.find_rate`: model, optimiser, generators and disk stay as they were"
        return find_rate(self, start_lr, end_lr, num_it, stop_div=stop_div, show_plot=show_plot,
                         suggest_funcs=suggest_funcs, **kwargs)


def _listens(cb, event_name) -> bool: return hasattr(type(cb), event_name) or event_name in vars(cb)


def _plain(ts): return tuple(t.as_subclass(torch.Tensor) if isinstance(t, TensorBase) else t for t in ts)


def _up_and_down(pct, start, middle, end, anneal):
    sched = ANNEALS[anneal]
    return combine_scheds([pct, 1 - pct], [sched(start, middle), sched(middle, end)])


def _listed(o) -> list:
    if o is None: return []
    return list(o) if isinstance(o, (list, tuple)) or type(o).__name__ == "L" else [o]


def optimizer(
    opt,               # "sgd" (Nesterov), "adam", another of torch.optim or fastai, or an `opt_func`
    mom: float = 0.9,  # momentum, or beta1
    **kwargs,          # further arguments of the torch optimiser
):                     # an `opt_func`
    "An optimiser by name, as a fastai `opt_func`: torch's own, through `OptimWrapper`"
    if callable(opt): return opt
    classes = {n.lower(): c for n, c in vars(torch.optim).items() if inspect.isclass(c)}
    by_name = {n: c for n, c in classes.items() if c is not torch.optim.Optimizer}
    if opt in by_name:
        cls, known = by_name[opt], inspect.signature(by_name[opt]).parameters
        if opt == "sgd": kwargs = {"nesterov": mom > 0, **kwargs}
        if "momentum" in known: kwargs.setdefault("momentum", mom)
        if "betas" in known: kwargs.setdefault("betas", (mom, 0.999))
        if "foreach" in known: kwargs.setdefault("foreach", True)
        return partial(OptimWrapper, opt=cls, **kwargs)
    if opt in ("ranger", "lamb", "larc", "qhadam", "radam"):
        return {n.lower(): f for n, f in vars(fastai.optimizer).items() if callable(f)}[opt]
    raise unknown("optimiser", opt, [*by_name, "ranger", "lamb", "larc", "qhadam"])


def decay_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    "Trainable parameters in two groups: weights, then norms and biases"
    kept = {id(p) for p in norm_bias_params(model, with_bias=True)}
    params = [p for p in model.parameters() if p.requires_grad]
    return [[p for p in params if id(p) not in kept], [p for p in params if id(p) in kept]]


def cifar_learner(
    dls,                          # `cifar_dataloaders`, or any fastai DataLoaders of pictures with a `vocab`
    arch="resnet18",              # a function or name of `models`, or a torch module
    n_out: int | None = None,     # classes; None: those of `dls`
    norm: str = "bn",             # "bn" (batch norm) or "gn" (group norm of one group)
    opt="sgd",                    # name (see `optimizer`) or any fastai `opt_func`
    lr: float = 0.1,              # default rate of `fit`
    mom: float = 0.9,             # momentum
    wd: float = 5e-4,             # weight decay, torch's meaning (coupled for SGD)
    wd_norm_bias: bool = True,    # decay norms and biases too
    smoothing: float = 0.0,       # label smoothing, 0…1 (Szegedy et al. 2016)
    loss_func=None,               # None: cross-entropy
    metrics=accuracy,
    precision: str = "auto",      # "auto" (probed), "fp32", "bf16" or "fp16"
    seed: int | None = None,      # of the first weights; None: the seed of `dls`
    cbs=None,
    **kwargs,                     # further arguments of `Learner`
) -> ImageLearner:
    """A Learner around `arch` with Nesterov SGD, memory in channels_last and the precision fastest here.
    Raises: InputError for an unknown architecture, optimiser or precision, or classes that do not fit the
    head."""
    classes, seed = len(dls.vocab), getattr(dls.train, "seed", 0) if seed is None else seed
    model = _model(arch, n_out or classes, norm, seed)
    if n_out is not None and n_out != classes:
        raise InputError(f"the head has {n_out} outputs but the data has {classes} classes. "
                         "Leave n_out away, or change the data.")
    device = dls.device or torch.device("cpu")
    precision = choose_precision(precision, device)
    model = model.to(device, memory_format=torch.channels_last)
    both = not wd_norm_bias
    defaults = [TrainEvalCallback, DeviceRecorder(), WatchProgress, EpochTable, EpochSeed(seed)]
    if precision != "fp32": defaults.append(Precision(precision))
    learn = ImageLearner(dls, model, loss_func or CrossEntropyLossFlat(label_smoothing=smoothing), lr=lr,
                         opt_func=optimizer(opt, mom), wd=[wd, 0.0] if both else wd, moms=(mom, mom, mom),
                         metrics=metrics, cbs=[*defaults, *_listed(cbs)], default_cbs=False,
                         **({"splitter": decay_groups} if both else {}), **kwargs)
    learn.precision_name = precision
    return learn


def _model(arch, n_out: int, norm: str, seed: int) -> nn.Module:
    if isinstance(arch, nn.Module): return arch
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return create_model(arch, n_out, norm=norm)
