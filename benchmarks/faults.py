"""python -m benchmarks faults [--kills N] [--json FILE]: kill trainings, resume them, compare what they left.

The first promise as a program. A real run on `digits` by the command line of a recipe with a small net is
killed by SIGKILL, half of the times at a random moment, half at a line of the save routine, each in turn.
`--resume` must then end with the same weights, history, predictions and maps, byte for byte, as a run that
nobody disturbed. A run with another seed must not. So that it is affordable, the processes are forked from
one that has imported everything, and all figures are drawn in every ninth run only.
"""
import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

__all__ = ["Outcome", "main", "run"]

COMPARED = ("weights.safetensors", "history.csv", "predictions.csv", "figures/gradcam_epochs.png")
EPOCHS = 4


@dataclass
class Outcome:
    "What came of the kills"
    killed: int = 0
    resumed: int = 0
    identical: int = 0
    how: Counter = field(default_factory=Counter)      # random moment, line of the save routine
    found: Counter = field(default_factory=Counter)    # what the kill left on the disk
    lines: set = field(default_factory=set)            # of the save routine that a kill has hit
    of_lines: int = 0                                  # lines that it has
    wrong: list = field(default_factory=list)          # what was not as it should be
    control: bool = False                              # whether another seed was found to differ

    @property
    def passes(self) -> bool:
        return self.control and not self.wrong and self.killed == self.resumed == self.identical

    def as_dict(self) -> dict:
        return vars(self) | {"lines": len(self.lines), "passes": self.passes}


def main(argv: list[str]) -> int:
    "Exit status 0 if every killed run was resumed to the same bytes"
    parser = argparse.ArgumentParser(prog="python -m benchmarks faults", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="how many (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--json", type=Path, help="write the counts with machine and versions")
    args = parser.parse_args(argv)
    if args.json: args.json.parent.mkdir(parents=True, exist_ok=True)        # not after the last kill
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        outcome = run(args.kills, Path(folder), args.seed, say=_say)
    print(_report(outcome))
    record = _record(outcome, args, time.monotonic() - started)
    if args.json: args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if outcome.passes else 1


def _say(line: str) -> None: print(line, file=sys.stderr, flush=True)


