"""The named augmentation policies, as plain values that a recipe can hold and write down.
`augment` turns them into transforms.

    policy.pad_crop_flip_cutout(pad=4, cutout=8)
    policy.pad_crop_flip(rotate=5, grey_p=0.2)
"""
from dataclasses import asdict, dataclass, fields, replace

from .errors import InputError, UnknownName

__all__ = ["Policy", "from_dict", "named", "none", "pad_crop", "pad_crop_flip",
           "pad_crop_flip_cutout", "side_at"]


INF = float("inf")


def _number(v, low=0.0, high=INF, whole=False) -> bool:
    return isinstance(v, int if whole else (int, float)) and not isinstance(v, bool) and low <= v <= high


def _numbers(v, n, *limits) -> bool:
    return isinstance(v, (tuple, list)) and len(v) == n and all(_number(x, *limits) for x in v)


_ALLOWED = (   # fields, what they must be, and how that is said
    (("cutout_p", "rotate_p", "jitter_p", "grey_p"), lambda v: _number(v, 0, 1), "a probability from 0 to 1"),
    (("flip",), lambda v: v == "alternate" or _number(v, 0, 1), 'a probability from 0 to 1, or "alternate"'),
    (("sizes",), lambda v: isinstance(v, (tuple, list)) and all(_numbers(s, 2, 0, INF, True) for s in v) and
     [e for e, _ in v] == sorted({e for e, _ in v}) and all(s >= 1 for _, s in v) and (not v or v[0][0] == 0),
     "pairs of an epoch, the first 0, and a side in pixels, such as ((0, 24), (4, 28), (8, 32))"),
    (("pad", "cutout"), lambda v: _number(v, whole=True), "a whole number of pixels, 0 or more"),
    (("rotate",), lambda v: _number(v, 0, 180), "an angle from 0 to 180 degrees"),
    (("fill",), lambda v: v == "mean" or _number(v, 0, 255), 'a pixel value from 0 to 255, or "mean"'),
    (("holes",), lambda v: _numbers(v, 2, 1, INF, True) and v[0] <= v[1],
     "the fewest and the most, such as (1, 3)"),
    (("jitter",), lambda v: _numbers(v, 4, 0, 1) and v[3] <= .5,
     "brightness, contrast, saturation (0 to 1) and hue (0 to .5)"))


@dataclass(frozen=True)
class Policy:
    "What happens to a training picture: colour, then geometry, then holes. Raises: InputError out of range"
    name: str
    pad: int = 0                # pixels added on each side before a random crop back to the picture's size
    mode: str = "reflect"       # of padding and rotation: "reflect" or "constant" (`fill`)
    fill: float | str = "mean"  # pixel value 0…255 of borders and cutout; "mean": of the training set
    flip: float | str = 0.0     # probability of a horizontal flip; "alternate": in every other epoch
    cutout: int = 0             # side of a hole, pixels
    holes: tuple = (1, 1)       # fewest and most holes
    cutout_p: float = 1.0       # probability that a picture gets holes
    rotate: float = 0.0         # degrees: the angle is drawn from ±rotate
    rotate_p: float = 0.5
    jitter: tuple = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue: how far each may go
    jitter_p: float = 0.5
    grey_p: float = 0.0         # probability of a picture in grey
    sizes: tuple = ()           # (epoch, side in pixels): scaled to that side from that epoch on

    def __post_init__(self):
        for names, fits, allowed in _ALLOWED:
            for name in names:
                value = getattr(self, name)
                if not fits(value): raise InputError(f"policy {self.name}: {name}={value!r}. Give {allowed}.")
        modes = ("reflect", "constant")
        if self.mode not in modes: raise UnknownName("padding mode", self.mode, modes)

    def __str__(self):
        changed = (f for f in fields(self) if f.name != "name" and getattr(self, f.name) != f.default)
        return f"{self.name}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"

    def but(self, **changes) -> "Policy":
        "The same policy with some values changed. Raises: InputError for an unknown field"
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known: raise UnknownName("policy field", name, known)
        return replace(self, **changes)

    def as_dict(self) -> dict:
        "Plain values, for recipe.json"
        return asdict(self)


def side_at(
    sizes: tuple[tuple[int, int], ...],    # (epoch, side in pixels), the first from epoch 0
    epoch: int,
) -> int:
    "The side that pictures have in an epoch"
    return [side for first, side in sizes if first <= epoch][-1]


def none() -> Policy:
    "Pictures as they are"
    return Policy("none")


def pad_crop(pad: int = 4, **more) -> Policy:
    "Pad by reflection and crop at random"
    return Policy("pad_crop", pad=pad, **more)


def pad_crop_flip(pad: int = 4, flip: float | str = 0.5, **more) -> Policy:
    "Pad by reflection, crop at random and mirror half of the pictures"
    return Policy("pad_crop_flip", pad=pad, flip=flip, **more)


def pad_crop_flip_cutout(pad: int = 4, flip: float | str = 0.5, cutout: int = 8, **more) -> Policy:
    "Pad, crop, mirror, and cover a square with the mean colour"
    return Policy("pad_crop_flip_cutout", pad=pad, flip=flip, cutout=cutout, **more)


_NAMED = {f.__name__: f for f in (none, pad_crop, pad_crop_flip, pad_crop_flip_cutout)}


def named(name: str) -> Policy:
    "The policy of that name with its defaults. Raises: InputError with the nearest names"
    if name not in _NAMED: raise UnknownName("augmentation policy", name, _NAMED)
    return _NAMED[name]()


def from_dict(
    values: dict,    # as `Policy.as_dict` gives them; what is left out is the named policy's, or `none`'s
) -> Policy:
    "A policy out of JSON. Raises: InputError for an unknown field or a value out of range"
    name = values.get("name", "own")
    start = named(name) if name in _NAMED else Policy(name)
    return start.but(**{k: _tuples(v) for k, v in values.items()})


def _tuples(v): return tuple(map(_tuples, v)) if isinstance(v, list) else v
