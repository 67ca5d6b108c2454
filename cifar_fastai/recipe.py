"""A recipe: every number of a run as one value, checked when it is made, amended by `but`.

    recipe = Recipe(name="mine", model="resnet18", epochs=20, aug=policy.pad_crop_flip())
    train(recipe.but(lr=0.1), data="digits", out="runs/demo")
"""
import json
import re
import sys
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from textwrap import wrap
from types import UnionType
from typing import get_args

from . import policy
from .errors import InputError, UnknownName

__all__ = ["Recipe", "counted"]

INF = float("inf")
SCHEDULES = ("one_cycle", "flat_cos", "step", "plateau", "constant")   # of `schedules`, which imports fastai
CHOICES = {"norm": ("bn", "gn"), "schedule": SCHEDULES, "anneal": ("cos", "linear"), "loss": ("ce", "nll"),
           "lr_rule": ("valley", "slide", "minimum", "steep", "peak"), "lr_mode": ("exp", "linear"),
           "lr_on": ("train", "holdout"), "l1_rule": ("sum", "scaled"), "keep": ("last", "best"),
           "tta": ("mirror", "mirror+shift", "none"), "valid": ("test", "holdout"),
           "precision": ("auto", "fp32", "bf16", "fp16")}
AT_LEAST_1 = ("epochs", "bs", "cam_every", "lr_its", "size", "gallery", "step_every", "div",
              "div_final", "lr_divide")
AT_LEAST_0 = ("min_steps", "wd", "l1", "seed", "mixup", "cutmix", "patience", "cooldown", "min_lr")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    "Every number of a run. Raises: InputError for a field that is unknown, mistyped or out of range"
    name: str                       # of the run folder
    model: str = "resnet18"         # a name of `models.MODELS`
    norm: str = "bn"                # "bn", or "gn": group norm of one group
    epochs: int = 20
    bs: int = 512                   # pictures a batch; fewer on small data: see `min_steps`
    min_steps: int = 16             # steps an epoch, at least; 0: `bs` holds, whatever the data
    lr: float | str = "find"        # peak rate; "find": a range test decides, never the test set
    lr_rule: str = "peak"           # up to 4 × where the loss is lowest; "minimum" (a tenth), "valley" …
    lr_divide: float = 1.0          # the found rate is divided by it
    lr_its: int = 100               # batches of the range test; fewer, but 60, where the training has fewer
    lr_mode: str = "exp"            # of the range test: "exp" (by a factor) or "linear" (by a step)
    lr_on: str = "train"            # whose loss it judges by: "train" or "holdout"
    lr_range: tuple = (1e-5, 10.0)  # from where to where it goes
    aug: object = policy.pad_crop_flip_cutout()  # policy or its name, A.Compose, list of transforms, None
    loss: str = "ce"                # "ce", or "nll" for nets that end in log_softmax
    opt: str = "sgd"                # Nesterov SGD; "adam", "adamw", others: `training.optimizers.optimizer`
    mom: float = 0.9                # momentum, or beta1
    wd: float = 5e-4                # weight decay
    wd_norm_bias: bool = True       # decay norms and biases too
    smoothing: float = 0.1          # label smoothing (Szegedy et al. 2016)
    l1: float = 0.0                 # L1 penalty on the weights
    l1_rule: str = "sum"            # "sum": l1 · Σ|w|, or "scaled": as strong as a weight decay of l1
    clip_value: float | None = None  # each element of the gradients into ± it
    clip_norm: float | None = None  # all gradients together to this length
    mixup: float = 0.0              # α of fastai's MixUp; 0: off
    cutmix: float = 0.0             # α of fastai's CutMix; 0: off
    schedule: str = "one_cycle"     # or "flat_cos", "step", "plateau" (of the holdout loss), "constant"
    anneal: str = "linear"          # one_cycle: "cos" or "linear"
    pct_start: float | None = None  # one_cycle: where the peak stands (.25); flat_cos: where it falls (.75)
    peak_epoch: float | None = None  # one_cycle: the same in epochs, instead
    div: float = 25.0               # one_cycle: first rate = peak / div
    div_final: float = 1e4          # one_cycle, flat_cos: last rate = peak / div_final
    moms: tuple | None = None       # one_cycle: momentum at start, peak and end; None: `mom` throughout
    step_every: int = 10            # step: epochs from one drop to the next
    drop: float = 0.1               # step, plateau: the rate is multiplied by it
    patience: int = 3               # plateau: epochs without a better holdout loss that are waited for
    cooldown: int = 0               # plateau: epochs after a drop that do not count
    min_lr: float = 0.0             # plateau: the rate stays at or above it
    keep: str = "last"              # whose weights: "last", or the epoch "best" on the holdout
    cam: str = "layer3"             # layer of the heat maps: 8×8; layer4 is 4×4, too coarse to look at
    cam_every: int = 5              # epochs between two sets of maps
    gallery: int = 20               # misclassified pictures that are shown
    tta: str = "mirror"             # views averaged for accuracy_tta: "mirror", "mirror+shift" or "none"
    size: int = 32                  # side of the pictures, pixels
    valid: str = "test"             # "test" (watched, nothing is chosen by it) or "holdout"
    limit: int | None = None        # train on so many pictures only
    precision: str = "auto"         # "auto" (by device), "fp32", "bf16" or "fp16"
    seed: int = 0                   # of first weights, order, augmentation, limit and holdout

    def __post_init__(self):
        for f in fields(self): _check_type(self, f)
        if not re.fullmatch(r"\w[\w.+-]*", self.name): raise self._wrong("name", "letters, digits and _.+-")
        self._check_aug()
        for name in AT_LEAST_1: self._at_least(name, 1)
        for name in AT_LEAST_0: self._at_least(name, 0)
        if self.limit is not None: self._at_least("limit", 2)
        for name in ("mom", "smoothing", "drop"): self._between(name, 0, 1)
        for name in ("clip_value", "clip_norm", "peak_epoch", "pct_start", "drop"): self._above_0(name)
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices: raise UnknownName(f"{name} of recipe {self.name}:", value, choices)
        known = self.lr == "find" if isinstance(self.lr, str) else 0 < self.lr < 1e3
        if not known: raise self._wrong("lr", "a number above 0, or find")
        self._check_schedule()
        self._check_together()

    def _check_aug(self):
        if isinstance(self.aug, str): policy.named(self.aug)
        elif not (self.aug is None or isinstance(self.aug, policy.Policy) or _are_transforms(self.aug)):
            raise self._wrong("aug", "a policy such as policy.pad_crop_flip() or its name, an A.Compose, "
                              "a list of transforms, or None")

    def _check_schedule(self):
        if (self.pct_start or 0) >= 1: raise self._wrong("pct_start", "a share below 1")
        if self.peak_epoch is not None and self.peak_epoch >= self.epochs:
            raise self._wrong("peak_epoch", f"an epoch within the {self.epochs}, or a share by pct_start")
        if self.moms is not None and not (_numbers(self.moms, 3) and all(0 <= m < 1 for m in self.moms)):
            raise self._wrong("moms", "the momentum at start, peak and end, such as (.95, .85, .95)")
        if not (_numbers(self.lr_range, 2) and 0 < self.lr_range[0] < self.lr_range[1] < INF):
            raise self._wrong("lr_range", "the first and the last rate, such as (1e-5, 10)")

    def _check_together(self):
        "Fields that only make sense with others"
        chooses = {"schedule": "plateau", "keep": "best", "lr_on": "holdout"}
        for name, value in chooses.items():
            if self.valid == "test" and getattr(self, name) == value:
                raise self._wrong(name, 'valid="holdout" with it: the test set must not choose')
        if self.mixup and self.cutmix: raise self._wrong("mixup", "mixup or cutmix, not both")
        if self.loss == "nll" and self.smoothing: raise self._wrong("smoothing", "0: loss nll has none")

    def _wrong(self, name: str, allowed: str) -> InputError:
        return InputError(f"recipe {self.name}: {name}={getattr(self, name)!r}. Give {allowed}.")

    def _at_least(self, name: str, least):
        if not least <= getattr(self, name) < INF: raise self._wrong(name, f"{least} or more")

    def _above_0(self, name: str):
        value = getattr(self, name)
        if value is not None and not 0 < value < INF: raise self._wrong(name, "a number above 0")

    def _between(self, name: str, low, high):
        if not low <= getattr(self, name) < high:
            raise self._wrong(name, f"a number from {low} to below {high}")

    def but(self, **changes) -> "Recipe":
        """A variant: the same recipe with some fields changed; a `bs` without `min_steps` holds, whatever the
        data. Raises: InputError for an unknown field"""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known: raise UnknownName("recipe field", name, known)
        if "bs" in changes: changes = {"min_steps": 0} | changes
        return replace(self, **changes)

    @property
    def warm_up(self) -> float:
        "Epochs in which the rate rises: until the peak of a one-cycle, 0 for the schedules that begin there"
        if self.schedule != "one_cycle": return 0.0
        return self.peak_epoch or (0.25 if self.pct_start is None else self.pct_start) * self.epochs

    def describe(self) -> str:
        "Net, length and rate in a few words"
        long = counted(self.epochs, "epoch")
        return f"{self.model}, {long}, {self.schedule} with lr={self.lr}, batches of {self.bs}"

    def settings(self, width: int = 106) -> str:
        "Every field with its value, as lines for people"
        shown = (f"{k}={v if k == 'aug' else repr(v)}" for k, v in vars(self).items())
        return "\n".join(wrap(", ".join(shown), width, break_long_words=False, break_on_hyphens=False))

    def as_dict(self) -> dict:
        "Plain values, for recipe.json"
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"aug": _plain_aug(self.aug)}

    def fingerprint(self) -> str:
        "Equal for two recipes exactly if all their numbers are"
        return sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]


