"""Can the maps of this net be believed? Insertion and deletion of the maps that are shown, against noise.

    found = measure_maps(net, xb, classes, [("layer3", "gradcam"), ("layer4+layer2", "gradcam")])
    found[0].caption                # gradcam at layer3: insertion 0.45, deletion 0.52 (noise 0.50, 0.51) …
    warning_of(found)               # None, or: … is not better than noise on this net …, layer4+layer2 is …
"""
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from .cam import cam_of, default_layer, stages_of
from .faithfulness import insertion_deletion, paired_ci, random_maps
from .methods import upsample

__all__ = ["Evidence", "affordable", "measure_maps", "usual_pairs", "warning_of"]

STEPS, TOL = 16, .02        # of `insertion_deletion`: about PASSES passes a picture and map
PASSES, LEAST, MOST = 20, 20, 100


@dataclass(frozen=True)
class Evidence:
    "How early the class's probability rises and falls in the order of a net's maps, and in one of noise"
    layer: str
    method: str
    pictures: int
    insertion: float                                # mean AUC in 0…1: the larger the better
    deletion: float                                 # the smaller the better
    noise: tuple[float, float]                      # both of maps that know nothing
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
    """For how many pictures maps can be measured within a twentieth of a training's time: there a picture
    costs as much as three forward passes"""
    n = min(MOST, of, int(.05 * 3 * trained / (PASSES * (maps + 1))))      # and noise
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
    size, found = tuple(xb.shape[-2:]), []
    target = cam_of(model, pairs[0][0])(xb, target, bs=64).target
    areas = lambda maps: insertion_deletion(model, xb, maps, target, STEPS, tol=TOL, autocast=autocast)
    noise = None
    for layers, method in pairs:
        for layer, raw in cam_of(model, layers)(xb, target, method=method, bs=64).raw_by_layer.items():
            if noise is None: noise = areas(random_maps(len(xb), size, tuple(raw.shape[1:]), seed))
            mine = areas(upsample(raw, size))
            gains = [paired_ci(a, b, seed=seed) for a, b in zip(mine, noise)]
            means = [a.mean().item() for a in (*mine, *noise)]
            found.append(Evidence(layer, method, len(xb), *means[:2], tuple(means[2:]), *gains))
    return found


def usual_pairs(model: nn.Module) -> list[tuple]:
    "Layers and methods worth trying on any net: the default, and LayerCAM at each stage"
    stages = stages_of(model)
    return [(default_layer(model), "gradcam"), *([(stages, "layercam")] if stages else [])]


def warning_of(
    found: Sequence[Evidence],      # the first: of the maps that are shown
) -> str | None:
    "One line where the first is not better than noise: with its figures and the best of the others"
    first, *others = found
    if first.better: return None
    figures = lambda e: (f"insertion {e.insertion_gain[0]:+.3f} ({e.insertion_gain[1]:+.3f} … "
                         f"{e.insertion_gain[2]:+.3f}), deletion {e.deletion_gain[0]:+.3f} "
                         f"({e.deletion_gain[1]:+.3f} … {e.deletion_gain[2]:+.3f})")
    good = sorted((e for e in others if e.better), key=lambda e: e.deletion - e.insertion)
    way_out = (f"Take {good[0].method} at {good[0].layer}: {figures(good[0])}." if good else
               "So is none of the others tried: do not believe this net's maps.")
    return (f"{first.method} at {first.layer} is not better than noise on this net: {figures(first)} beside "
            f"it, n={first.pictures}. {way_out}")
