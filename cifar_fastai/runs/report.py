"""The figures and numbers of a run folder.

    write_data(out, dls)                                                   # what the net is shown
    write_training(out, history=rows, lrs=lrs, moms=moms, found=found)     # what training recorded
    write_interpretation(out, interp, layer="layer3")                      # what came of it
    results |= numbers(interp)

The `write_` functions put PNG files into `out/figures`, over those that are there, and return name → path.
Nothing here trains, predicts or chooses."""
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fastai.torch_core import get_model
from matplotlib.figure import Figure

from .. import plots
from ..explain import ImageInterpretation, clean_dl, decode_pictures, inputs_of
from ..gradcam import Evidence, affordable, cam_of, default_layer, stages_of

__all__ = ["FoundRate", "measure_evidence", "numbers", "plot_batch", "plot_classes", "write_data",
           "write_interpretation", "write_training"]

LAYERS_METHOD = "layercam"      # of gradcam_layers.png: it holds at early layers, too


class FoundRate(NamedTuple):
    "What a learning-rate finder saw and what was made of it"
    lrs: Sequence[float]
    losses: Sequence[float]            # smoothed loss at each rate
    suggestions: Mapping[str, float]   # method → rate
    chosen: float | None = None        # the rate to train with
    mode: str = "exp"                  # how the rate rose: "exp" or "linear"
    on: str = "train"                  # whose loss: "train" or "holdout"


def plot_batch(
    pictures,                  # (N,H,W,3) in 0…1 or 0…255, not normalised
    labels: Sequence[int],     # (N,)
    classes: Sequence[str],
    **kwargs,                  # for the grid: nrows, ncols, figsize, title
) -> Figure:
    "Pictures as the net gets them, under their class names"
    return plots.show_grid(pictures, [classes[int(y)] for y in labels], **kwargs)


def plot_classes(
    pictures,                  # (N,H,W,3)
    labels: Sequence[int],     # (N,)
    classes: Sequence[str],
    each: int = 5,             # pictures a class; places stay empty where there are fewer
    ncols: int = 10,           # classes in a row of columns
    **kwargs,                  # for the grid: figsize, title
) -> Figure:
    "A column of pictures for each class"
    empty, tiles = np.ones((1, 1, 3)), []
    columns = [[p for p, y in zip(pictures, labels) if int(y) == c][:each] for c in range(len(classes))]
    for start in range(0, len(classes), ncols):
        block = range(start, min(start + ncols, len(classes)))
        for row in range(each):
            for c in block: tiles.append(plots.Tile(columns[c][row] if row < len(columns[c]) else empty,
                                                    plots.short(classes[c], 12) if row == 0 else ""))
            tiles += [plots.Tile(empty)] * (min(ncols, len(classes)) - len(block))
    return plots.show_tiles([[t] for t in tiles], ncols=min(ncols, len(classes)), size=.8, fontsize=7.5,
                            **kwargs)


def _write(out: str | Path, figures: Mapping[str, Callable[[], Figure]]) -> dict[str, Path]:
    folder = Path(out) / "figures"
    with plots.offscreen():
        return {k: plots.save_figure(draw(), folder / f"{k}.png") for k, draw in figures.items()}


def write_training(
    out: str | Path,                          # the run folder
    history=None,                             # table or rows: epoch, train_loss, valid_loss, accuracy …
    lrs: Sequence[float] | None = None,       # learning rate of each step
    moms: Sequence[float] | None = None,      # momentum of each step
    steps_per_epoch: int | None = None,
    found: FoundRate | None = None,           # of the learning-rate finder
) -> dict[str, Path]:
    "Write curves, lr_schedule and lr_find, each where its data is given"
    figures = {}
    if history is not None: figures["curves"] = lambda: plots.plot_curves(history)
    if lrs is not None: figures["lr_schedule"] = lambda: plots.plot_lr_schedule(lrs, moms, steps_per_epoch)
    if found is not None: figures["lr_find"] = lambda: plots.plot_lr_find(*found)
    return _write(out, figures)


def write_data(
    out: str | Path,       # the run folder
    dls,                   # fastai DataLoaders
    n: int = 25,           # pictures of the batch
    each: int = 5,         # pictures a class
) -> dict[str, Path]:
    "Write batch (augmented, as training sees it) and classes (not augmented)"
    dl = dls.train.new(bs=min(n, len(dls.train.dataset)), num_workers=0)   # a copy: its epochs do not count
    xb, yb = next(iter(dl))
    classes, clean = list(map(str, dl.vocab)), clean_dl(None, dl=dls.train)
    idxs, labels = _of_each(clean.dataset, len(classes), each)
    shown, examples = decode_pictures(dl, xb), decode_pictures(clean, inputs_of(clean, idxs))
    return _write(out, {"batch": lambda: plot_batch(shown, yb.tolist(), classes),
                        "classes": lambda: plot_classes(examples, labels, classes, each)})


