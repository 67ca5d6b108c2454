"""report.html: what a run came to, where it is wrong and why, in one file.

    write_report(folder, interp, results, history=rows, found=found, lrs=lrs, features=recorder.features)

Text goes through Jinja2's escaping; pictures are data URIs; the script needs no library and makes no request.
"""
import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..explain import ImageInterpretation
from ..files import save_atomically
from ..recipe import counted
from .content import accuracy_interval, confused_pairs, explorer, in_json
from .render import render
from .svg import Line, Mark, line_chart

__all__ = ["write_report"]

SUREST = 12          # of the surest mistakes are shown above all others


def write_report(
    folder: str | Path,                  # the run folder; figures/gradcam_epochs.png is shown if it is there
    interp: ImageInterpretation,         # of the test set
    results: Mapping,                    # what results.json holds
    *,
    history: Sequence[Mapping] = (),     # a row an epoch
    found=None,                          # the range test: a `FoundRate`
    lrs: Sequence[float] = (),           # the rate of each step
    command: str = "",                   # that repeats the run
    layer: str | None = None,            # of the maps that are shown first
    features=None,                       # (N,D) of the training pictures, see `FeatureRecorder`
) -> Path:
    "Write `folder`/report.html"
    folder = Path(folder)
    explored = explorer(interp, layer, features, _names(interp))
    strip = folder / "figures" / "gradcam_epochs.png"
    page = render("report.html.j2", {
        "results": results, "classes": interp.names, "facts": _facts(results, interp, command),
        "charts": _charts(history, found, lrs, results), "calibration": _calibration(interp),
        "history": list(history), "per_class": interp.per_class().to_dict("records"),
        "confusion": interp.confusion_matrix().tolist(), "pairs": confused_pairs(interp),
        "surest": interp.misclassified(SUREST, by="confidence").tolist(),
        "place": explored.places, "explorer": in_json(explored.data | {"classes": list(interp.names)}),
        "strip": _figure(strip) if strip.exists() else None}, "report.js")
    save_atomically(folder / "report.html", page)
    return folder / "report.html"


def _names(interp: ImageInterpretation) -> list[str]:
    "What a person can find a test picture by: its file's name where it has one"
    files = getattr(getattr(interp.learn.dls, "data", None), "files_test", None)
    return [str(f) for f in files] if files is not None and len(files) == len(interp) else []


def _facts(results: Mapping, interp: ImageInterpretation, command: str) -> list[tuple[str, str]]:
    "What a reader asks first"
    n, low, high = len(interp), *accuracy_interval(int(interp.correct.sum()), len(interp))
    rows = [("95 % interval", f"{_percent(low)} … {_percent(high)} ({counted(n, 'test picture')})")]
    rows += [(f"with {results['tta']} TTA", _percent(results[k])) for k in ["accuracy_tta"] if k in results]
    rows += [("mistakes", f"{results['mistakes']:,}"), ("cross-entropy", f"{results['cross_entropy']:.4f}"),
             ("calibration error", f"{results['ece']:.3f}"),
             ("data", f"{Path(results['data']).name}, "
                      f"{counted(results['training_pictures'], 'training picture')}"),
             ("recipe", f"{results['recipe']}, {counted(results['epochs'], 'epoch')}, batches of "
                        f"{results['bs']}, rate {results['lr']:.3g}, seed {results['seed']}"),
             ("net", f"{results['parameters']:,} parameters, {results['precision']}"),
             ("time", f"{_minutes(results['seconds'])} on {results['device']}"),
             ("versions", ", ".join(f"{k} {v}" for k, v in results["versions"].items()))]
    return [*rows, ("run it again", command)] if command else rows


def _percent(share: float) -> str: return f"{100 * share:.2f} %"
def _minutes(seconds: float) -> str: return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _charts(history, found, lrs, results: Mapping) -> list[tuple[str, str]]:
    "Heading and drawing of what training recorded"
    charts, per_cent = [], lambda v: _percent(v / 100)
    if found is not None and len(found.lrs):
        marks = [Mark(f"{name} {rate:.3g}", rate) for name, rate in found.suggestions.items()]
        if found.chosen: marks.append(Mark(f"chosen {found.chosen:.3g}", found.chosen))
        low = min(v for v in found.losses if v == v)
        top = sorted(v for v in found.losses if v == v)[-max(1, len(found.losses) // 8)]
        charts.append(("Range test", line_chart(
            [Line("loss", found.lrs, found.losses)], "learning rate", "loss", marks=marks,
            title="Smoothed loss against the learning rate of the range test", log=found.mode == "exp",
            y_range=(low - .05 * (top - low), top + .1 * (top - low)))))
    if len(lrs):
        steps = max(1, len(lrs) // 400)
        xs = [results["epochs"] * k / len(lrs) for k in range(0, len(lrs), steps)]
        rates = Line("rate", xs, list(lrs[::steps]))
        charts.append(("Schedule", line_chart([rates], "epoch", "learning rate", y_range=(0, max(lrs)),
                                              title="Learning rate over the epochs")))
    if epochs := [row["epoch"] for row in history]:
        losses = [Line(name.replace("_loss", ""), epochs, [row.get(name) for row in history])
                  for name in ("train_loss", "valid_loss")]
        charts.append(("Loss", line_chart(losses, "epoch", "loss", title="Loss over the epochs")))
        share = [None if row.get("accuracy") is None else 100 * row["accuracy"] for row in history]
        line = Line("validation", epochs, share, per_cent)
        charts.append(("Accuracy", line_chart([line], "epoch", "accuracy, %",
                                              title="Validation accuracy over the epochs")))
    return charts


def _calibration(interp: ImageInterpretation) -> str:
    bins, tell = interp.calibration().bins.dropna(), lambda v: f"{v:.1f} % right"
    lines = [Line("confidence = accuracy", [0, 100], [0, 100], tell),
             Line("measured", list(100 * bins["confidence"]), list(100 * bins["accuracy"]), tell)]
    return line_chart(lines, "confidence, %", "accuracy, %", title="Accuracy against confidence",
                      y_range=(0, 100))


def _figure(path: Path) -> str:
    "A PNG as a data URI, in WebP, which is shorter"
    from PIL import Image
    file = io.BytesIO()
    with Image.open(path) as image: image.convert("RGB").save(file, "WEBP", quality=80, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
