"""What stands on the page of a run: its numbers, neighbours, sheets and charts."""
import base64
import io
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_net

from cifar_fastai.explain import ImageInterpretation, clean_dl
from cifar_fastai.page import write_report
from cifar_fastai.page.content import accuracy_interval, confused_pairs, explorer, in_json
from cifar_fastai.page.neighbours import FeatureRecorder, features_of, nearest
from cifar_fastai.page.sprites import map_sheet, picture_sheet
from cifar_fastai.page.svg import Line, Mark, line_chart
from cifar_fastai.runs.report import numbers


@pytest.fixture
def interp(learner):
    learn = learner(aug=None)
    learn.fit_one_cycle(1, .02)
    return ImageInterpretation.from_learner(learn)


@pytest.mark.parametrize("right, n, low, high", [(90, 100, .8256, .9448), (0, 10, 0, .2775),
                                                 (10, 10, .7225, 1)])
def test_the_interval_is_wilsons(right, n, low, high):
    "Newcombe 1998, table I, by the score method without correction"
    assert accuracy_interval(right, n) == pytest.approx((low, high), abs=1e-4)


def test_the_most_confused_pairs_are_counted_and_show_their_surest_pictures(interp):
    pairs, cm = confused_pairs(interp, n=50), interp.confusion_matrix()
    assert {(p["actual"], p["predicted"]): p["count"] for p in pairs} == \
        {(i, j): cm[i, j] for i, j in np.ndindex(cm.shape) if i != j and cm[i, j]}
    assert [p["count"] for p in pairs] == sorted((p["count"] for p in pairs), reverse=True)
    for p in pairs:
        for i in p["pictures"]:
            assert (interp.targs[i], interp.decoded[i]) == (p["actual"], p["predicted"])
        sure = interp.confidence[p["pictures"]].tolist()
        assert sure == sorted(sure, reverse=True) and len(sure) == min(3, p["count"])


def test_the_explorer_has_all_mistakes_and_the_right_answers_with_the_largest_loss(interp):
    data = explorer(interp).data
    wrong = interp.misclassified().tolist()
    assert data["index"][:len(wrong)] == wrong and data["mistakes"] == len(wrong) and data["n"] == 48
    right = data["index"][len(wrong):]
    losses = interp.losses[right].tolist()
    assert losses == sorted(losses, reverse=True) and all(interp.correct[i] for i in right)
    assert [m["layer"] for m in data["maps"]] == ["layer4+layer2", "layer1", "layer2", "layer3", "layer4"]


def pixels(sheet, k):
    image = Image.open(io.BytesIO(base64.b64decode(sheet["uri"].split(",")[1])))
    x, y = k % sheet["columns"] * sheet["width"], k // sheet["columns"] * sheet["height"]
    return np.asarray(image)[y:y + sheet["height"], x:x + sheet["width"]].astype(float)


def test_pictures_and_maps_lie_where_the_script_looks_for_them(interp):
    data = explorer(interp).data
    for k in (0, 5, len(data["index"]) - 1):
        i = data["index"][k]
        seen, want = (x.reshape(2, 8, 2, 8, 3).mean((1, 3)) for x in
                      (pixels(data["pictures"], k), 255 * interp.picture(i)))
        assert np.abs(seen - want).max() < 8, "but for what WebP leaves out"
        own = interp.gradcam([i], "layer1", "true", "layercam")["layer1"][0]
        small = own.reshape(8, 2, 8, 2).mean((1, 3))
        assert np.abs(pixels(data["maps"][1]["true"], k) / 255 - small).max() < .03


@pytest.mark.parametrize("layer, names, methods", [
    (r"layer[34]", ["layer3", "layer4", "layer1", "layer2"], ["gradcam", "gradcam", "layercam", "layercam"]),
    (r"layer3\.0", ["layer3.0", "layer1", "layer2", "layer3", "layer4"], ["gradcam", *["layercam"] * 4]),
    ("layer4+layer2", ["layer4+layer2", "layer1", "layer2", "layer3", "layer4"],
     ["gradcam", *["layercam"] * 4])])
def test_the_layers_of_the_run_come_first_also_by_an_expression(interp, layer, names, methods):
    maps = explorer(interp, layer).data["maps"]
    assert ([m["layer"] for m in maps], [m["method"] for m in maps]) == (names, methods)


def test_a_name_of_a_test_picture_that_is_no_utf8_is_a_page_too(interp, tmp_path):
    names = [os.fsdecode(b"caf\xe9 %d.png" % i) for i in range(len(interp))]
    interp.learn.dls.data = replace(interp.learn.dls.data, files_test=names)
    results = numbers(interp) | {
        "recipe": "tiny", "data": "x", "training_pictures": 160, "epochs": 1, "bs": 32, "lr": .02, "seed": 0,
        "tta": "none", "parameters": 1, "precision": "fp32", "seconds": 3, "device": "cpu", "versions": {}}
    page = write_report(tmp_path, interp, results, command=names[0]).read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert data["name"] == [names[i] for i in data["index"]] and r"caf\udce9 0.png" in page


def test_a_sheet_keeps_maps_to_a_thirtieth():
    maps = np.random.default_rng(0).random((70, 4, 6))
    sheet = map_sheet(maps).as_dict()
    assert (sheet["width"], sheet["height"], sheet["columns"], sheet["n"]) == (6, 4, 32, 70)
    assert max(np.abs(pixels(sheet, k) / 255 - maps[k]).max() for k in range(70)) <= .5 / 31 + 1e-2
    assert picture_sheet(np.zeros((3, 8, 8, 3), np.uint8)).columns == 3


