"""Members of the official archives: bytes → rows of pixels, labels, class names. No code in them can run.

Row formats: https://www.cs.toronto.edu/~kriz/cifar.html. A pickle is scanned first, then loaded by an
unpickler in which even numpy's names stand for classes that only take notes."""
import io
import pickle
import pickletools

import numpy as np

from ..errors import InputError

__all__ = ["binary_rows", "read_class_names", "one_line", "python_rows"]


def one_line(text, most=120):
    "What a file says, fit for an error message"
    return " ".join(ascii(str(text))[1:-1].split())[:most]


def binary_rows(
    raw: bytes,      # rows of label, 3,072 bytes; or coarse label, fine label, 3,072 bytes
    n_classes: int,  # 10: rows of 3,073; 100: rows of 3,074 and the fine label counts
    where: str,      # file and member, for messages
) -> tuple:          # uint8 (N,3072), int64 (N,)
    "Pixels and labels of a binary batch"
    width = 3073 if n_classes == 10 else 3074
    if not raw or len(raw) % width:
        raise InputError(f"{where} has {len(raw):,} bytes, expected whole rows of {width:,}. Fetch it again.")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, width)
    return rows[:, width - 3072:], _labels(rows[:, width - 3073].tolist(), n_classes, where)


def python_rows(raw: bytes, n_classes: int, where: str) -> tuple:
    "Pixels and labels of a pickled batch; arguments and result as for `binary_rows`"
    batch = _unpickle(raw, where)
    data, labels = batch.get("data"), batch.get("labels" if n_classes == 10 else "fine_labels")
    if not isinstance(data, _Array): raise InputError(f"{where} has no 'data' array. Fetch it again.")
    rows = data.array(where)
    if rows.ndim != 2 or rows.shape[1] != 3072 or not len(rows):
        raise InputError(f"{where} has data of shape {rows.shape}, expected (N,3072). Fetch it again.")
    if not isinstance(labels, list) or len(labels) != len(rows):
        n = f"{len(labels):,}" if isinstance(labels, list) else "no list of"
        raise InputError(f"{where} has {len(rows):,} pictures but {n} labels. Fetch it again.")
    return rows, _labels(labels, n_classes, where)


def _labels(labels, n_classes, where):
    bad = next((y for y in labels if type(y) is not int or not 0 <= y < n_classes), None)
    if bad is None: return np.array(labels, np.int64)
    raise InputError(f"{where} has label {one_line(bad)}, expected 0 to {n_classes - 1}. Fetch it again.")


def read_class_names(
    raw: bytes,      # a pickle with `label_names` or `fine_label_names`; or lines of text
    n_classes: int,
    where: str,
    binary: bool,    # lines of text
) -> tuple:          # of str, by label
    "The class names of an archive"
    key = "label_names" if n_classes == 10 else "fine_label_names"
    names = raw.split() if binary else _unpickle(raw, where).get(key)
    try: names = tuple(n if isinstance(n, str) else n.decode() for n in names)
    except (TypeError, AttributeError, UnicodeDecodeError): names = ()
    if len(names) == len(set(names)) == n_classes and all(n.isprintable() and n for n in names): return names
    raise InputError(f"{where} names {len(set(names))} classes, expected {n_classes}. Fetch it again.")


class _Dtype:
    "Stands in for `numpy.dtype` while a pickle is read: notes what the file says"
    def __init__(self, *args): self.args = args
    def __setstate__(self, state): pass


class _Array:
    "Stands in for `numpy.ndarray` and `_reconstruct`: the file never calls numpy itself"
    def __init__(self, *args): self.state = None
    def __setstate__(self, state): self.state = state

    def array(self, where):
        "The uint8 array that the notes describe"
        try:
            _, shape, dtype, fortran, raw = self.state
            if dtype.args[0] not in ("u1", b"u1") or type(raw) is not bytes: raise TypeError
            pixels = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")
            if pixels.shape != shape: raise ValueError   # a negative size, which reshape would fill in
            return pixels
        except (TypeError, ValueError, AttributeError, IndexError) as e:
            raise InputError(f"{where} has data that is no whole uint8 array. Fetch it again.") from e


class _Unpickler(pickle.Unpickler):
    "Knows the three globals of the official files (one also in numpy 2's spelling) and refuses the rest"
    known = {"numpy.core.multiarray._reconstruct": _Array, "numpy._core.multiarray._reconstruct": _Array,
             "numpy.ndarray": _Array, "numpy.dtype": _Dtype}

    def find_class(self, module, name):
        if (found := self.known.get(f"{module}.{name}")) is not None: return found
        raise InputError(f"asks for {one_line(f'{module}.{name}')}, which no CIFAR batch does")


def _unpickle(raw, where):
    "The dict in a batch, its keys as str; byte strings stay bytes"
    try:
        for op, arg, _ in pickletools.genops(raw):   # a memo index of 2**32 makes the unpickler take 64 GB
            if "PUT" in op.name and arg > len(raw): raise ValueError(f"memo index {arg}")
        batch = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        return {k if isinstance(k, str) else k.decode(): v for k, v in batch.items()}
    except InputError as e: raise InputError(f"{where} {e}: refused, not run. Use the official one.") from e
    except Exception as e:   # hostile bytes: the pickle module raises whatever comes
        what = f"{type(e).__name__}: {one_line(e)}"
        raise InputError(f"{where} is no CIFAR batch ({what}). Fetch it again.") from e
