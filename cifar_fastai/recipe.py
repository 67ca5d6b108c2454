"""A recipe: every number of a run as one value, made of `parts`, checked when it is made, amended by `but`.

    recipe = Recipe(name="mine", model="resnet18", epochs=20, aug=policy.pad_crop_flip())
    train(recipe.but(lr=0.1, opt={"wd": 1e-3}), data="digits", out="runs/demo")
"""
import json
import re
import sys
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from statistics import mean, stdev
from textwrap import wrap

from . import policy
from .errors import InputError, UnknownName
from .parts import (
    SCHEDULES,
    Build,
    Explain,
    Keep,
    Loss,
    LRFind,
    OneCycle,
    Optimizer,
    Part,
    Regularise,
    Schedule,
)

__all__ = ["Recipe", "counted", "flat", "mean_and_spread", "training_fields"]


@dataclass(frozen=True, kw_only=True)
class Recipe(Part):
    """Every number of a run. A part may be given as itself, as a dict of its fields, or by its name.
    Raises: InputError for a field that is unknown, mistyped or out of range"""
    name: str                       # of the run folder
    model: str = "resnet18"         # a name of `models.MODELS`
    build: Build = Build()          # its norms and first weights
    epochs: int = 20
    bs: int = 512                   # pictures a batch; fewer on small data: see `min_steps`
    min_steps: int = 16             # steps an epoch, at least; 0: `bs` holds, whatever the data
    aug: object = policy.pad_crop_flip_cutout()  # policy or its name, A.Compose, list of transforms, None
    loss: Loss = Loss()             # cross-entropy with label smoothing
    opt: Optimizer = Optimizer()    # Nesterov SGD
    lr: float | LRFind = LRFind()   # peak rate; `LRFind`: the range test decides, never the test set
    schedule: Schedule = OneCycle()
    regularise: Regularise = Regularise()
    keep: Keep = Keep()             # which weights: "last", the epoch "best" on the holdout, averages
    explain: Explain = Explain()    # what is shown of its mistakes
    tta: str = "mirror"             # views averaged for accuracy_tta: "mirror", "mirror+shift" or "none"
    size: int = 32                  # side of the pictures, pixels
    valid: str = "test"             # "test" (watched, nothing is chosen by it) or "holdout"
    limit: int | None = None        # train on this many pictures only
    precision: str = "auto"         # "auto" (by device), "fp32", "bf16" or "fp16"
    seed: int = 0                   # of first weights, order, augmentation, limit and holdout

    def __new__(cls, **values):
        for name in values:         # Python's own error would not say where a field is now
            if name not in _names(cls): raise _unknown(name)
        return super().__new__(cls)

    def __post_init__(self):
        for f in fields(self):      # a dict or a name stands for the part with these fields
            object.__setattr__(self, f.name, self._amended(f.name, f.default, getattr(self, f.name)))
        super().__post_init__()

    def check(self):
        self.need("name", bool(re.fullmatch(r"\w[\w.+-]*", self.name)), "letters, digits and _.+-")
        known = self.aug is None or isinstance(self.aug, policy.Policy) or _are_transforms(self.aug)
        self.need("aug", known, "a policy such as policy.pad_crop_flip() or its name, an A.Compose, "
                  "a list of transforms, or None")
        for name in ("epochs", "bs", "size"): self.need(name, getattr(self, name) >= 1, "1 or more")
        for name in ("min_steps", "seed"): self.need(name, getattr(self, name) >= 0, "0 or more")
        self.need("limit", self.limit is None or self.limit >= 2, "2 or more")
        self.one_of("tta", ("mirror", "mirror+shift", "none"))
        self.one_of("valid", ("test", "holdout"))
        self.one_of("precision", ("auto", "fp32", "bf16", "fp16"))
        self.need("lr", isinstance(self.lr, LRFind) or 0 < self.lr < 1e3, "a rate above 0, or LRFind()")
        self._check_together()

    def _check_together(self):
        "Parts that only make sense with others"
        peak = getattr(self.schedule, "peak_epoch", None)
        self.need("schedule", peak is None or peak < self.epochs, f"a peak within the {self.epochs} epochs")
        if self.valid == "holdout": return
        for name, chooses in (("schedule", self.schedule.name == "plateau"),
                              ("keep", self.keep.name == "best"),
                              ("lr", getattr(self.lr, "on", "train") == "holdout")):
            self.need(name, not chooses, 'valid="holdout" with it: the test set must not choose')

    def but(self, **changes) -> "Recipe":
        """A variant: the same recipe with some fields changed. A dict, or a dotted name, amends the part that
        stands there: `but(opt={"wd": 1e-3})`, `but(**{"opt.wd": 1e-3, "aug.cutout": 16})`. A `bs` without
        `min_steps` holds, whatever the data. Raises: InputError for an unknown field"""
        if "bs" in changes: changes = {"min_steps": 0} | changes
        new = {}
        for key, value in changes.items():
            name, _, inner = key.partition(".")
            if name not in _names(Recipe): raise _unknown(name)
            now = new.get(name, getattr(self, name))
            if inner and name == "lr" and not isinstance(now, LRFind):
                raise InputError(f"{self._label()}: lr={now!r} is given, so {key} has no meaning. "
                                 'Leave it out, or let the rate be found: lr="find".')
            amends = isinstance(value, dict) and isinstance(now, policy.Policy) and "name" not in value
            if name == "aug" and (inner or amends):
                if not isinstance(now, policy.Policy):
                    raise InputError(f"aug={now!r} has no fields to change. Give a policy, such as "
                                     "policy.pad_crop_flip().")
                new[name] = now.but(**{inner: value} if inner else value)
            else: new[name] = self._amended(name, now, {inner: value} if inner else value)
        return replace(self, **new)

    @classmethod
    def from_dict(cls, values: dict) -> "Recipe":
        "The recipe in JSON values; what is left out has its default. Raises: InputError"
        try: return cls(**({"min_steps": 0} if "bs" in values else {}) | values)       # as `but`
        except (TypeError, OverflowError) as error:
            raise InputError(f"no recipe: {' '.join(str(error).split())}. Give fields of a recipe, as the "
                             "recipe.json of a run has them.") from error

    def _amended(self, name: str, now, value):
        "The value of field `name`, which is `now`, after a change: a dict has fields of a part, as in JSON"
        kind = PARTS.get(name, policy.Policy if name == "aug" else None)
        if name == "lr" and value == "find": return now if isinstance(now, LRFind) else LRFind()
        if name == "aug" and isinstance(value, str): return policy.named(value)
        if kind in (Keep, Loss, Optimizer, Schedule) and isinstance(value, str): value = {"name": value}
        if kind is None or not isinstance(value, dict): return value
        if kind is policy.Policy:
            if "transform" in value:
                raise InputError(f"{self._label()} holds transforms of Albumentations, which only its own "
                                 "module can make. Run that module.")
            return policy.from_dict(value)
        value = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        if kind is Schedule and "name" in value:
            wanted = value.pop("name")
            if wanted not in SCHEDULES: raise UnknownName(f"schedule of {self._label()}:", wanted, SCHEDULES)
            if now.name != wanted: now = SCHEDULES[wanted]()
        if not isinstance(now, kind): now = kind()                                # options where a rate stood
        return now.but(**value)

    def _label(self) -> str: return f"recipe {self.name}"

    @property
    def warm_up(self) -> float:
        "Epochs in which the rate rises: until the peak of a one-cycle, 0 for the schedules that begin there"
        return self.schedule.warm_up(self.epochs)

    def describe(self) -> str:
        "Net, length and rate in a few words"
        rate = "find" if isinstance(self.lr, LRFind) else f"{self.lr:g}"
        long = counted(self.epochs, "epoch")
        return f"{self.model}, {long}, {self.schedule.name} with lr={rate}, batches of {self.bs}"

    def settings(self, width: int = 106) -> str:
        "Every field with its value, as lines for people"
        shown = (f"{k}={v if k == 'aug' else repr(v)}" for k, v in vars(self).items())
        return "\n".join(wrap(", ".join(shown), width, break_long_words=False, break_on_hyphens=False))

    def as_dict(self) -> dict:
        "Plain values, nested as the parts are, for recipe.json"
        values = {f.name: getattr(self, f.name) for f in fields(self)} | {"aug": _plain_aug(self.aug)}
        return {k: v.as_dict() if isinstance(v, Part) else v for k, v in values.items()}

    def fingerprint(self) -> str:
        "Equal for two recipes exactly if all their numbers are"
        return sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]