def test_a_sheet_of_more_pictures_than_fit_below_one_another_is_wider():
    "WebP takes a side of 16,383 pixels: 64 rows of these"
    tiles = np.zeros((2100, 255, 1, 3), np.uint8)
    tiles[-1] = 200
    sheet = picture_sheet(tiles).as_dict()
    assert sheet["columns"] == 33 and np.abs(pixels(sheet, 2099) - 200).max() < 20
    assert pixels(sheet, 2098).max() < 40


def test_the_nearest_are_those_of_the_smallest_angle():
    rng = torch.Generator().manual_seed(0)
    known, asked = torch.randn(60, 8, generator=rng), torch.randn(7, 8, generator=rng)
    known[3] = 0
    places, cosines = nearest(asked, known, 4)
    every = torch.nn.functional.cosine_similarity(asked[:, None], known[None], dim=2)
    every[:, 3] = -2
    want = every.topk(4, 1)
    assert torch.equal(places, want.indices) and torch.allclose(cosines, want.values, atol=1e-5)
    assert torch.equal(nearest(known[:3] * 7, known, 1)[0][:, 0], torch.arange(3)), "a duplicate finds itself"


def test_features_of_the_last_epoch_stand_at_their_picture(learner):
    "With group norm, no augmentation and a rate of 0 they are those of a pass of their own"
    def net(n_out, **_): return tiny_net(n_out, norm="gn")
    learn, recorder = learner(aug=None, arch=net(4)), FeatureRecorder()
    learn.fit(2, 0., cbs=recorder)
    own = features_of(learn, clean_dl(learn, 0))
    assert own.shape == (160, 12) and torch.allclose(recorder.features.float(), own.float(), atol=1e-3)
    assert own.float().std(0).max() > .01, "pictures differ"
    assert not learn.model.fc._forward_pre_hooks


def test_features_leave_the_net_as_it_was_also_where_a_batch_cannot_be_read(learner):
    learn = learner(aug=None)
    model = learn.model.train()
    frozen = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    def unreadable():
        yield learn.dls.valid.one_batch()
        raise OSError("gone")
    assert len(features_of(learn, clean_dl(learn, 0))) == 160
    assert model.training and not frozen.training
    with pytest.raises(OSError, match="gone"): features_of(learn, unreadable())
    assert model.training and not frozen.training and not model.fc._forward_pre_hooks


def test_a_recorder_leaves_no_hook_where_an_epoch_is_interrupted(learner):
    from fastai.callback.core import Callback
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    learn = learner()
    with pytest.raises(KeyboardInterrupt): learn.fit(1, .01, cbs=[FeatureRecorder(), Stop()])
    assert not learn.model.fc._forward_pre_hooks


def test_a_recorder_has_no_features_of_an_epoch_that_was_resumed_in_its_middle(learner, tmp_path):
    from fastai.callback.core import Callback

    from cifar_fastai.checkpoints.checkpoint import Checkpoint
    class Stop(Callback):
        order = 950
        def after_batch(self):
            if self.training and self.iter == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        learner().fit(1, .01, cbs=[FeatureRecorder(), Checkpoint(tmp_path, every_minutes=0), Stop()])
    learn, recorder, whole = learner(), FeatureRecorder(), FeatureRecorder()
    learn.fit(1, .01, cbs=[recorder, Checkpoint(tmp_path, resume=True)])
    assert recorder.features is None and not learn.model.fc._forward_pre_hooks
    learner().fit(1, .01, cbs=whole)
    assert (whole.features != 0).any(1).all(), "undisturbed, each picture was seen"


def test_neighbours_of_a_mistake_are_training_pictures_with_their_labels(interp):
    data, train = explorer(interp).data, clean_dl(interp.learn, 0)
    own = features_of(interp.learn, train).float()
    tests = features_of(interp.learn, interp.dl).float()
    for i, near in zip(data["index"][:4], data["near"]):
        cosines = [c for _, c in near]
        best = F.cosine_similarity(tests[i], own).sort(descending=True)
        assert cosines == pytest.approx(best.values[:5].tolist(), abs=2e-3)
        assert data["near_index"][near[0][0]] in best.indices[:5].tolist()
        assert len(near) == 5 and cosines == sorted(cosines, reverse=True)
        for at, _ in near:
            place = data["near_index"][at]
            assert data["near_label"][at] == int(train.dataset.tls[-1][place])
    assert len(data["near"]) == data["mistakes"] and own.shape[0] == 160


def test_nothing_in_the_data_can_end_its_script():
    text = in_json({"a": "</script><!--", "b": "犬 & \"x\""})
    assert "<" not in text and json.loads(text) == {"a": "</script><!--", "b": "犬 & \"x\""}


def test_a_chart_has_a_point_for_each_value_and_tells_it():
    lines = Line("a<b", [1, 2, 3], [1., float("nan"), 3.]), Line("c", [1, 2, 3], [2., 2., 2.])
    svg = line_chart(lines, "epoch", "loss", title="Loss", marks=[Mark("here", 2)])
    told = re.findall(r"<circle.*?<title>(.*?)</title>", svg)
    assert told == ["a&lt;b, epoch 1: 1", "a&lt;b, epoch 3: 3", *(f"c, epoch {k}: 2" for k in (1, 2, 3))]
    ys = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert ys[0] > ys[2] > ys[1], "larger values stand higher"
    assert 'aria-label="Loss"' in svg and "<title>here</title>" in svg


def test_a_chart_of_nothing_says_so():
    svg = line_chart([Line("a", [1], [float("inf")])], "epoch", "loss", title="Loss")
    assert "nothing was recorded" in svg


def test_a_logarithmic_axis_puts_decades_at_equal_distances():
    svg = line_chart([Line("a", [1e-4, 1e-2, 1], [1, 2, 3])], "rate", "loss", title="t", log=True)
    x = [float(v) for v in re.findall(r'cx="([\d.]+)"', svg)]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=.2)
