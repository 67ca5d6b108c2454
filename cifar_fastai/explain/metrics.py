"""Tables of a confusion matrix, and calibration.

    per_class(sklearn.metrics.confusion_matrix(true, predicted), names)
    calibration(confidence, right).ece
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

__all__ = ["Calibration", "calibration", "per_class"]


class Calibration(NamedTuple):
    "How far the confidence of predictions can be believed"
    ece: float             # expected calibration error, 0…1 (Guo et al. 2017, eq. 3)
    bins: pd.DataFrame     # one row a bin: low, high, n, confidence, accuracy (NaN where n is 0)


def per_class(
    cm: np.ndarray,            # (C,C) as scikit-learn's `confusion_matrix` gives
    names: Sequence[str],
) -> pd.DataFrame:
    """class, n, correct, accuracy, precision, recall; NaN where there is nothing to count.
    A class's accuracy is the share of its pictures that was found: its recall, by its other name."""
    n, correct, said = cm.sum(1), cm.diagonal(), cm.sum(0)
    found = _share(correct, n)
    return pd.DataFrame({"class": list(names), "n": n, "correct": correct, "accuracy": found,
                         "precision": _share(correct, said), "recall": found})


def calibration(
    confidence: np.ndarray,    # (N,) probability of the predicted class
    right: np.ndarray,         # (N,) bool
    bins: int = 15,            # of equal width, (low, high]
) -> Calibration:
    "Confidence against accuracy"
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, bins - 1)
    n, conf, acc = (np.bincount(which, w, bins) for w in (None, confidence, right))
    ece = np.abs(acc - conf).sum() / len(which)
    return Calibration(float(ece), pd.DataFrame({"low": edges[:-1], "high": edges[1:], "n": n,
                                                 "confidence": _share(conf, n), "accuracy": _share(acc, n)}))


def _share(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.where(total > 0, part / np.maximum(total, 1), np.nan)
