"""The parts of a recipe: options that belong together, as frozen values that check themselves. No fastai.

    OneCycle(peak_epoch=5, anneal="cos")          # a schedule, with the options that it has
    Optimizer("adamw", wd=1e-2)
    Loss(smoothing=0.0).as_dict()                 # {'name': 'ce', 'smoothing': 0.0}, as in recipe.json

Their defaults are also those of `cifar_learner`, `fit_one_cycle` and `lr_find`: the one table of defaults.
"""
from dataclasses import dataclass, fields, replace
from typing import ClassVar, get_args

from .errors import InputError, UnknownName

__all__ = ["Build", "Constant", "Explain", "FlatCos", "Keep", "LRFind", "Loss", "OneCycle", "Optimizer",
           "Part", "Plateau", "Regularise", "SCHEDULES", "Schedule", "Step"]

INF = float("inf")


@dataclass(frozen=True)
class Part:
    "A frozen value with checks. Raises: InputError for a field that is unknown, mistyped or out of range"

    def __post_init__(self):
        for f in fields(self): self._check_type(f.name, f.type)
        self.check()

    def _check_type(self, name: str, kind) -> None:
        "Ints pass for floats; nothing else passes for another type. Raises: InputError"
        value, kinds = getattr(self, name), get_args(kind) or (kind,)
        if kind is object: return
        if float in kinds: kinds = (*kinds, int)
        if isinstance(value, bool) and bool not in kinds or not isinstance(value, kinds):
            names = " or ".join(k.__name__.replace("NoneType", "None") for k in kinds)
            raise InputError(f"{self._label()}: {name}={value!r} is a {type(value).__name__}. Give {names}.")

    def check(self) -> None: "Whether the values are in range: each part says how"

    def need(self, name: str, fits: bool, allowed: str) -> None:
        "Raises: InputError unless field `name` fits"
        if not fits: raise InputError(f"{self._label()}: {name}={getattr(self, name)!r}. Give {allowed}.")

    def one_of(self, name: str, choices) -> None:
        "Raises: InputError unless field `name` is one of `choices`"
        if getattr(self, name) not in choices:
            raise UnknownName(f"{name} of {self._label()}:", getattr(self, name), choices)

    def but(self, **changes):
        "The same with some fields changed. Raises: InputError for an unknown field"
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known: raise UnknownName(f"field of {self._label()}", name, known)
        return replace(self, **changes)

    def as_dict(self) -> dict:
        "Plain values, for recipe.json"
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __str__(self):
        changed = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"

    def _label(self) -> str: return type(self).__name__


@dataclass(frozen=True)
class Build(Part):
    "How the net is built, and what its first weights are"
    norm: str = "bn"            # batch norm, or "gn": group norm of one group
    zero_residual: bool = False # the last norm of each residual block starts at 0 (Goyal et al. 2017)
    whiten: float = 0.0         # the stem whitens patches of training pictures, with this ε; 0: it does not

    def check(self):
        self.one_of("norm", ("bn", "gn"))
        self.need("whiten", 0 <= self.whiten < INF, "0 or more, such as 0.01")


@dataclass(frozen=True)
class Optimizer(Part):
    "An optimiser by name, and its numbers"
    name: str = "sgd"           # Nesterov SGD; "adam", "adamw", "muon" or another of `training.OPTIMIZERS`
    mom: float = 0.9            # momentum, or beta1
    wd: float = 5e-4            # weight decay, in torch's meaning: coupled for SGD and Adam
    wd_norm_bias: bool = True   # decay norms and biases too
    bias_lr: float = 1.0        # rate of biases but the head's, × the others'; decay is divided by it
    head_lr: float = 1.0        # the same of the last linear layer
    accumulate: int = 1         # batches whose gradients make one step

    def check(self):
        self.need("mom", 0 <= self.mom < 1, "a number from 0 to below 1")
        self.need("wd", 0 <= self.wd < INF, "0 or more")
        self.need("accumulate", self.accumulate >= 1, "1 or more")
        for name in ("bias_lr", "head_lr"): self.need(name, 0 < getattr(self, name) < INF, "a factor above 0")


@dataclass(frozen=True)
class Loss(Part):
    "The loss that is trained with"
    name: str = "ce"            # cross-entropy, or "nll" for nets that end in log_softmax
    smoothing: float = 0.1      # label smoothing (Szegedy et al. 2016)

    def check(self):
        self.one_of("name", ("ce", "nll"))
        self.need("smoothing", 0 <= self.smoothing < 1, "a number from 0 to below 1")
        self.need("smoothing", self.name == "ce" or not self.smoothing, "0: loss nll has none")


@dataclass(frozen=True)
class LRFind(Part):
    "The learning rate is the one that a range test finds (Smith 2017), never by the test set"
    rule: str = "peak"          # up to 4 × where the loss is lowest; "minimum" (a tenth of it), "valley" …
    divide: float = 1.0         # the found rate is divided by it
    num_it: int = 100           # batches; where the training has fewer, as many as it has, but at least 60
    mode: str = "exp"           # the rate rises by a factor ("exp") or by a step ("linear")
    on: str = "train"           # whose loss it judges by: "train" or "holdout"
    start_lr: float = 1e-5
    end_lr: float = 10.0

    def check(self):
        self.one_of("rule", ("valley", "slide", "minimum", "steep", "peak"))
        self.one_of("mode", ("exp", "linear"))
        self.one_of("on", ("train", "holdout"))
        self.need("divide", 1 <= self.divide < INF, "1 or more")
        self.need("num_it", self.num_it >= 1, "1 or more")
        self.need("start_lr", 0 < self.start_lr < INF, "the first rate, above 0, such as 1e-5")
        self.need("end_lr", self.start_lr < self.end_lr < INF, "the last rate, above start_lr, such as 10")


