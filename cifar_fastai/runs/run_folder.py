"""The run folder: choose it, lock it, write recipe.json, list its files with sha256 when it is complete.

    folder = choose_folder(recipe, "runs/demo", resume=False)
    begin(folder, recipe, decided, resume=False)     # before training; `decided`: data, precision, device
    seal(folder)                                     # SHA256SUMS, last
"""
import logging
import os
import re
import shlex
import time
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..checkpoints import differences
from ..data import NAMES
from ..errors import InputError
from ..files import TEMPORARY, read_json, save_atomically, sha256_of, sweep, write_json
from ..machine import versions
from ..recipe import Recipe, training_fields

__all__ = ["again", "begin", "begun", "choose_folder", "for_all", "holds_run", "listed_sums", "load_recipe",
           "locked", "newest_run", "recipe_of", "remove_if_refused", "saved_recipe", "seal", "seal_again",
           "sealed_files"]

log = logging.getLogger("cifar_fastai")
OWN = {"recipe.json", "log.txt", ".lock", "checkpoints"}  # one of these makes a folder a run's
SUMS = "SHA256SUMS"                                        # written last: the run is whole
UNSEALED = {SUMS, "log.txt", ".lock"}                      # and `checkpoints`, which have manifests


def choose_folder(recipe: Recipe, out: str | Path | None, resume: bool) -> Path:
    "Where the run goes; one that already stands there is only touched to resume it. Raises: InputError"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(out) if out is not None else Path("runs") / recipe.name / f"{stamp}-seed{recipe.seed}"
    if resume and folder.exists() and not holds_run(folder):
        raise InputError(f"{folder} is no run's folder. Give the folder of a run, or leave --resume out.")
    if not resume and ((folder / "recipe.json").exists() or (folder / "checkpoints").exists()):
        raise InputError(f"{folder} already holds a run. Resume it with --resume, or give another folder.")
    return folder


