"""Classes of pictures from a table beside them: Kaggle's `train.csv`, Tiny-ImageNet's `val_annotations.txt`.

    labels_in("id,label\\n1,cat\\n2,dog\\n", ["1.png", "2.png"], "labels.csv")
    # {"1.png": "cat", "2.png": "dog"}"""
import csv
import os

from ..errors import InputError
from .archive_members import one_line

__all__ = ["TABLES", "labels_in"]

TABLES = frozenset((".csv", ".tsv", ".txt"))
NAMES = {"label", "labels", "class", "classes", "category", "target", "species", "breed", "class_name",
         "classname", "category_name", "class_id", "label_name"}   # of a column of classes, among others


def labels_in(
    text: str | bytes,   # rows of cells, with or without a head, parted by comma, semicolon or tab
    names: list,         # file names of the pictures, without their folder
    where: str,          # the table's name, for messages
    known: tuple = (),   # class names, where they are already known
) -> dict | None:        # name → class for each of `names`; None where the table is not about these pictures
    "What a table says of pictures. Raises: InputError where it does not say one class for each"
    rows = _rows(text)
    by_key = {k: n for n in names for k in (n, os.path.splitext(n)[0])}
    column = _column_of_names(rows, by_key, where)
    if column is None: return None
    head = rows[0] if _key(rows[0][column]) not in by_key else None
    rows = [r for r in rows if len(r) > column and _key(r[column]) in by_key]
    of_class = _column_of_classes(rows, column, head, where, known)
    found = {}
    for row in rows:
        name, label = by_key[_key(row[column])], row[of_class].strip() if len(row) > of_class else ""
        if not label: raise InputError(f"{where} gives {one_line(name)} no class. Add it.")
        if found.setdefault(name, label) != label:
            raise InputError(f"{where} gives {one_line(name)} two classes, {one_line(found[name])} and "
                             f"{one_line(label)}. Keep one.")
    without = [n for n in names if n not in found]
    if not without: return found
    raise InputError(f"{where} has no class for {len(without):,} of {len(names):,} pictures "
                     f"({one_line(without[0])}). Add them, or remove these pictures.")


def _rows(text):
    if isinstance(text, bytes): text = text.decode("utf-8-sig", errors="replace")
    delimiter = max("\t;,", key=text.partition("\n")[0].count)
    try: return [r for r in csv.reader(text.replace("\0", "").splitlines(), delimiter=delimiter) if r]
    except csv.Error: return []                     # cells of a megabyte: no table of file names


def _key(cell): return cell.strip().replace("\\", "/").rpartition("/")[2]


def _column_of_names(rows, by_key, where):
    """The column with the most whole file names, else with names of the most pictures: where these are
    numbers, an index or a class looks like a name too. None where no column has one. Raises: InputError"""
    width = min(len(rows[0]), 50) if rows else 0        # pixels in a table: names come before them
    columns = [[_key(r[i]) if len(r) > i else "" for r in rows] for i in range(width)]
    ranks = [(sum(by_key.get(k) == k for k in cells), len({by_key[k] for k in cells if k in by_key}),
              cells[0].lower() not in NAMES, sum(k in by_key for k in cells)) for cells in columns]
    if width < 2 or not max(ranks)[1]: return None
    first, *others = [i for i, rank in enumerate(ranks) if rank == max(ranks)]
    for i in others:
        if columns[i][1:] == columns[first][1:]: continue
        raise InputError(f"{where} has two columns that may be the file names, the {first + 1}. and the "
                         f"{i + 1}. Write whole file names, or remove one.")
    return first


def _column_of_classes(rows, of_names, head, where, known):
    others = [i for i in range(len(rows[0])) if i != of_names]
    if len(others) == 1: return others[0]
    named = [i for i in others if head and i < len(head) and head[i].strip().lower() in NAMES]
    fits = [i for i in others if known and all(len(r) > i and r[i].strip() in known for r in rows)]
    for some in (named, fits):
        if len(some) == 1: return some[0]
    shown = ", ".join(one_line(head[i] if head and i < len(head) else i + 1, 20) for i in others[:6])
    raise InputError(f"{where} has {len(others)} columns that may be the class ({shown}). "
                     "Keep the file names and one column, or call one of them label.")
