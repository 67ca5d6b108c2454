"""comparison.html: runs side by side, in one file. No fastai: what runs left in their folders is enough."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..files import save_atomically
from .render import render
from .sprites import picture_sheet
from .svg import Line, line_chart

__all__ = ["Disagreement", "disagreements", "write_comparison"]


@dataclass(frozen=True)
class Disagreement:
    "Test pictures that one run predicts right and the other wrong"
    title: str
    index: Sequence[int]         # in the test set
    words: Sequence[str]         # below each picture
    total: int                   # how many there are; those above are the first


def disagreements(
    a: tuple[str, pd.DataFrame],     # label; a row a test picture: true, predicted
    b: tuple[str, pd.DataFrame],
    n: int = 60,                     # that are shown of each kind
) -> list[Disagreement]:
    "What `a` predicts right and `b` wrong, and the other way round"
    found = []
    for (right, of_right), (wrong, of_wrong) in ((a, b), (b, a)):
        good, bad = ((t["true"] == t["predicted"]).to_numpy() for t in (of_right, of_wrong))
        index = np.flatnonzero(good & ~bad)
        words = [f"{true} taken for {p}" for true, p in of_wrong.iloc[index[:n]].itertuples(index=False)]
        found.append(Disagreement(f"{right} right, {wrong} wrong", index[:n].tolist(), words, len(index)))
    return found


def write_comparison(
    path: str | Path,
    columns: Sequence[str],
    rows: Sequence[Sequence],                              # a row a group, as text
    curves: Sequence[tuple[str, Mapping[str, Sequence]]],  # label; epoch, train_loss, accuracy
    classes: Sequence[str] = (),                           # empty where groups have others
    shares: Sequence[tuple[str, Sequence[float]]] = (),    # label; accuracy of each class, 0…1
    disagreements: Sequence[Disagreement] = (),
    pictures: np.ndarray | None = None,                    # (N,H,W,3) uint8, the whole test set
) -> Path:
    "Write the page of a comparison"
    charts = []
    for title, key, ylabel, scale, form in (
            ("Training loss, each recipe's own", "train_loss", "loss", 1, "{:.4g}".format),
            ("Validation accuracy", "accuracy", "accuracy, %", 100, "{:.2f} %".format)):
        lines = [Line(label, of["epoch"], [scale * v for v in of[key]], form) for label, of in curves]
        charts.append((title, line_chart(lines, "epoch", ylabel, title=f"{title} over the epochs")))
    shown = sorted({i for d in disagreements for i in d.index}) if pictures is not None else []
    sheet = picture_sheet(np.stack([pictures[i] for i in shown])).as_dict() if shown else None
    page = render("compare.html.j2", {
        "columns": columns, "rows": rows, "charts": charts, "classes": list(classes), "shares": shares,
        "disagreements": disagreements, "sheet": sheet, "place": {i: k for k, i in enumerate(shown)}})
    save_atomically(path, page)
    return Path(path)