@contextmanager
def locked(folder: str | Path):
    """Hold `folder` for this process; the lock of a dead one is free, and forked workers hold none.
    Raises: InputError, naming the process that holds it"""
    path, pid = Path(folder) / ".lock", os.getpid()
    lock = FileLock(path, blocking=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        holder = path.read_text() or "that is just starting"
        raise InputError(f"{path.parent} is in use by process {holder}. "
                         "Wait for it, stop it, or choose another folder.") from None
    except OSError as error:
        raise InputError(f"cannot write in {path.parent}: {error.strerror}. "
                         "Choose another folder.") from error
    try:
        path.write_text(str(pid))
        yield
    finally:
        if os.getpid() == pid:
            path.unlink(missing_ok=True)      # while it is still held, so it is our own
            lock.release()


def holds_run(folder: Path) -> bool:
    "Whether `folder` is a run's, also of one that was killed right after it had been made"
    if not folder.is_dir(): return False
    names = {p.name for p in folder.iterdir()}
    return not names or bool(names & OWN)


def newest_run(recipe: Recipe) -> Path | None:
    "The run of `recipe` in ./runs that was last written to"
    runs = [p.parent for p in Path("runs", recipe.name).glob("*/recipe.json")]
    written = lambda run: max(p.stat().st_mtime_ns for p in (run, run / "recipe.json", run / "checkpoints")
                              if p.exists())
    return max(runs, key=written, default=None)


def begun(folder: Path) -> dict:
    "What was decided when the run in `folder` was started: data, precision, device …; empty for a new one"
    path = folder / "checkpoints" / "begun.json"
    return read_json(path) if path.exists() else {}


def again(folder: Path, results: dict) -> str:
    """The command that repeats a run, for a shell; `results`: those of results.json. Empty where none does:
    of transforms that only their own module can make, and of pictures that came from memory"""
    how = begun(folder)
    nowhere = how.get("data") is None and results["data"] not in NAMES and not Path(results["data"]).exists()
    if nowhere or _needs_module(saved_recipe(folder)): return ""
    words = ["python", "-m", "recipes", "train", folder, "--data", how.get("data") or results["data"],
             "--seed", results["seed"]]
    for flag in ("data_split", "scale_lr"):
        if how.get(flag) is not None: words += [f"--{flag.replace('_', '-')}", how[flag]]
    for name, flag in (("compiled", "--compile"), ("unverified", "--unverified")):
        if how.get(name): words.append(flag)
    return shlex.join(map(str, words))


def begin(folder: Path, recipe: Recipe, decided: dict, resume: bool) -> None:
    """Write down what is decided before training. Raises: InputError where a run to resume was decided
    otherwise, whether or not it has a checkpoint yet"""
    decided = {"processes": 1} | decided | {"versions": versions()}
    if resume and (folder / "recipe.json").exists():
        before = begun(folder) or decided
        was, now = (for_all(training_fields(fields), how.get("processes", 1)) |
                    {"data": how.get("data_fingerprint"), "scale_lr": how.get("scale_lr")}
                    for fields, how in ((saved_recipe(folder), before), (recipe.as_dict(), decided)))
        if found := differences(was, now):
            raise InputError(f"cannot resume {folder}: {found}. "
                             "Use what the run was started with, or start a new one in another folder.")
        if found := differences({"processes": 1} | before,
                                {k: decided[k] for k in ("device", "versions", "processes")}):
            log.warning(f"{found}: the end will be the same only to rounding")
        if not any((folder / "checkpoints").glob("epoch-*.json")):
            log.info(f"resumed     {folder} has no checkpoint yet: from the beginning")
    elif resume: log.info(f"resumed     nothing was begun in {folder}: from the beginning")
    sweep(folder)
    (folder / SUMS).unlink(missing_ok=True)                 # no longer whole
    write_json(folder / "recipe.json", recipe.as_dict())
    write_json(folder / "checkpoints" / "begun.json", decided | begun(folder)
               | {"processes": decided["processes"]})


def for_all(
    fields: dict,       # `training_fields` of a recipe
    processes: int,     # that train it together
) -> dict:
    "The fields with the pictures a batch of all processes together"
    return fields | {"bs": fields["bs"] * processes}


@contextmanager
def remove_if_refused(folder: Path):
    "Take `folder` away again where the run inside is refused before it has begun: only its log is there"
    there = folder.exists()
    try: yield
    except InputError as error:
        refused = error.exit_status == 2                  # a run that was stopped may be resumed
        if refused and not there and folder.is_dir() and {p.name for p in folder.iterdir()} <= {"log.txt"}:
            (folder / "log.txt").unlink(missing_ok=True)
            folder.rmdir()
        raise


def saved_recipe(folder: Path) -> dict:
    "The fields in recipe.json, whatever the augmentation. Raises: InputError"
    saved = read_json(Path(folder) / "recipe.json")
    try: Recipe.from_dict({k: v for k, v in saved.items() if k != "aug"})
    except InputError as error: raise InputError(f"{folder}/recipe.json: {error}") from error
    return saved


def _needs_module(saved: dict) -> bool:
    "Whether a recipe holds transforms of Albumentations, which only its own module can make"
    return isinstance(aug := saved.get("aug"), dict) and "transform" in aug


def recipe_of(folder: Path) -> Recipe:
    "The recipe of a run, without transforms that only its module can make. Raises: InputError"
    saved = saved_recipe(folder)
    if _needs_module(saved): return Recipe.from_dict(saved | {"aug": None})
    return load_recipe(Path(folder) / "recipe.json")


def load_recipe(
    path: str | Path,    # a recipe.json, of a run or written by hand: what is left out has its default
    **given,             # fields that the file need not have: name, which has no default
) -> Recipe:
    "The recipe in a file. Raises: InputError for what is no recipe, or holds transforms of Albumentations"
    values = given | read_json(path)
    try: return Recipe.from_dict(values)
    except InputError as error: raise InputError(f"{path}: {error}") from error


def sealed_files(folder: Path) -> list[Path]:
    "What is listed when a run is whole: every file of it but the log and the checkpoints, sorted"
    files = (p for p in Path(folder).rglob("*") if p.is_file() and not TEMPORARY.fullmatch(p.name))
    inside = ((p, p.relative_to(folder)) for p in files)
    return sorted(p for p, rel in inside if rel.parts[0] != "checkpoints" and str(rel) not in UNSEALED)


def seal(folder: Path) -> None:
    "Write SHA256SUMS, which `sha256sum -c SHA256SUMS` reads: the files of the finished run"
    lines = (f"{sha256_of(p)}  {p.relative_to(folder).as_posix()}\n" for p in sealed_files(folder))
    save_atomically(folder / SUMS, "".join(lines))


def seal_again(folder: Path, path: Path) -> None:
    "Put one file that was written anew into SHA256SUMS, where there is one; the other lines stay as they are"
    if not (folder / SUMS).exists(): return
    sums = listed_sums(folder) | {path.relative_to(folder).as_posix(): sha256_of(path)}
    save_atomically(folder / SUMS, "".join(f"{v}  {k}\n" for k, v in sorted(sums.items())))


def listed_sums(folder: Path) -> dict[str, str]:
    "File name → sha256, as `seal` wrote them. Raises: InputError for lines of another kind"
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in lines]
    if not all(found): raise InputError(f"{SUMS} has lines that sha256sum does not write")
    return {m[2]: m[1] for m in found}