@dataclass(frozen=True)
class Schedule(Part):
    "How the learning rate goes from the first step to the last"
    name: ClassVar[str]

    def as_dict(self) -> dict: return {"name": self.name} | super().as_dict()
    def options(self) -> dict: return super().as_dict()
    def warm_up(self, epochs: int) -> float: return 0.0   # epochs in which the rate rises


@dataclass(frozen=True)
class OneCycle(Schedule):
    "Up to the peak and down again (Smith 2018): fastai's `fit_one_cycle`"
    name: ClassVar[str] = "one_cycle"
    pct_start: float = 0.25     # where the peak stands, as a share of the fit
    peak_epoch: float | None = None   # the same in epochs, instead
    div: float = 25.0           # first rate = peak / div
    div_final: float = 1e4      # last rate = peak / div_final
    anneal: str = "linear"      # or "cos", as in fastai
    moms: tuple | None = None   # momentum at start, peak and end; None: the optimiser's throughout

    def check(self):
        self.one_of("anneal", ("cos", "linear"))
        self.need("pct_start", 0 < self.pct_start < 1, "a share between 0 and 1")
        self.need("peak_epoch", self.peak_epoch is None or 0 < self.peak_epoch < INF, "an epoch above 0")
        for name in ("div", "div_final"): self.need(name, 1 <= getattr(self, name) < INF, "1 or more")
        def is_momentum(m): return isinstance(m, (int, float)) and not isinstance(m, bool) and 0 <= m < 1
        self.need("moms", self.moms is None or len(self.moms) == 3 and all(map(is_momentum, self.moms)),
                  "the momentum at start, peak and end, such as (.95, .85, .95)")

    def warm_up(self, epochs: int) -> float: return self.peak_epoch or self.pct_start * epochs


@dataclass(frozen=True)
class FlatCos(Schedule):
    "Constant, then down by a half cosine: fastai's `fit_flat_cos`"
    name: ClassVar[str] = "flat_cos"
    pct_start: float = 0.75     # where it begins to fall, as a share of the fit
    div_final: float = 1e4      # last rate = lr / div_final

    def check(self):
        self.need("pct_start", 0 < self.pct_start < 1, "a share between 0 and 1")
        self.need("div_final", 1 <= self.div_final < INF, "1 or more")


@dataclass(frozen=True)
class Step(Schedule):
    "Down in steps: torch's `StepLR`"
    name: ClassVar[str] = "step"
    step_every: int = 10        # epochs from one drop to the next
    drop: float = 0.1           # the rate is multiplied by it

    def check(self):
        self.need("step_every", self.step_every >= 1, "1 or more")
        self.need("drop", 0 < self.drop < 1, "a number between 0 and 1")


@dataclass(frozen=True)
class Plateau(Schedule):
    "Down when the holdout loss has stopped falling: torch's `ReduceLROnPlateau`"
    name: ClassVar[str] = "plateau"
    patience: int = 3           # epochs without a better holdout loss that are waited for
    drop: float = 0.1           # the rate is multiplied by it
    cooldown: int = 0           # epochs after a drop that do not count
    min_lr: float = 0.0         # the rate stays at or above it

    def check(self):
        for name in ("patience", "cooldown", "min_lr"):
            self.need(name, 0 <= getattr(self, name) < INF, "0 or more")
        self.need("drop", 0 < self.drop < 1, "a number between 0 and 1")


@dataclass(frozen=True)
class Constant(Schedule):
    "The same rate throughout"
    name: ClassVar[str] = "constant"


SCHEDULES = {c.name: c for c in (OneCycle, FlatCos, Step, Plateau, Constant)}


@dataclass(frozen=True)
class Regularise(Part):
    "What is added to the loss, cut off the gradients or mixed into the batch; all off by default"
    l1: float = 0.0             # L1 penalty on the weights
    l1_rule: str = "sum"        # "sum": l1 · Σ|w|, or "scaled": as strong as a weight decay of l1
    clip_value: float | None = None   # each element of the gradients into ± it
    clip_norm: float | None = None    # all gradients together to this length
    mixup: float = 0.0          # α of fastai's MixUp
    cutmix: float = 0.0         # α of fastai's CutMix

    def check(self):
        self.one_of("l1_rule", ("sum", "scaled"))
        for name in ("l1", "mixup", "cutmix"): self.need(name, 0 <= getattr(self, name) < INF, "0 or more")
        for name in ("clip_value", "clip_norm"):
            value = getattr(self, name)
            self.need(name, value is None or 0 < value < INF, "a number above 0")
        self.need("mixup", not (self.mixup and self.cutmix), "mixup or cutmix, not both")


@dataclass(frozen=True)
class Keep(Part):
    "Which weights the run ends with"
    name: str = "last"          # "last", the "best" epoch's on the holdout, or averaged: "ema", "lookahead"
    every: int = 5              # steps from one update of the average to the next
    decay: float = 0.95         # what is left of the average at an update

    def check(self):
        self.one_of("name", ("last", "best", "ema", "lookahead"))
        self.need("every", self.every >= 1, "1 or more")
        self.need("decay", 0 < self.decay < 1, "a number between 0 and 1")


@dataclass(frozen=True)
class Explain(Part):
    "What a run shows of its mistakes"
    layer: str | None = None    # of the Grad-CAM maps, such as layer4 or layer4+layer2; None: a ResNet's best
    every: int = 5              # epochs between two sets of maps while training
    gallery: int = 20           # misclassified pictures that are shown

    def check(self):
        for name in ("every", "gallery"): self.need(name, getattr(self, name) >= 1, "1 or more")
