"""A recipe's command line in a process of its own, in a second: forked, with a small net, few pictures and
the maps alone for figures; and what it leaves, compared.
"""
import hashlib
import logging
import multiprocessing.util
import os
import signal
import sys
import tempfile
import time
import traceback
from functools import cache
from pathlib import Path

import torch

from benchmarks.faults import COMPARED, _draw_little, small_net
from cifar_fastai import Recipe, cli, models
from cifar_fastai.data.sources import load_data
from cifar_fastai.runs import from_recipe

BYTES = [*COMPARED, "recipe.json"]
recipe = Recipe(name="small", model="small", epochs=3, bs=32, min_steps=8, limit=256,
                lr={"num_it": 26}, precision="fp32", tta="none")


_read_once: list = []                                    # a `load_data` that has the digits at hand


class Process:
    "What was started; `end` waits for it"

    def __init__(self, pid: int, output: Path): self.pid, self.output = pid, output

    def end(self, seconds: float = 120) -> tuple[int, str]:
        "Exit status, negative for a signal, and all that was printed"
        for _ in range(int(seconds * 50)):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid: return os.waitstatus_to_exitcode(status), self.output.read_text()
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"still running after {seconds} s: {self.output.read_text()}")


def start(*flags, prepare=lambda: None, cwd=None, recipe=recipe, data="digits", drawn=False) -> Process:
    "Start `recipe` with `flags`; `prepare` is called in the new process; `drawn`: with all figures"
    _warm()
    fd, output = tempfile.mkstemp(prefix="output-", dir=_folder().name)
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid == 0: _be(flags, prepare, cwd, recipe, data, drawn, fd)
    os.close(fd)
    return Process(pid, Path(output))


def run(*flags, **kwargs) -> tuple[int, str]: return start(*flags, **kwargs).end()


def _be(flags, prepare, cwd, recipe, data, drawn, fd):
    status = 70
    try:
        torch.set_num_threads(1)                          # the pool of several does not survive a fork
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)     # of loaders that the tests before have used
        logging.getLogger().handlers.clear()              # pytest's
        multiprocessing.process._children.clear()         # of the tests before: not ours to join
        os.dup2(fd, 1), os.dup2(fd, 2)
        sys.stdout, sys.stderr = [os.fdopen(n, "w", 1, closefd=False) for n in (1, 2)]
        if cwd: os.chdir(cwd)
        if not drawn: _draw_little()
        from_recipe.load_data = _read_once[0]
        prepare()
        try: cli.main(recipe, [*(["--data", data] if data else []), *map(str, flags)])
        except SystemExit as end: status = end.code or 0
        else: status = 0
        multiprocessing.util._exit_function()             # as at any end of Python: workers are taken along
        sys.stdout.flush()
    except BaseException: traceback.print_exc()
    os._exit(status)


@cache
def _folder() -> tempfile.TemporaryDirectory:
    "For what is printed and for the run that others are compared with; removed at the session's end"
    return tempfile.TemporaryDirectory(prefix="small-runs-")


@cache
def _warm() -> None:
    "Import once what each process needs"
    import torch.utils.tensorboard  # noqa: F401
    models.MODELS["small"] = small_net
    digits, real = load_data("digits"), load_data
    def loaded(source, **kwargs): return digits if source == "digits" else real(source, **kwargs)
    _read_once.append(loaded)


@cache
def whole() -> Path:
    "The folder of a run that nobody disturbed; not to be written in"
    folder = Path(_folder().name) / "whole"
    status, text = run("--out", folder)
    assert status == 0, text
    return folder


def hashes(folder: Path, names=BYTES) -> dict:
    "sha256 of what a run must leave, byte for byte"
    there = [n for n in names if (folder / n).exists()]
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in there}


def leftovers(folder: Path) -> list:
    "Temporary files and locks"
    return [p.name for p in folder.rglob(".*") if p.suffix == ".tmp" or p.name == ".lock"]


def at(owner, name: str, act, times: int = 0):
    "Let `owner`.`name` do `act` before its call number `times`"
    before, left = getattr(owner, name), [times]
    def acting(*args, **kwargs):
        left[0] -= 1
        if left[0] == -1: act()
        return before(*args, **kwargs)
    setattr(owner, name, acting)


def send(*signums):
    "A function that sends this process these signals"
    return lambda: [os.kill(os.getpid(), n) for n in signums]
