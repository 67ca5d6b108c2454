"""Charts as SVG text: they scale, print, follow the page's colours, and tell each number on hover.

    line_chart([Line("train", epochs, losses), Line("valid", epochs, others)], "epoch", "loss")
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite, log10

from matplotlib.ticker import LogLocator, MaxNLocator

__all__ = ["Line", "Mark", "line_chart"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 260, 56, 14, 12, 40      # of the drawing, and its margins


@dataclass(frozen=True)
class Line:
    "A line of a chart, its points where they are few, and what each tells"
    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    form: Callable[[float], str] = "{:.4g}".format


@dataclass(frozen=True)
class Mark:
    "A place on the horizontal axis with a name"
    label: str
    x: float


@dataclass(frozen=True)
class _Axis:
    "From values to pixels, with a place for each tick"
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, v: float) -> float:
        low, high, v = (log10(max(t, 1e-12)) if self.log else t for t in (self.low, self.high, v))
        share = (v - low) / (high - low or 1)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        found = LogLocator().tick_values(self.low, self.high) if self.log \
            else MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
        return [float(t) for t in found if self.low <= t <= self.high * (1 + 1e-9)]


def line_chart(
    lines: Sequence[Line],
    xlabel: str,
    ylabel: str,
    *,
    title: str,                      # what it shows, for those who do not see it
    log: bool = False,               # the horizontal axis is logarithmic
    marks: Sequence[Mark] = (),
    y_range: tuple[float, float] | None = None,    # None: what the lines need
) -> str:
    "An `<svg>` with a line for each of `lines`; values that are not finite are left out"
    kept = [(line, [(x, y) for x, y in zip(line.xs, line.ys) if _finite(x, y)]) for line in lines]
    points = [p for _, ps in kept for p in ps]
    if not points: return f'<p class="note">{escape(title)}: nothing was recorded.</p>'
    xs, ys = zip(*points)
    low, high = y_range or (min(ys), max(ys))
    pad = 0 if y_range else .05 * (high - low) or .1 * abs(high) or 1
    across = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, log)
    up = _Axis(low - pad, high + pad, HEIGHT - BOTTOM, TOP)
    parts = [*_frame(across, up, xlabel, ylabel)]
    parts += [f'<line class="mark" x1="{across(m.x)}" x2="{across(m.x)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
              f'<title>{escape(m.label)}</title></line>' for m in marks if across.low <= m.x <= across.high]
    for k, (line, ps) in enumerate(kept):
        path = " ".join(f"{across(x)},{up(min(max(y, up.low), up.high))}" for x, y in ps)
        parts.append(f'<polyline class="line c{k % 6}" points="{path}"/>')
        step = max(1, len(ps) // 60)             # a place to point at, not one for each of a thousand steps
        for x, y in ps[::step]:
            told = escape(f"{line.label}, {xlabel} {x:.4g}: {line.form(y)}")
            place = f'cx="{across(x)}" cy="{up(min(max(y, up.low), up.high))}"'
            parts.append(f'<circle class="dot c{k % 6}" {place} r="{3 if len(ps) <= 60 else 2}">'
                         f"<title>{told}</title></circle>")
    drawing = "".join(parts)
    return (f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{drawing}'
            f"</svg>{_legend(lines, marks)}</figure>")


def _finite(*values) -> bool: return all(isinstance(v, (int, float)) and isfinite(v) for v in values)


def _frame(across: _Axis, up: _Axis, xlabel: str, ylabel: str):
    "Grid, tick labels and the names of the axes"
    bottom = HEIGHT - BOTTOM
    for t in up.ticks():
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(t)}" y2="{up(t)}"/>'
        yield f'<text x="{LEFT - 6}" y="{up(t) + 4}" text-anchor="end">{t:.4g}</text>'
    for t in across.ticks():
        yield f'<line class="tick" x1="{across(t)}" x2="{across(t)}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield f'<text x="{across(t)}" y="{bottom + 17}" text-anchor="middle">{t:.4g}</text>'
    yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    yield f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(xlabel)}</text>'
    middle = (TOP + bottom) / 2
    yield f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(ylabel)}</text>'


def _legend(lines: Sequence[Line], marks: Sequence[Mark]) -> str:
    names = [f'<span class="key c{k % 6}">{escape(line.label)}</span>' for k, line in enumerate(lines)]
    names += [f'<span class="key mark">{escape(m.label)}</span>' for m in marks]
    return f"<figcaption>{' '.join(names)}</figcaption>" if len(names) > 1 else ""
