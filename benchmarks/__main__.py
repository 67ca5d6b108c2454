"""python -m benchmarks [name ...] [--json FILE] [--rounds N]: P1–P11 side by side, as one table.

Names: loader, step, interpretation, start, scale, gradcam, gpu, choices, memory; none means all. FILE keeps
the suites that are not measured this time. Apart from these: `chart FILE PICTURE`, `document FILE PAGE`,
`accuracy DATA`, `compiled`, `faults`, `maps WEIGHTS ... --data DATA`, `million FOLDER`, `notebooks`,
`page RUN`, `predecessors DATA` and `processes`.
"""
import argparse
import os
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path

SUITES = ("loader", "step", "interpretation", "start", "scale", "gradcam", "gpu", "choices", "memory")
TEXTS = ("choices", "memory")          # which print their own tables: no rows of goals
BY_CPU = ("loader", "step", "interpretation", "gradcam", "choices")   # in one process, whose time can be told

APART = ("accuracy", "compiled", "faults", "maps", "million", "notebooks", "page", "predecessors",
         "processes")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    warnings.filterwarnings("ignore")     # of the competitors, as they are imported
    if argv[:1] and argv[0] in APART:
        return import_module(f"benchmarks.{argv[0]}").main(argv[1:]) or 0
    if argv[:1] == ["chart"] or argv[:1] == ["document"]:
        return getattr(import_module("benchmarks.summary"), argv[0])(argv[1:])
    from cifar_fastai.errors import report_errors
    with report_errors(): return _run(argv)


def _run(argv: list[str]) -> int:
    import torch

    from cifar_fastai.errors import UnknownName

    from .harness import machine, table, timed_by
    from .summary import Results
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(SUITES))
    parser.add_argument("--rounds", type=int, default=5, help="rounds a contender (default 5)")
    parser.add_argument("--json", type=Path, help="write the rows with machine and versions")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a busy machine")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in SUITES: raise UnknownName("benchmark", name, SUITES)
    results = Results(machine())
    if args.json: results.save(args.json)          # refused before anything is measured
    for name in args.names or SUITES:
        print(f"{name} …", file=sys.stderr, flush=True)
        start, load = time.monotonic(), os.getloadavg()[0]
        kind = args.clock if name in BY_CPU else "wall"
        with timed_by(kind): found = import_module(f"benchmarks.{name}").run(args.rounds)
        threads = 1 if name in ("loader", "scale") else torch.get_num_threads()
        seconds = round(time.monotonic() - start, 1)
        if name not in TEXTS:
            results.add(name, found, {"rounds": args.rounds, "threads": threads, "clock": kind,
                                      "load_before": round(load, 1), "seconds": seconds})
            if args.json: results.save(args.json)  # a later suite may be cut short
        print(found if isinstance(found, str) else table(found), flush=True)
    print(results.about())
    return 0


if __name__ == "__main__": sys.exit(main())
