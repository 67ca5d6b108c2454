"""A recipe: every number of a run as one value, checked when it is made, amended by `but`.

    recipe = Recipe(name="mine", model="resnet18", epochs=20, aug=policy.pad_crop_flip())
    train(recipe.but(lr=0.1), data="digits", out="runs/demo")
"""
import json
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from types import UnionType
from typing import get_args

from . import policy
from .errors import InputError, unknown

__all__ = ["Recipe"]

SCHEDULES = ("one_cycle",)
RULES = ("valley", "slide", "minimum", "steep")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    "Every number of a run. Raises: InputError for a field that is unknown, mistyped or out of range"
    name: str                       # of the run folder
    model: str = "resnet18"         # a name of `models.MODELS`
    norm: str = "bn"                # "bn", or "gn": group norm of one group
    epochs: int = 20
    bs: int = 512                   # pictures a batch; fewer on small data: see `min_steps`
    min_steps: int = 16             # steps an epoch, at least
    lr: float | str = "find"        # peak rate; "find": the training loss decides, never the test set
    lr_rule: str = "minimum"        # which suggestion of the range test "find" takes
    lr_its: int = 100               # batches of the range test
    aug: object = policy.pad_crop_flip_cutout()  # policy or its name, A.Compose, list of transforms, None
    opt: str = "sgd"                # Nesterov SGD; see `learner.optimizer` for others
    mom: float = 0.9                # momentum, or beta1
    wd: float = 5e-4                # weight decay
    wd_norm_bias: bool = True       # decay norms and biases too
    smoothing: float = 0.1          # label smoothing (Szegedy et al. 2016)
    schedule: str = "one_cycle"
    anneal: str = "linear"          # of the one-cycle: "cos" or "linear"
    pct_start: float = 0.25         # where the peak stands, as a share of the run
    div: float = 25.0               # first rate = peak / div
    div_final: float = 1e4          # last rate = peak / div_final
    moms: tuple | None = None       # momentum at start, peak and end; None: `mom` throughout
    l1: float = 0.0                 # L1 on weights
    cam: str = "layer3"             # layer of the heat maps: 8×8; layer4 is 4×4, too coarse to look at
    cam_every: int = 5              # epochs between two sets of maps
    tta: str = "mirror"             # views averaged for accuracy_tta: "mirror", "mirror+shift" or "none"
    size: int = 32                  # side of the pictures, pixels
    valid: str = "test"             # "test" (watched, nothing is chosen by it) or "holdout"
    limit: int | None = None        # train on so many pictures only
    precision: str = "auto"         # "auto" (probed), "fp32", "bf16" or "fp16"
    seed: int = 0                   # of first weights, order, augmentation, limit and holdout

    def __post_init__(self):
        for f in fields(self): _check_type(self, f)
        for name in ("epochs", "bs", "min_steps", "cam_every", "lr_its", "size"): self._at_least(name, 1)
        for name in ("wd", "l1", "seed"): self._at_least(name, 0)
        for name in ("div", "div_final"): self._at_least(name, 1)
        if self.limit is not None: self._at_least("limit", 2)
        for name in ("mom", "smoothing"): self._between(name, 0, 1)
        self._between("pct_start", 0, 1)
        for name, choices in self._choices().items():
            value = getattr(self, name)
            if value not in choices: raise unknown(f"{name} of recipe {self.name}:", value, choices)
        known = self.lr == "find" if isinstance(self.lr, str) else 0 < self.lr < 1e3
        if not known: raise self._wrong("lr", "a number above 0, or find")

    def _choices(self) -> dict:
        return {"norm": ("bn", "gn"), "schedule": SCHEDULES, "anneal": ("cos", "linear"), "lr_rule": RULES,
                "tta": ("mirror", "mirror+shift", "none"), "valid": ("test", "holdout"),
                "precision": ("auto", "fp32", "bf16", "fp16")}

    def _wrong(self, name: str, allowed: str) -> InputError:
        return InputError(f"recipe {self.name}: {name}={getattr(self, name)!r}. Give {allowed}.")

    def _at_least(self, name: str, least):
        if getattr(self, name) < least: raise self._wrong(name, f"{least} or more")

    def _between(self, name: str, low, high):
        if not low <= getattr(self, name) < high:
            raise self._wrong(name, f"a number from {low} to below {high}")

    def but(self, **changes) -> "Recipe":
        "A variant: the same recipe with some fields changed. Raises: InputError for an unknown field"
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known: raise unknown("recipe field", name, known)
        return replace(self, **changes)

    def describe(self) -> str:
        "Net, length and rate in a few words"
        return f"{self.model}, {self.epochs} epochs, {self.schedule} with lr={self.lr}, batches of {self.bs}"

    def as_dict(self) -> dict:
        "Plain values, for recipe.json"
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"aug": _plain_aug(self.aug)}

    def fingerprint(self) -> str:
        "Equal for two recipes exactly if all their numbers are"
        return sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]


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
    compose = aug if isinstance(aug, A.Compose) else A.Compose(list(aug))
    return json.loads(json.dumps(A.to_dict(compose), default=str))
