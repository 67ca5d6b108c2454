"""What the page of a run says, as plain values: numbers, tables, and the pictures of the explorer."""
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fastai.torch_core import get_model
from torch import Tensor

from ..explain import ImageInterpretation, clean_dl, decode_pictures, inputs_of
from ..gradcam import cam_of, stages_of
from ..training import precision_of
from .neighbours import features_of, nearest
from .sprites import map_sheet, picture_sheet

__all__ = ["Explorer", "accuracy_interval", "confused_pairs", "explorer", "in_json"]

RIGHT = 200          # right answers that are shown: those with the largest loss
NEAR = 5             # training pictures beside a mistake
TOP = 5              # classes with their probabilities
SIDE = 64            # pixels: larger pictures are shown smaller


def accuracy_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    "Of an accuracy, 95 % (Wilson 1927)"
    share = right / n
    middle, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** .5
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def confused_pairs(
    interp: ImageInterpretation,
    n: int = 6,                  # pairs, the most frequent first
    each: int = 3,               # pictures of each, the surest first
) -> list[dict]:                 # actual, predicted, count, pictures
    "Which class is most often taken for which"
    cm = interp.confusion_matrix()
    np.fill_diagonal(cm, 0)
    order = np.argsort(-cm, axis=None, kind="stable")[:n]
    surest, found = interp.misclassified(by="confidence"), []
    for true, predicted in zip(*np.unravel_index(order, cm.shape)):
        if not cm[true, predicted]: break
        of = [i for i in surest.tolist() if interp.targs[i] == true and interp.decoded[i] == predicted]
        found.append({"actual": int(true), "predicted": int(predicted), "count": int(cm[true, predicted]),
                      "pictures": of[:each]})
    return found


@dataclass(frozen=True)
class Explorer:
    "The pictures that can be looked at, mistakes first, and what is known of each"
    data: dict                   # JSON values, for the script
    places: dict[int, int]       # index in the test set → place on the sheet


def explorer(
    interp: ImageInterpretation,
    layer: str | None = None,        # of the map that is shown first; None: `default_layer`
    features: Tensor | None = None,  # (N,D) of the training pictures; None: another pass finds them
    names: Sequence[str] = (),       # of the test pictures' files
) -> Explorer:
    "All mistakes, the worst first, and the right answers with the largest loss"
    wrong = interp.misclassified().tolist()
    right = [i for i in interp.top_losses()[1].tolist() if interp.correct[i]][:RIGHT]
    shown, probs = [*wrong, *right], interp.preds
    top = probs[shown].topk(min(TOP, probs.shape[1]), 1)
    data = {
        "n": len(interp), "mistakes": len(wrong), "index": shown,
        "name": [str(names[i]) for i in shown] if names else [],
        "true": interp.targs[shown].tolist(), "predicted": interp.decoded[shown].tolist(),
        "loss": _rounded(interp.losses[shown]), "confidence": _rounded(interp.confidence[shown]),
        "top": [[[c, round(p, 3)] for c, p in zip(*row)] for row in
                zip(top.indices.tolist(), top.values.tolist())],
        "of_true": _rounded(probs[shown, interp.targs[shown]]),
        "pictures": picture_sheet(_small(interp.dl, shown)).as_dict(), "maps": _maps(interp, shown, layer),
        **_near(interp, wrong, features)}
    return Explorer(data, {i: k for k, i in enumerate(shown)})


def in_json(data: dict) -> str:
    "For a `<script>`: nothing in it can end the element"
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rounded(values: Tensor) -> list[float]: return [round(v, 4) for v in values.tolist()]


def _small(dl, idxs: Sequence[int]) -> np.ndarray:     # (n,h,w,3) uint8
    "The pictures at `idxs`, none larger than `SIDE`"
    parts = (decode_pictures(dl, inputs_of(dl, idxs[k:k + 500])) for k in range(0, len(idxs), 500))
    return np.concatenate([_as_bytes(part) for part in parts])


def _as_bytes(x: np.ndarray) -> np.ndarray:
    import cv2
    x = (255 * x).round().clip(0, 255).astype(np.uint8)
    h, w = x.shape[1:3]
    if max(h, w) <= SIDE: return x
    size = (max(1, w * SIDE // max(h, w)), max(1, h * SIDE // max(h, w)))
    return np.stack([cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in x])


def _maps(interp: ImageInterpretation, shown: list[int], layer: str | None) -> list[dict]:
    """Grad-CAM of each picture for its predicted and its true class, at the layer of the run and every stage,
    in two passes over the pictures, one for each class. Stages by LayerCAM, which holds at early ones too"""
    model = get_model(interp.learn.model)
    first = cam_of(model, layer).names
    layers = [*first, *(name for name in stages_of(model) if name not in first)]
    methods = {name: "gradcam" if name in first else "layercam" for name in layers}
    cam, device, found = cam_of(model, layers), next(model.parameters()).device, []
    with precision_of(interp.learn):
        for k in range(0, len(shown), 100):
            part = shown[k:k + 100]
            xb = inputs_of(interp.dl, part).to(device)
            targets = [interp.decoded[part].to(device), interp.targs[part].to(device)]
            found.append(cam.together(xb, targets, method=methods, autocast=True))
    return [{"layer": name, "method": methods[name],
             **{kind: map_sheet(_coarse(torch.cat([outs[t].maps_by_layer[name] for outs in found]))).as_dict()
                for t, kind in enumerate(("predicted", "true"))}} for name in cam.names]


def _coarse(maps: Tensor) -> np.ndarray:
    "Half the pictures' side: what is left out, no eye sees between the pixels of an upsampled map"
    return torch.nn.functional.avg_pool2d(maps[:, None].float(), 2).squeeze(1).cpu().numpy()


def _near(interp: ImageInterpretation, wrong: list[int], features: Tensor | None) -> dict:
    "The training pictures nearest to each mistake, with their labels: was it a label error?"
    dls = interp.learn.dls
    if not wrong or not len(dls.train.dataset): return {"near": [], "near_sheet": None}
    batches = ([inputs_of(interp.dl, wrong[k:k + 100])] for k in range(0, len(wrong), 100))
    own = features_of(interp.learn, batches)
    if not own.numel(): return {"near": [], "near_sheet": None}
    clean = clean_dl(interp.learn, 0)
    if features is None: features = features_of(interp.learn, clean)
    places, cosines = nearest(own, features.cpu(), NEAR)
    used = sorted({p for row in places.tolist() for p in row})
    at = {p: k for k, p in enumerate(used)}
    labels = [int(clean.dataset.tls[-1][p]) for p in used]
    return {"near": [[[at[p], round(c, 3)] for p, c in zip(ps, cs)]
                     for ps, cs in zip(places.tolist(), cosines.tolist())],
            "near_index": used, "near_label": labels,
            "near_sheet": picture_sheet(_small(clean, used), quality=60).as_dict()}
