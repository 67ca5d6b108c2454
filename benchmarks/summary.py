"""What the benchmarks found, suite by suite: kept as JSON, shown as a chart, written into a page.

    python -m benchmarks chart benchmarks/results/cpu.json docs/figures/benchmarks.png
    python -m benchmarks document benchmarks/results/cpu.json docs/performance.md
"""
import json
import re
from dataclasses import fields
from pathlib import Path

from cifar_fastai.errors import InputError

from .harness import Row

__all__ = ["Results", "chart", "document", "markdown", "speedups"]


class Results:
    "Rows by suite, with the machine and the versions that they hold for"
    def __init__(self, machine: dict, suites: dict | None = None):
        self.machine, self.suites = machine, suites or {}

    @classmethod
    def load(cls, file: Path) -> "Results":
        found = json.loads(Path(file).read_text())
        return cls(found["machine"], found["suites"])

    def add(self, name: str, found: list[Row] | str, how: dict) -> None:
        "Keep what suite `name` found, its rows or why there are none, and how it was run"
        rows = {"left_out": found} if isinstance(found, str) else {"rows": [r.as_dict() for r in found]}
        self.suites[name] = how | rows

    def save(self, file: Path) -> None:
        "Write to `file`; suites that only it has stay. Raises: InputError where it is of another machine"
        if file.exists():
            old = Results.load(file)
            if old.machine != self.machine:
                raise InputError(f"{file} was measured on another machine or with other versions. "
                                 "Name another file, or remove it.")
            self.suites = old.suites | self.suites
        found = {"machine": self.machine, "suites": dict(sorted(self.suites.items()))}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")

    @property
    def rows(self) -> list[Row]:
        "All rows by the number of their goal"
        names = {f.name for f in fields(Row)}
        rows = [Row(**{k: v for k, v in r.items() if k in names})
                for s in self.suites.values() for r in s.get("rows", [])]
        return sorted(rows, key=lambda r: int(re.search(r"\d+", r.goal_id).group()))

    @property
    def left_out(self) -> list[str]: return [s["left_out"] for s in self.suites.values() if "left_out" in s]

    def about(self) -> str:
        "Machine and versions in a line"
        m = self.machine
        names = ("torch", "fastai", "albumentations")
        parts = [f"{k} {m['versions'][k]}" for k in names if k in m["versions"]]
        return ", ".join([*filter(None, [m["gpu"]]), m["cpu"], f"{m['cores']} cores", *parts])


def markdown(results: Results) -> str:
    "The table of goals, what was left out, and how each suite was run"
    lines = ["| | work | against | goal | measured | |", "|---|---|---|---|---|---|"]
    for r in results.rows:
        sign, verdict = "≤" if r.at_most else "≥", "pass" if r.passes else "**short**"
        lines.append(f"| {r.goal_id} | {r.work} | {r.against} | {sign} {r.goal:.3g} {r.unit} | "
                     f"{r.measured:.3g} {r.unit} | {verdict} |")
    notes = [f"- {r.goal_id}: {r.note}." for r in results.rows if r.note]
    how = "{} ({rounds} rounds, {threads} threads, {clock} time, {seconds:.0f} s, load before {load_before})"
    runs = [how.format(name, **s) for name, s in results.suites.items() if "rows" in s]
    notes += [f"- {text}" for text in results.left_out]
    return "\n".join([f"{results.about()}.", "", *lines, "", *notes, "", f"Suites: {'; '.join(runs)}."])


def speedups(results: Results) -> list[tuple[str, float, float]]:
    "(label, times as fast as the other, the same for the goal) for each row that is a ratio"
    found = []
    for r in results.rows:
        if r.unit != "×" or r.against in ("", "linear", "flat"): continue
        value, goal = (1 / r.measured, 1 / r.goal) if r.at_most else (r.measured, r.goal)
        found.append((f"{r.goal_id}  {r.work}\nagainst {r.against}", value, goal))
    return found


def draw(results: Results, file: Path) -> None:
    "A dot for each comparison: how many times as fast as the other, with a tick where the goal stands"
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    rows = speedups(results)[::-1]
    fig = Figure(figsize=(9, 0.42 * len(rows) + 1.4), dpi=120, layout="constrained")
    ax = fig.add_subplot()
    for y, (_, value, goal) in enumerate(rows):
        color = "tab:blue" if value >= goal else "tab:orange"
        ax.plot([1, value], [y, y], color=color, lw=3, solid_capstyle="butt")
        ax.plot(value, y, "o", color=color, ms=7)
        ax.plot(goal, y, "|", color="black", ms=13, mew=1.5)
        ax.annotate(f"{value:.3g}×", (max(value, goal), y), (9, 0), textcoords="offset points", va="center",
                    fontsize=8)
    ax.axvline(1, color="grey", lw=1)
    ax.set_xscale("log")
    ax.set_xlim(.7, 2 * max(v for _, v, _ in rows))
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500) if t < ax.get_xlim()[1]]
    ax.set_xticks(ticks, [f"{t}×" for t in ticks])
    ax.minorticks_off()
    ax.set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=7.5)
    ax.set_xlabel("times as fast as the other (|: goal; orange: short of it)")
    ax.set_title(results.about(), fontsize=8, loc="right")
    ax.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(fig).print_png(str(file))


def write_block(page: str, name: str, text: str) -> str:
    "`page` with `text` between its lines <!-- name --> and <!-- /name -->"
    start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    if start not in page or end not in page: raise ValueError(f"the page has no lines for {name}: {start!r}")
    return page[:page.index(start) + len(start)] + text + page[page.index(end):]


def chart(argv: list[str]) -> int:
    "Results file → picture"
    draw(Results.load(Path(argv[0])), Path(argv[1]))
    return 0


def document(argv: list[str]) -> int:
    "Results file → the table between the marks of a page; the profile beside it too"
    file, page = Path(argv[0]), Path(argv[1])
    text = write_block(page.read_text(), "results", markdown(Results.load(file)))
    page.write_text(write_block(text, "profile", profile_beside(file)))
    return 0


def profile_beside(file: Path) -> str:
    "What `python -m benchmarks.profile_epoch` printed, kept beside the results"
    return f"```\n{file.with_name(f'profile_{file.stem}.txt').read_text().strip()}\n```"