PARTS = {"build": Build, "loss": Loss, "opt": Optimizer, "lr": LRFind, "schedule": Schedule,
         "regularise": Regularise, "keep": Keep, "explain": Explain}
# names of fields of parts in a recipe.json of before
_BEFORE = {"lr_rule": "lr.rule", "lr_divide": "lr.divide", "lr_its": "lr.num_it", "lr_mode": "lr.mode",
           "lr_on": "lr.on", "lr_range": "lr.start_lr", "cam": "explain.layer", "cam_every": "explain.every"}


def _names(part: type) -> list[str]: return [f.name for f in fields(part)]


def _unknown(name: str) -> InputError:
    "The error for a field that no recipe has, with the part that has it if there is one"
    kinds = [(part, kind) for part, kind in PARTS.items() if kind is not Schedule]
    kinds += [("schedule", kind) for kind in SCHEDULES.values()]
    of_parts = {inner: f"{part}.{inner}" for part, kind in kinds for inner in _names(kind)} | _BEFORE
    if name not in of_parts: return UnknownName("recipe field", name, _names(Recipe))
    part, inner = of_parts[name].split(".")
    return InputError(f"unknown recipe field {name!r}: it is {part}.{inner}. In Python give "
                      f'{part}={{"{inner}": …}}, in JSON "{part}": {{"{inner}": …}}.')