def run(
    kills: int,
    folder: Path,                    # for the runs; those that are as they should be are removed
    seed: int = 0,                   # of the moments
    figures: int = 9,                # in every so many runs all figures are drawn
    say: Callable = lambda line: None,
) -> Outcome:
    "Kill, resume and compare"
    outcome, rng = Outcome(), random.Random(seed)
    say("two undisturbed runs …")
    whole, seconds, events = _undisturbed(folder)
    outcome.control = _differs(folder, whole[False])
    if kills >= figures:
        status = _child(folder, ["--out", str(folder / "drawn")], drawn=True)
        whole[True] = _hashes(folder / "drawn", status)
    lines = sorted(set(events))
    outcome.of_lines = len(lines)
    for k in range(kills):
        at = None if k % 2 else lines[k // 2 * len(lines) // ((kills + 1) // 2)]      # spread evenly
        try: _one(k, folder, at, (whole, seconds, events), outcome, rng, drawn=k % figures == figures - 1)
        except KeyboardInterrupt: break                # what has been done so far counts
        if (k + 1) % 10 == 0: say(f"{k + 1} of {kills}: {outcome.identical} identical")
    return outcome


def _one(k: int, folder: Path, at, undisturbed, outcome: Outcome, rng, drawn: bool) -> None:
    "Kill a run once, resume it, compare"
    whole, seconds, events = undisturbed
    run_folder, often = folder / f"run {k}", ["--checkpoint-minutes", "0"] * (k // 2 % 2)
    flags = ["--out", str(run_folder), *often]
    while True:                                        # a run that was faster than its kill does not count
        shutil.rmtree(run_folder, ignore_errors=True)
        if at: died = _child(folder, flags, drawn, die_at=(at, rng.randrange(events.count(at))))
        else: died = _child(folder, flags, drawn, after=rng.uniform(0, seconds))
        if died == -signal.SIGKILL: break
        if died: return outcome.wrong.append(f"kill {k}: the run ended with {died}")
    outcome.killed += 1
    outcome.how["line of the save routine" if at else "random moment"] += 1
    outcome.lines |= {at} if at else set()
    outcome.found[_stage(run_folder)] += 1
    there = [str(run_folder)] if run_folder.exists() else flags
    status, at = _child(folder, ["--resume", *there, *often], drawn), at or "a random moment"
    if status: return outcome.wrong.append(f"kill {k} at {at}: resuming ended with {status}")
    outcome.resumed += 1
    different = [n for n in COMPARED if _sha256(run_folder / n) != whole[drawn][n]]
    left = [p.name for p in run_folder.rglob("*.tmp")]
    if different or left:
        return outcome.wrong.append(f"kill {k} at {at}: {different} differ, {left} left over")
    outcome.identical += 1
    return shutil.rmtree(run_folder)


def _hashes(folder: Path, status: int = 0) -> dict:
    if status: raise RuntimeError(f"an undisturbed run ended with {status}")
    return {n: _sha256(folder / n) for n in COMPARED}


def _undisturbed(folder: Path) -> tuple[dict, float, list]:
    "Hashes of an undisturbed run (by whether it draws all), its seconds, each line it comes to while saving"
    seen = folder / "lines.json"
    status = _child(folder, ["--out", str(folder / "whole")], record=seen)
    if status: raise RuntimeError((folder / "output.txt").read_text())
    for name in json.loads(seen.read_text())["modules"]: _import(name)
    start = time.monotonic()
    status = _child(folder, ["--out", str(folder / "traced")], record=seen)
    if status: raise RuntimeError("the traced run failed")
    seconds = time.monotonic() - start
    hashes = _hashes(folder / "whole")
    if hashes != _hashes(folder / "traced"): raise RuntimeError("two runs differ")
    return {False: hashes}, seconds, [tuple(x) for x in json.loads(seen.read_text())["lines"]]


def _differs(folder: Path, whole: dict) -> bool:
    "The control: a run with another seed leaves other bytes everywhere"
    flags = ["--out", str(folder / "other"), "--seed", "1"]
    if _child(folder, flags): raise RuntimeError("the control failed")
    return all(_sha256(folder / "other" / n) != whole[n] for n in COMPARED)


def _stage(folder: Path) -> str:
    if not (folder / "recipe.json").exists(): return "nothing"
    if (folder / "SHA256SUMS").exists(): return "a whole run"
    if not any((folder / "checkpoints").glob("epoch-*.json")): return "no checkpoint"
    return "the last checkpoint" if _last(folder) else "a checkpoint"


def _last(folder: Path) -> bool: return (folder / "checkpoints" / f"epoch-{EPOCHS:04d}.json").exists()


def _sha256(path: Path) -> str:
    from cifar_fastai.files import sha256_of
    return sha256_of(path) if path.exists() else "missing"


# ---------------------------------------------------------------- a process to be killed

def _child(folder: Path, flags: list[str], drawn=False, after=None, die_at=None, record=None) -> int:
    "Fork a process that does what the command line does; its exit status, negative for a signal"
    _warm()
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid == 0: _be_the_process(folder, flags, drawn, die_at, record)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _warm() -> None:
    "Import what a run imports, so that forked processes start at once"
    import torch.utils.tensorboard  # noqa: F401

    from cifar_fastai import models
    from cifar_fastai.runs import one_run as runs  # noqa: F401
    models.MODELS["small"] = small_net


def _import(name: str) -> None:
    "What the first run has imported; a part of it may not be importable by its name"
    with suppress(Exception): import_module(name)


def small_net(n_out: int = 10, n_in: int = 3, norm: str = "bn"):
    "Two convolutions, batch norm, dropout"
    from torch import nn
    net = nn.Sequential()
    for name, (a, b) in {"layer1": (n_in, 8), "layer3": (8, 16)}.items():
        block = nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
        net.add_module(name, block)
    for name, part in {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "drop": nn.Dropout(0.1),
                       "fc": nn.Linear(16, n_out)}.items(): net.add_module(name, part)
    return net


def _be_the_process(folder, flags, drawn, die_at, record) -> None:
    import torch

    from cifar_fastai import Recipe, cli
    from cifar_fastai.checkpoints.store import CheckpointStore
    status = 70
    try:
        torch.set_num_threads(1)                       # the pool of several does not survive a fork
        out = os.open(folder / "output.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(out, 1), os.dup2(out, 2)
        if not drawn: _draw_little()
        recipe = Recipe(name="faults", model="small", epochs=EPOCHS, bs=32, min_steps=8, limit=256,
                        lr={"num_it": 40}, precision="fp32", tta="none")
        seen = []
        if die_at or record: CheckpointStore.save = _watched(CheckpointStore.save, die_at, seen)
        try: cli.main(recipe, ["--data", "digits", *flags])
        except SystemExit as end: status = end.code or 0
        else: status = 0
        if record: record.write_text(json.dumps({"lines": seen, "modules": list(sys.modules)}))
    except BaseException: traceback.print_exc()
    os._exit(status)


def _watched(save, die_at, seen: list):
    "`save`, which kills the process at a line the n-th time it comes to it, or takes note of the lines"
    from cifar_fastai import files as saving
    from cifar_fastai.checkpoints import store as checkpoint
    names = {checkpoint.__file__: "checkpoint", saving.__file__: "saving"}
    line, left = die_at or (None, 0)
    def trace(frame, event, arg):
        nonlocal left
        name = names.get(frame.f_code.co_filename)
        if name is None: return None
        if event != "line": return trace
        seen.append((name, frame.f_lineno))
        if seen[-1] == line:
            if not left: os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return trace
    def watched(*args, **kwargs):
        with _tracing(trace): return save(*args, **kwargs)
    return watched


@contextmanager
def _tracing(trace) -> Iterator[None]:
    sys.settrace(trace)
    try: yield
    finally: sys.settrace(None)


def _draw_little() -> None:
    "The maps themselves for the figure of them, a dot for each other one"
    import numpy as np
    from PIL import Image

    from cifar_fastai.explain.gradcam_callback import GradCAMCallback
    from cifar_fastai.files import save_atomically
    from cifar_fastai.runs import report

    def save(path, pixels):
        from io import BytesIO
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        save_atomically(path, buffer.getvalue())
    dot = np.zeros((8, 8), np.uint8)
    dots = lambda out, figures: [save(Path(out) / "figures" / f"{k}.png", dot) for k in figures]
    rows = lambda maps: np.concatenate([m.numpy().reshape(-1, 32) for m in maps.values()])
    maps = lambda self, path: save(path, np.uint8(255 * rows(self.maps)))
    report._write, GradCAMCallback.save = dots, maps


# ---------------------------------------------------------------- what is printed

def _report(o: Outcome) -> str:
    counts = lambda c: ", ".join(f"{n} × {what}" for what, n in sorted(c.items()))
    return "\n".join([
        f"killed    {o.killed}  ({counts(o.how)}; {len(o.lines)} of the {o.of_lines} lines of a save)",
        f"resumed   {o.resumed}  (found: {counts(o.found)})",
        f"identical {o.identical}  ({', '.join(COMPARED)}, by sha256)",
        f"control   another seed {'differs in all of them' if o.control else 'DOES NOT DIFFER'}", *o.wrong])


def _record(outcome: Outcome, args, seconds: float) -> dict:
    from .harness import machine
    command = f"python -m benchmarks faults --kills {args.kills} --seed {args.seed}"
    return {"command": command, "machine": machine(), "seconds": round(seconds), **outcome.as_dict()}
