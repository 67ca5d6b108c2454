import json

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image
from stock import CLASSES, BlackOut, items, stock_dls, stock_learner

from cifar_fastai.explain.interpretation import ImageInterpretation
from cifar_fastai.plots.figures import offscreen
from cifar_fastai.runs import report
from cifar_fastai.runs.report import (
    FoundRate,
    measure_evidence,
    numbers,
    plot_batch,
    plot_classes,
    write_data,
    write_interpretation,
    write_training,
)


@pytest.fixture(autouse=True)
def no_figures_of_others(): plt.close("all")


@pytest.fixture(scope="module")
def interp(): return ImageInterpretation.from_learner(stock_learner(), tta=True)


def shown(fig): return [np.asarray(ax.images[0].get_array()) for ax in fig.axes if ax.images]


def figures(folder): return sorted(p.name for p in (folder / "figures").iterdir())


def test_a_run_leaves_the_figures_that_it_has_data_for(tmp_path):
    history = [{"epoch": i, "train_loss": 1 - i / 3, "valid_loss": 1., "accuracy": i / 2} for i in range(2)]
    found = FoundRate(np.logspace(-3, 0, 20), np.linspace(2, 1, 20), {"valley": .01}, .01)
    write_training(tmp_path / "a", history=history)
    paths = write_training(tmp_path / "b", history, [.1, .2], [.9, .8], 1, found)
    assert figures(tmp_path / "a") == ["curves.png"]
    assert figures(tmp_path / "b") == ["curves.png", "lr_find.png", "lr_schedule.png"]
    assert set(paths) == {"curves", "lr_find", "lr_schedule"}
    assert all(Image.open(p).format == "PNG" for p in paths.values()) and plt.get_fignums() == []


def test_interpretation_leaves_six_figures_over_those_of_before(interp, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "confusion.png").write_bytes(b"old")
    paths = write_interpretation(tmp_path, interp, n=2, cams=1)
    assert set(paths) == {"top_losses", "misclassified", "gradcam", "gradcam_layers", "confusion",
                          "per_class", "calibration"}
    assert figures(tmp_path) == sorted(f"{name}.png" for name in paths)
    assert Image.open(paths["confusion"]).size[0] > 300 and plt.get_fignums() == []


def test_the_captions_say_how_far_the_maps_can_be_believed(interp, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(report, "_write", lambda out, figures: drawn.update(figures))
    found = measure_evidence(interp, "layer2", trained=10 ** 6)
    write_interpretation(tmp_path, interp, "layer2", n=2, cams=2, evidence=found)
    below = lambda name: drawn[name]()._supxlabel.get_text().replace("\n", " ")
    with offscreen():
        one, = found["gradcam"]
        assert below("gradcam") == one.caption and "gradcam at layer2: insertion" in one.caption
        layered = found["gradcam_layers"]
        assert [e.layer for e in layered] == ["layer2", "layer3"]
        assert below("gradcam_layers") == " ".join(e.caption for e in layered)
        write_interpretation(tmp_path, interp, "layer2", n=2, cams=2)
        assert drawn["gradcam"]()._supxlabel is None, "nothing was measured"


@pytest.mark.parametrize("layer, first", [(None, "layer3"), ("layer3", "layer3"), ("layer2", "layer2")])
def test_every_map_that_the_figures_show_is_measured_once_the_chosen_one_first(interp, layer, first):
    assert measure_evidence(interp, layer, trained=100) == {}
    by_figure = measure_evidence(interp, layer, trained=10 ** 6)
    assert [e.layer for e in by_figure["gradcam_layers"]] == ["layer2", "layer3"]
    found = [e for some in by_figure.values() for e in some]
    assert found[0].layer == first and len({(e.layer, e.method) for e in found}) == len(found)
    assert {(e.layer, e.method) for e in found} >= {("layer3", "gradcam"), ("layer2", "layercam")}
    assert {e.pictures for e in found} == {len(interp)}


def test_batch_is_shown_augmented_and_classes_are_not(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(report, "plot_batch", lambda *a: drawn.setdefault("batch", plot_batch(*a)))
    monkeypatch.setattr(report, "plot_classes", lambda *a: drawn.setdefault("classes", plot_classes(*a)))
    dls = stock_dls(item_tfms=BlackOut)
    assert set(write_data(tmp_path, dls, n=6, each=2)) == {"batch", "classes"}
    assert np.abs(shown(drawn["batch"])).max() < 1e-6 and len(shown(drawn["batch"])) == 6
    tiles, training = shown(drawn["classes"]), items(35)[:12]
    for c, name in enumerate(CLASSES):
        mine = [x / 255 for x, y in training if y == name]
        for tile in (tiles[c], tiles[len(CLASSES) + c]):
            assert any(np.allclose(tile, x, atol=1e-6) for x in mine)
    assert dls.train.dataset.split_idx == 0


def test_classes_stand_in_columns_and_a_class_with_few_pictures_has_empty_places():
    pictures = np.stack([np.full((4, 4, 3), i, np.uint8) for i in range(5)])
    with offscreen(): fig = plot_classes(pictures, [1, 0, 1, 1, 1], ("a", "b", "none"), each=2)
    tiles = [x.max() if x.shape == (4, 4, 3) else None for x in shown(fig)]
    assert tiles == [1 / 255, 0, None, None, 2 / 255, None]
    assert [ax.get_title() for ax in fig.axes] == ["a", "b", "none", "", "", ""]


def test_many_classes_go_on_in_further_rows():
    names = [str(i) for i in range(12)]
    with offscreen(): fig = plot_classes([np.zeros((2, 2, 3))] * 12, range(12), names, each=1)
    assert [ax.get_title() for ax in fig.axes if ax.get_title()] == names
    assert fig.axes[0].get_gridspec().get_geometry() == (2, 10)


def test_batch_is_titled_with_its_classes():
    with offscreen(): fig = plot_batch(np.zeros((3, 4, 4, 3)), np.array([1, 0, 1]), ("a$", "b_"))
    assert [ax.get_title() for ax in fig.axes] == ["b_", "a$", "b_"]


def test_numbers_are_json_and_agree_with_the_interpretation(interp):
    found = json.loads(json.dumps(numbers(interp)))
    assert found["accuracy"] == interp.accuracy and found["accuracy_tta"] == interp.accuracy_tta
    assert found["pictures"] == 23 and found["mistakes"] == round(23 * (1 - interp.accuracy))
    assert list(found["accuracy_per_class"]) == list(CLASSES)
    assert found["loss"] == pytest.approx(interp.losses.mean().item())
    plain = ImageInterpretation.from_learner(interp.learn)
    assert "accuracy_tta" not in numbers(plain)


def test_predictions_are_written_as_csv(interp, tmp_path):
    text = interp.to_csv(tmp_path / "predictions.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "index,true,predicted,confidence,loss" and len(text.splitlines()) == 24
