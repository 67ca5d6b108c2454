import numpy as np
import pandas as pd
import pytest

from cifar_fastai.explain.interpretation import calibration, per_class
from cifar_fastai.plots.charts import (
    plot_bins,
    plot_curves,
    plot_lr_find,
    plot_lr_schedule,
    plot_matrix,
    plot_scores,
)
from cifar_fastai.plots.figures import offscreen


@pytest.fixture(autouse=True)
def without_windows():
    with offscreen(): yield


ROWS = [{"epoch": i, "train_loss": 2. - i / 2, "valid_loss": 2.1 - i / 4, "accuracy": .3 + i / 10, "lr": .1}
        for i in range(3)]


def lines(ax): return {line.get_label(): line.get_xydata().tolist() for line in ax.lines}


@pytest.mark.parametrize("history", [ROWS, pd.DataFrame(ROWS)])
def test_curves_show_each_column_on_the_axis_that_names_it(history):
    loss, accuracy = plot_curves(history).axes
    assert lines(loss) == {"training, augmented": [[0, 2], [1, 1.5], [2, 1]],
                           "validation": [[0, 2.1], [1, 1.85], [2, 1.6]]}
    (label, points), = lines(accuracy).items()
    assert label == "validation, at the end 50.00 %" and np.allclose(points, [[0, 30], [1, 40], [2, 50]])
    assert [ax.get_xlabel() for ax in (loss, accuracy)] == ["epoch"] * 2
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy, %")


def test_a_first_validation_loss_far_above_all_else_is_cut_and_said():
    def axis(first, later=1.):
        rows = [{"epoch": i, "train_loss": 2. - i / 2, "valid_loss": later} for i in range(4)]
        ax, = plot_curves([rows[0] | {"valid_loss": first}, *rows[1:]]).axes
        return ax.get_ylim()[1], ax.lines[-1].get_label()
    assert axis(31.96) == (pytest.approx(2.4), "validation (highest 32)")
    assert axis(3.)[0] > 3 and axis(3.)[1] == "validation", "control: nothing is lost from sight"
    assert axis(8., later=7.)[0] > 8, "one that stays high is the result, not a spike"


def test_one_epoch_without_accuracy_is_a_visible_point():
    ax, = plot_curves([{"epoch": 0, "train_loss": 1.}]).axes
    assert [(line.get_label(), line.get_marker()) for line in ax.lines] == [("training, augmented", "o")]


def test_schedule_shows_rate_and_momentum_and_says_where_the_peak_is():
    rate, mom = plot_lr_schedule([.1, .2, .4, .1, 0], [.95, .9, .85, .9, .95], steps_per_epoch=2).axes
    assert rate.lines[0].get_xydata().tolist() == [[0, .1], [.5, .2], [1, .4], [1.5, .1], [2, 0]]
    assert mom.lines[0].get_ydata().tolist() == [.95, .9, .85, .9, .95]
    assert rate.get_title() == "From 0.1 to 0.4 at epoch 1.0, then to 0" and mom.get_xlabel() == "epoch"
    assert (rate.get_ylabel(), mom.get_ylabel()) == ("learning rate", "momentum")


def test_schedule_without_momentum_counts_steps():
    ax, = plot_lr_schedule([.1, .2]).axes
    assert ax.get_xlabel() == "step" and "at step 1" in ax.get_title()


@pytest.mark.parametrize("lrs, title, scale", [
    ([.1] * 30 + [.01] * 20 + [.001] * 10, "From 0.1 down to 0.001", "log"),
    ([.1] * 9, "0.1 throughout", "linear"), ([.1, .05, 0], "From 0.1 down to 0", "linear"),
    ([.1, .2, .1], "From 0.1 to 0.2 at step 1, then to 0.1", "linear")])
def test_a_rate_that_never_rises_is_said_so_and_stairs_are_seen(lrs, title, scale):
    ax, = plot_lr_schedule(lrs).axes
    assert (ax.get_title(), ax.get_yscale()) == (title, scale)


def test_suggestions_lie_on_the_curve_of_the_rate_finder():
    lrs, losses = np.logspace(-4, 0, 50), np.linspace(3, 1, 50)
    ax, = plot_lr_find(lrs, losses, {"valley": 1e-2, "steep": 1e-3}, chosen=5e-3).axes
    found = lines(ax)
    np.testing.assert_allclose(found["valley  0.01"], [[1e-2, 2]])
    np.testing.assert_allclose(found["steep  0.001"], [[1e-3, 2.5]])
    assert [x for x, _ in found["chosen  0.005"]] == [5e-3] * 2
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "learning rate"


def test_divergence_does_not_flatten_the_rate_finders_curve():
    losses = np.r_[np.linspace(2.3, 1.2, 40), 5, 50, 1e6, np.nan, np.inf]
    ax, = plot_lr_find(np.logspace(-4, 1, 45), losses).axes
    low, high = ax.get_ylim()
    assert low < 1.2 and 2.3 < high < 3 and len(ax.lines[0].get_xdata()) == 43


def test_matrix_is_drawn_row_by_row_with_its_texts():
    shares = np.array([[.75, .25], [0, 1]])
    ax, = plot_matrix(shares, ("a_$1$", "x" * 40), np.array([["3", "1"], ["0", "9"]]), "Title").axes
    assert (ax.images[0].get_array() == shares).all()
    texts = {t.get_position(): t.get_text() for t in ax.texts}
    assert texts == {(0, 0): "3", (1, 0): "1", (0, 1): "0", (1, 1): "9"}
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a_$1$", "x" * 23 + "…"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("Predicted", "Actual", "Title")


def test_a_matrix_of_a_hundred_classes_has_a_page_and_no_texts():
    fig = plot_matrix(np.eye(100), [f"class {i}" for i in range(100)])
    assert fig.get_size_inches().tolist() == [16, 16] and not fig.axes[0].texts


def test_scores_stand_beside_their_class_and_a_missing_class_says_so():
    ax, = plot_scores(per_class(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ("a", "b", "c$")), .875).axes
    accuracy, precision, mean = ax.lines
    assert accuracy.get_xdata()[:2].tolist() == [75, 100] and precision.get_xdata()[:2].tolist() == [100, 80]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a  75.0", "b  100.0", "c$  –"]
    assert mean.get_label() == "all pictures: 87.50 % accuracy" and ax.get_ylim() == (2.5, -.5)


def test_no_class_is_offered_more_than_100_per_cent():
    for wrong in (1, 40):
        scores = per_class(np.array([[100 - wrong, wrong], [0, 100]]), ("a", "b"))
        ax, = plot_scores(scores, 1 - wrong / 200).axes
        low, high = ax.get_xlim()
        assert max(ax.get_xticks()) == 100 < high and min(ax.get_xticks()) >= low == 98 - wrong
        assert len(ax.get_xticks()) > 2


def test_bins_show_accuracy_over_confidence_and_the_error():
    top, bottom = plot_bins(*calibration(np.array([.95, .95, .55]), np.array([True, False, True]), 10)).axes
    np.testing.assert_allclose(top.lines[-1].get_xydata(), [[.55, 1], [.95, .5]])
    (small, large), = (c.get_sizes() for c in top.collections if len(c.get_offsets()) == 2)
    assert small < large
    assert [p.get_height() for p in bottom.patches] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    assert top.get_title() == f"Expected calibration error {100 * (.45 * 2 / 3 + .45 / 3):.1f} %"
