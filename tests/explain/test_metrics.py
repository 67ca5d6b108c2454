import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from cifar_fastai.explain.interpretation import calibration, per_class


@pytest.fixture
def votes():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 200)                                  # class 4 has no pictures …
    return true, np.where(rng.random(200) < .6, true, rng.integers(1, 5, 200))


def test_per_class_figures_are_scikit_learns(votes):
    table = per_class(confusion_matrix(*votes, labels=range(5)), "abcde")
    precision, recall, _, n = precision_recall_fscore_support(*votes, labels=range(5), zero_division=np.nan)
    np.testing.assert_allclose(table["precision"], precision, rtol=1e-12)
    np.testing.assert_allclose(table["recall"], recall, rtol=1e-12)
    assert table["n"].tolist() == n.tolist() and table["class"].tolist() == list("abcde")
    assert np.isnan(table["accuracy"][4]) and table["precision"][4] == 0    # … but is called, wrongly


def test_class_that_is_never_called_has_no_precision():
    table = per_class(np.array([[0, 2], [0, 3]]), ("never", "always"))
    assert np.isnan(table["precision"][0]) and table["precision"][1] == 3 / 5
    assert table["accuracy"].tolist() == [0, 1]


def test_calibration_error_by_hand():
    conf, right = np.array([.95, .95, .55, .55]), np.array([True, False, True, True])
    ece, bins = calibration(conf, right, bins=10)
    assert ece == pytest.approx(.5 * abs(.5 - .95) + .5 * abs(1 - .55))
    assert bins["n"].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert bins["accuracy"][5] == 1 and bins["accuracy"][9] == .5 and np.isnan(bins["accuracy"][0])
    assert bins["confidence"][9] == pytest.approx(.95)


def test_a_calibrated_model_has_no_calibration_error():
    assert calibration(np.full(4, .75), np.array([True, True, True, False])).ece == pytest.approx(0)
    assert calibration(np.full(4, .75), np.array([True, True, False, False])).ece == pytest.approx(.25)


def test_bins_hold_their_upper_edge_and_zero_is_in_the_first():
    _, bins = calibration(np.array([0., .5, .500001, 1.]), np.ones(4, bool), bins=2)
    assert bins["n"].tolist() == [2, 2]
