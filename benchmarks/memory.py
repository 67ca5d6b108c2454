"""What a step of ResNet-18 on the CPU costs in each precision, and where freed memory is given back.

    python -m benchmarks memory

Each contender is a process of its own, which works when it is its turn: memory that a process has kept once
is not given back by a change of limits.
"""
import multiprocessing
from contextlib import ExitStack

import torch

from cifar_fastai import resnet18
from cifar_fastai.machine import fast_bf16
from cifar_fastai.training import learner as room
from cifar_fastai.training.precision import choose_precision

from .harness import alternate, now, spread
from .step import fit, learner

BS = 256


def work(pipe, precision: str, keep: bool) -> None:
    "Two steps, as often as somebody asks; answers with the seconds"
    if not keep: room.keep_freed_memory = lambda: None
    epoch = fit(learner(resnet18, 2, BS, True, precision=precision))
    while pipe.recv():
        start = now()
        epoch()
        pipe.send(now() - start)


def run(rounds: int = 5) -> str:
    start, contenders = multiprocessing.get_context("spawn"), {}
    with ExitStack() as stack:
        for precision in ("fp32", "bf16"):
            for keep in (True, False):
                ours, theirs = start.Pipe()
                process = start.Process(target=work, args=(theirs, precision, keep), daemon=True)
                process.start()
                theirs.close()                       # so that the end of a process that dies is heard
                stack.callback(process.join)
                stack.callback(ours.send, False)
                name = f"{precision}, freed memory {'kept' if keep else 'given back'}"
                contenders[name] = lambda pipe=ours: (pipe.send(True), pipe.recv())[1]
        times = alternate(contenders, rounds)
    auto = choose_precision("auto", torch.device("cpu"))
    base = f"{auto}, freed memory kept"
    lines = [f"ResNet-18, batches of {BS}, time of a step in % of one as it is here: {auto} "
             f"({fast_bf16() or 'no instructions that make bf16 faster'}), freed memory kept"]
    return "\n".join([*lines, *(f"    {name:32}{spread(times, name, base)}" for name in times)])