def _of_each(dataset, n_classes: int, each: int) -> tuple[list[int], list[int]]:
    "Indices and labels of `each` items of each class, found without opening pictures"
    taken, order = {c: [] for c in range(n_classes)}, np.random.default_rng(0).permutation(len(dataset))
    for i in order.tolist():
        c = int(dataset.tls[-1][i])
        if len(taken[c]) < each: taken[c].append(i)
        if all(len(t) == each for t in taken.values()): break
    return [i for t in taken.values() for i in t], [c for c, t in taken.items() for _ in t]


def write_interpretation(
    out: str | Path,               # the run folder
    interp: ImageInterpretation,
    layer=None,                    # of the heat maps; None: `gradcam.default_layer`
    n: int = 20,                   # misclassified pictures
    cams: int = 10,                # of them with heat maps
    evidence: Mapping[str, Sequence[Evidence]] | None = None,   # by figure, for the captions of heat maps
) -> dict[str, Path]:
    "Write top_losses, misclassified, gradcam, gradcam_layers, confusion, per_class and calibration"
    below = lambda name: "\n".join(e.caption for e in (evidence or {}).get(name, ()))
    return _write(out, {
        "top_losses": lambda: interp.plot_top_losses(10),
        "misclassified": lambda: interp.plot_misclassified(n),
        "gradcam": lambda: interp.plot_gradcam(cams, layer, caption=below("gradcam")),
        "gradcam_layers": lambda: plot_layers(interp, caption=below("gradcam_layers")),
        "confusion": interp.plot_confusion_matrix, "per_class": interp.plot_per_class,
        "calibration": interp.plot_calibration})


def plot_layers(interp: ImageInterpretation, **kwargs) -> Figure:     # kwargs: for `Gallery.plot_gradcam`
    "The worst mistakes and the surest right answers, a class each, with the evidence in `layer1` … `layer4`"
    layers, surest = stages_of(get_model(interp.learn.model)) or None, {}
    for i in interp.losses.argsort(stable=True).tolist():
        if interp.correct[i]: surest.setdefault(int(interp.targs[i]), i)
    chosen = [*interp.misclassified(4).tolist(), *islice(surest.values(), 4)]
    return interp.plot_gradcam(chosen, layers, "pred", LAYERS_METHOD, ncols=1, **kwargs)


def measure_evidence(
    interp: ImageInterpretation,
    layer=None,                # of the heat maps, as for `write_interpretation`
    trained: int = 0,          # pictures that the training saw, each as often as it did
) -> dict[str, list[Evidence]]:     # empty where too few pictures could be measured in its share of the time
    """Insertion and deletion of the maps in gradcam and gradcam_layers, by the name of the figure; and of the
    default map, under that word, where another was chosen"""
    model = get_model(interp.learn.model)
    kinds = {"gradcam": (layer, "gradcam"), "gradcam_layers": (stages_of(model) or None, LAYERS_METHOD)}
    if layer not in (None, default_layer(model)): kinds["default"] = (None, "gradcam")
    maps = {kind: len(cam_of(model, layers).names) for kind, (layers, _) in kinds.items()}
    n = affordable(trained, len(interp), sum(maps.values()))
    found = iter(interp.gradcam_evidence(n, list(kinds.values())) if n else ())
    return {kind: list(islice(found, k)) for kind, k in maps.items()} if n else {}


def cross_entropy(interp: ImageInterpretation) -> float:
    "Mean of -log of the probability of the true class"
    true = interp.preds[range(len(interp)), interp.targs].double()
    return -true.clamp_min(1e-38).log().mean().item()           # the least that float32 holds


def numbers(interp: ImageInterpretation) -> dict:
    """accuracy, loss (the training's own), cross-entropy (without label smoothing: comparable), accuracy_tta
    where there is one, expected calibration error, counts, and the accuracy of each class"""
    found = interp.per_class().set_index("class")["accuracy"]
    res = {"accuracy": interp.accuracy, "accuracy_tta": interp.accuracy_tta, "loss": interp.loss,
           "cross_entropy": cross_entropy(interp), "ece": interp.calibration().ece,
           "pictures": len(interp), "mistakes": len(interp.misclassified()),
           "accuracy_per_class": {c: None if np.isnan(a) else float(a) for c, a in found.items()}}
    return {k: v for k, v in res.items() if v is not None}
