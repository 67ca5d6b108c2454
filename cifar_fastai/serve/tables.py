"""What `predict` prints: a table for people, JSON or CSV for programs."""
import csv
import io
import json
from collections.abc import Sequence
from functools import partial

from torch import Tensor

__all__ = ["TABLES", "prediction_rows"]


def prediction_rows(
    names: Sequence[str],       # of the pictures
    probs: Tensor,              # (N,C)
    classes: Sequence[str],
    top: int = 1,               # classes a picture
) -> list[dict]:                # picture, class, probability, and `top` of these where more are asked for
    "The most likely classes of each picture"
    best = probs.topk(min(top, probs.shape[1]), 1)
    rows = []
    for name, ps, ks in zip(names, best.values.tolist(), best.indices.tolist()):
        found = [{"class": classes[k], "probability": round(p, 6)} for p, k in zip(ps, ks)]
        rows.append({"picture": name} | found[0] | ({"top": found} if top > 1 else {}))
    return rows


def _flat(row: dict) -> list[tuple[str, float]]:
    return [(f["class"], f["probability"]) for f in row.get("top", [row])]


def as_text(rows: list[dict]) -> str:
    "Columns that line up"
    cells = [[r["picture"], *(c for name, p in _flat(r) for c in (name, f"{100 * p:.1f} %"))] for r in rows]
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    def padded(line):
        return (c.ljust(w) if k == 0 or k % 2 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths)))
    return "\n".join("  ".join(padded(line)).rstrip() for line in cells)


def as_csv(rows: list[dict]) -> str:
    out, n = io.StringIO(), len(_flat(rows[0]))
    table = csv.writer(out, lineterminator="\n")
    more = [f"{name}_{k}" for k in range(2, n + 1) for name in ("class", "probability")]
    table.writerow(["picture", "class", "probability", *more])
    for r in rows: table.writerow([r["picture"], *(v for pair in _flat(r) for v in pair)])
    return out.getvalue().rstrip("\n")


TABLES = {"text": as_text, "json": partial(json.dumps, ensure_ascii=False, indent=2), "csv": as_csv}
