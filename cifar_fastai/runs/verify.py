"""Verify a run folder: are its files complete, and do they agree? `python -m recipes verify runs/demo`

Compares every file with SHA256SUMS, the results with the predictions, the weights with the last checkpoint.
"""
import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..checkpoints import CheckpointError, CheckpointStore, verified
from ..errors import InputError
from ..files import TEMPORARY, read_json, sha256_of
from ..machine import versions
from ..weights import read_tensors
from .run_folder import SUMS, begun, holds_run, listed_sums, recipe_of, saved_recipe, sealed_files

__all__ = ["verify_run"]

FIGURES = ("batch", "lr_schedule", "curves", "top_losses", "misclassified", "gradcam", "confusion",
           "per_class")
NEEDED = ("results.json", "history.csv", "recipe.json", "weights.safetensors", "predictions.csv",
          *(f"figures/{name}.png" for name in FIGURES))


def verify_run(
    folder: str | Path,                # of a run
) -> tuple[list[str], list[str]]:      # faults, and notes: lines to print
    "Look at every file of a run. Raises: InputError where `folder` is no run's"
    folder = Path(folder)
    if not folder.is_dir(): raise InputError(f"{folder} is no folder. Give the folder of a run.")
    if not holds_run(folder) or not any(folder.iterdir()):
        raise InputError(f"{folder} is no run's folder. Give the folder of a run.")
    wrong = []
    for part in (_files, _leftovers, _checkpoints, _recipe, _predictions, _history, _weights):
        try: wrong += part(folder)
        except InputError as error: wrong.append(str(error))
    notes = []
    with suppress(InputError): notes = [*_other_versions(begun(folder).get("versions"))]
    return list(dict.fromkeys(wrong)), notes


def _files(folder: Path) -> Iterator[str]:
    "Against SHA256SUMS, which is written last"
    if not (folder / SUMS).exists():
        gone = [n for n in NEEDED if not (folder / n).exists()]
        yield f"the run did not end: no {SUMS}" + (f", nor {', '.join(gone)}" if gone else "") + \
              f". Go on with --resume {folder}"
        return
    listed = listed_sums(folder)
    yield from (f"{name} is not in {SUMS}" for name in NEEDED if name not in listed)
    for name, digest in listed.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            yield f"{SUMS} names {name!r}, which lies outside"
        elif not path.is_file(): yield f"{name} is missing"
        elif sha256_of(path) != digest: yield f"{name} is not what was written (sha256)"
    new = (p.relative_to(folder).as_posix() for p in sealed_files(folder))
    yield from (f"{name} was put there after the run" for name in new if name not in listed)


def _leftovers(folder: Path) -> Iterator[str]:
    for path in sorted(p for p in folder.rglob("*.tmp") if TEMPORARY.fullmatch(p.name)):
        yield f"{path.relative_to(folder)} was left by a save that was cut short"


def _checkpoints(folder: Path) -> Iterator[str]:
    paths = sorted((folder / "checkpoints").glob("epoch-*.json"))
    if not paths: yield "there is no checkpoint"
    for path in paths:
        try: verified(path.with_suffix(".pt"))
        except CheckpointError as error: yield f"checkpoints/{error}"


def _recipe(folder: Path) -> Iterator[str]:
    recipe = recipe_of(folder)
    if not (folder / "results.json").exists(): return
    results = read_json(folder / "results.json")
    for name, value in {"recipe": recipe.name, "seed": recipe.seed, "epochs": recipe.epochs}.items():
        if results.get(name) != value:
            yield f"results.json says {name} {results.get(name)}, recipe.json {value}"


def _predictions(folder: Path) -> Iterator[str]:
    "The numbers of results.json, computed again from predictions.csv"
    if not (folder / "results.json").exists() or not (folder / "predictions.csv").exists(): return
    results, rows = read_json(folder / "results.json"), _rows(folder / "predictions.csv")
    try:
        right, n = [row["true"] == row["predicted"] for row in rows], len(rows)
        found = {"pictures": n, "mistakes": n - sum(right), "accuracy": sum(right) / n,
                 "loss": sum(float(row["loss"]) for row in rows) / n}
        said = {name: float(results.get(name, "nan")) for name in found}
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"predictions.csv or results.json cannot be read ({error!r})") from error
    for name, value in found.items():
        if not abs(said[name] - value) <= 2e-5 * max(1, abs(value)):
            yield f"results.json says {name} {said[name]:.6g}, predictions.csv gives {value:.6g}"


def _history(folder: Path) -> Iterator[str]:
    "A row an epoch"
    if not (folder / "history.csv").exists(): return
    epochs = [row.get("epoch") for row in _rows(folder / "history.csv")]
    wanted = saved_recipe(folder).get("epochs")
    if isinstance(wanted, int) and epochs != [str(k + 1) for k in range(wanted)]:
        yield f"history.csv has epochs {', '.join(map(str, epochs[:30]))}, not 1 to {wanted}"


def _weights(folder: Path) -> Iterator[str]:
    "Finite, of the net that the results are about, and those of the last checkpoint"
    if not (folder / "weights.safetensors").exists(): return
    tensors, about = read_tensors(folder / "weights.safetensors")
    if bad := [name for name, v in tensors.items() if not v.isfinite().all()]:
        yield f"weights.safetensors is not finite: {', '.join(bad)}"
    if (folder / "results.json").exists():
        classes = list(read_json(folder / "results.json").get("accuracy_per_class", {}))
        if classes != list(about.classes): yield "weights.safetensors and results.json have different classes"
    last = CheckpointStore(folder / "checkpoints").newest()
    if last is None or recipe_of(folder).keep.name != "last": return
    with suppress(InputError):                             # said by `_checkpoints`
        saved = verified(last)["model"]
        same = saved.keys() == tensors.keys() and all(v.equal(tensors[k]) for k, v in saved.items())
        if not same: yield f"weights.safetensors has other weights than {last.name}"


def _rows(path: Path) -> list[dict]:
    try: return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path.name} cannot be read ({type(error).__name__})") from error


def _other_versions(made: dict | None) -> Iterator[str]:
    if not isinstance(made, dict): return
    for name, version in versions().items():
        if made.get(name) not in (None, version): yield f"made with {name} {made[name]}, here is {version}"