def flat(values: dict) -> dict:
    "Nested values under dotted names: {'opt': {'wd': 0.1}} → {'opt.wd': 0.1}"
    found = {}
    for name, value in values.items():
        if isinstance(value, dict): found |= {f"{name}.{k}": v for k, v in flat(value).items()}
        else: found[name] = value
    return found


NOT_TRAINING = ("name", "explain", "tta", "min_steps")    # do not change the weights


def training_fields(recipe: dict) -> dict:
    "The fields of a recipe, as JSON values under dotted names, that decide the weights"
    found = flat({k: v for k, v in recipe.items() if k not in NOT_TRAINING})
    if isinstance(recipe.get("lr"), dict): found = {"lr": "find"} | found
    return json.loads(json.dumps(found))


def _are_transforms(aug) -> bool:
    "Whether `aug` is an `A.Compose`, a transform or a list of them; Albumentations is there if it is"
    if "albumentations" not in sys.modules: return False
    import albumentations as A
    listed = aug if isinstance(aug, (list, tuple)) else [aug]
    return all(isinstance(t, (A.BasicTransform, A.BaseCompose)) for t in listed)


def _plain_aug(aug):
    if hasattr(aug, "as_dict"): return aug.as_dict()
    if aug is None: return None
    import albumentations as A
    listed = list(aug) if isinstance(aug, (list, tuple)) else [aug]
    compose = aug if isinstance(aug, A.Compose) else A.Compose(listed)
    return json.loads(json.dumps(A.to_dict(compose), default=str))


def counted(n: int, thing: str) -> str:
    "1 epoch, 20 epochs, 10,000 pictures"
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def mean_and_spread(values: list[float]) -> str:
    "Shares as 91.00% ± 1.41 points, by the sample's standard deviation; of one value the value alone"
    return f"{mean(values):.2%}" + (f" ± {100 * stdev(values):.2f} points" if len(values) > 1 else "")
