"""Can the maps of this net be believed? Insertion and deletion of the maps that are shown, against noise.

    found = measure_maps(net, xb, classes, [("layer3", "gradcam"), ("layer4+layer2", "gradcam")])
    found[0].caption                # gradcam at layer3: insertion 0.45, deletion 0.52 (noise 0.50, 0.51) …
    warnings_of(found[:1], found[1:])       # [], or one line: gradcam at layer3 is not better than noise …
"""
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from .cam import cam_of, stages_of
from .faithfulness import insertion_deletion, paired_ci, random_maps
from .methods import upsample

__all__ = ["Evidence", "affordable", "measure_maps", "usual_pairs", "warnings_of"]

STEPS, TOL = 8, .02         # of `insertion_deletion`
PASSES = 2 * 2 * STEPS      # at most, a picture and map: insertion and deletion, the map's and its noise's
SHARE, TOTAL = .05, 9_000   # of a training's work; passes: half a minute of a ResNet-18 on two cores
LEAST, MOST = 20, 100       # pictures


@dataclass(frozen=True)
class Evidence:
    "How early the class's probability rises and falls in the order of a net's maps, and in one of noise"
    layer: str
    method: str
    pictures: int
    insertion: float                                # mean AUC in 0…1: the larger the better
    deletion: float                                 # the smaller the better
    noise: tuple[float, float]                      # both of maps that know nothing, of the same size
    insertion_gain: tuple[float, float, float]      # difference to noise, low and high of its 95 % interval
    deletion_gain: tuple[float, float, float]

    @property
    def better(self) -> bool:
        "Better than noise: both intervals lie on the good side of 0"
        return self.insertion_gain[1] > 0 > self.deletion_gain[2]

    @property
    def caption(self) -> str:
        "One line for below a figure"
        said = "" if self.better else "NOT better than noise: "
        return (f"{said}{self.method} at {self.layer}: insertion {self.insertion:.2f}, deletion "
                f"{self.deletion:.2f} (noise {self.noise[0]:.2f}, {self.noise[1]:.2f}; "
                f"{self.pictures} pictures)")

    def as_dict(self) -> dict:
        "For results.json"
        return asdict(self) | {"better_than_noise": self.better}


def affordable(
    trained: int,       # pictures that a training saw, each as often as it did
    of: int,            # pictures there are
    maps: int = 1,      # whose maps are measured on the same pictures
) -> int:               # 0 where it is too few to tell anything
    """For how many pictures maps can be measured within `SHARE` of a training's work, where a picture costs
    as much as three forward passes, and within `TOTAL`"""
    n = min(MOST, of, int(min(SHARE * 3 * trained, TOTAL) / (PASSES * maps)))
    return n if n >= min(LEAST, of) else 0


def measure_maps(
    model: nn.Module,
    xb: Tensor,                              # (N,C,H,W) float, normalised
    target: Tensor | None,                   # (N,) the classes whose maps are measured; None: predicted
    pairs: Sequence[tuple],                  # layers and method of each kind of map, as `GradCAM` takes them
    *,
    autocast: bool = False,                  # True: insertion and deletion under the caller's autocast
    seed: int = 0,                           # of the noise and the bootstrap
) -> list[Evidence]:
    "How well each kind of map shows what the net uses. Raises `InputError`"
    size, found, noise = tuple(xb.shape[-2:]), [], {}
    areas = lambda maps: insertion_deletion(model, xb, maps, target, STEPS, tol=TOL, autocast=autocast)
    for layers, method in pairs:
        out = cam_of(model, layers)(xb, target, method=method, bs=64)
        target = out.target
        for layer, raw in out.raw_by_layer.items():
            grid = tuple(raw.shape[1:])
            if grid not in noise: noise[grid] = areas(random_maps(len(xb), size, grid, seed))
            mine = areas(upsample(raw, size))
            gains = [paired_ci(a, b, seed=seed) for a, b in zip(mine, noise[grid])]
            means = [a.mean().item() for a in (*mine, *noise[grid])]
            found.append(Evidence(layer, method, len(xb), *means[:2], tuple(means[2:]), *gains))
    return found


def usual_pairs(model: nn.Module) -> list[tuple]:
    "Layers and methods worth trying on any net: the default layer, and LayerCAM at each stage"
    return [(None, "gradcam"), (stages_of(model) or None, "layercam")]


def warnings_of(
    shown: Sequence[Evidence],      # of the maps that are looked at
    others: Sequence[Evidence],
) -> list[str]:                     # one line for each that is not better than noise
    "The figures of maps that are not to be believed, and the best of those that are"
    good = sorted((e for e in (*shown, *others) if e.better), key=lambda e: e.deletion - e.insertion)
    way_out = (f"Take {good[0].method} at {good[0].layer}: {_gains(good[0])}." if good else
               "Nor is any other that was tried: do not believe this net's maps.")
    return [f"{e.method} at {e.layer} is not better than noise on this net: {_gains(e)} beside it, "
            f"n={e.pictures}. {way_out}" for e in shown if not e.better]


def _gains(e: Evidence) -> str:
    parts = zip(("insertion", "deletion"), (e.insertion_gain, e.deletion_gain))
    return ", ".join(f"{name} {mean:+.3f} ({low:+.3f} … {high:+.3f})" for name, (mean, low, high) in parts)