def _are_transforms(aug) -> bool:
    "Whether `aug` is an `A.Compose`, a transform or a list of them; Albumentations is there if it is"
    if "albumentations" not in sys.modules: return False
    import albumentations as A
    listed = aug if isinstance(aug, (list, tuple)) else [aug]
    return all(isinstance(t, (A.BasicTransform, A.BaseCompose)) for t in listed)


def _numbers(values, n: int) -> bool:
    return len(values) == n and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def _check_type(recipe: Recipe, f) -> None:
    "Ints pass for floats; nothing else passes for another type"
    value, kind = getattr(recipe, f.name), f.type
    if kind is object: return
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if float in kinds: kinds = (*kinds, int)
    if isinstance(value, bool) and bool not in kinds or not isinstance(value, kinds):
        names = " or ".join(k.__name__.replace("NoneType", "None") for k in kinds)
        kind = type(value).__name__
        raise InputError(f"recipe {recipe.name}: {f.name}={value!r} is a {kind}. Give {names}.")


def _plain_aug(aug):
    if hasattr(aug, "as_dict"): return aug.as_dict()
    if aug is None or isinstance(aug, str): return aug
    import albumentations as A
    listed = list(aug) if isinstance(aug, (list, tuple)) else [aug]
    compose = aug if isinstance(aug, A.Compose) else A.Compose(listed)
    return json.loads(json.dumps(A.to_dict(compose), default=str))


def counted(n: int, thing: str) -> str:
    "1 epoch, 20 epochs, 10,000 pictures"
    return f"{n:,} {thing}{'' if n == 1 else 's'}"
