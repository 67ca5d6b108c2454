"""python -m benchmarks [name ...] [--json FILE] [--rounds N]: P1–P11 side by side, as one table.

Names: loader, step, interpretation, start, scale, gradcam, gpu; none means all. `faults` is apart.
"""
import argparse
import json
import sys
import warnings
from importlib import import_module
from pathlib import Path

SUITES = ("loader", "step", "interpretation", "start", "scale", "gradcam", "gpu")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["faults"]: return import_module("benchmarks.faults").main(argv[1:])
    from cifar_fastai.cli import report_errors
    with report_errors(): return _run(argv)


def _run(argv: list[str]) -> int:
    from cifar_fastai.errors import unknown

    from .harness import machine, table
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(SUITES))
    parser.add_argument("--rounds", type=int, default=5, help="rounds a contender (default 5)")
    parser.add_argument("--json", type=Path, help="write the rows with machine and versions")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in SUITES: raise unknown("benchmark", name, SUITES)
    warnings.filterwarnings("ignore")
    rows, left_out = [], []
    for name in args.names or SUITES:
        print(f"{name} …", file=sys.stderr, flush=True)
        found = import_module(f"benchmarks.{name}").run(args.rounds)
        if isinstance(found, str): left_out.append(found)
        else: rows += found
    print(table(rows))
    for line in left_out: print(line)
    about = machine()
    print(f"{about['cpu']}, {about['threads']} threads, torch {about['versions']['torch']}")
    found = {"machine": about, "rows": [r.as_dict() for r in rows], "left_out": left_out}
    if args.json: args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__": sys.exit(main())
