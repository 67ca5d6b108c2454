"Any picture explained, and whether the explanations hold: on our Learner and on a stock one"
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from stock import MEAN, STD, items, stock_learner
from tiny import CLASSES
from torch import nn

from cifar_fastai.checkpoints.learner_state import generators
from cifar_fastai.data.image_data import ImageData
from cifar_fastai.errors import InputError
from cifar_fastai.explain.any_picture import choose, gradcam_of
from cifar_fastai.explain.interpretation import ImageInterpretation
from cifar_fastai.gradcam.cam import GradCAM, default_layer
from cifar_fastai.gradcam.faithfulness import compare_maps
from cifar_fastai.gradcam.methods import METHODS, upsample
from cifar_fastai.loaders.block import cifar_dataloaders
from cifar_fastai.plots.figures import BAD, GOOD, offscreen, overlay, percent
from cifar_fastai.training.learner import cifar_learner


@pytest.fixture(autouse=True)
def without_windows():
    with offscreen(): yield


@pytest.fixture
def ours(learner):
    learn = learner()
    learn.fit(3, .1)
    return learn


def texts(fig): return [(ax.get_title(), ax.get_xlabel()) for ax in fig.axes if ax.images]
def shown(fig): return [np.asarray(ax.images[0].get_array()) for ax in fig.axes if ax.images]
def close(a, b, atol=1e-5): np.testing.assert_allclose(a, b, atol=atol, rtol=0)


def normalised(pixels, data):
    "(N,S,S,3) uint8 as the net gets it"
    x = torch.tensor(pixels / 255, dtype=torch.float32)
    return ((x - torch.tensor(data.mean)) / torch.tensor(data.std)).permute(0, 3, 1, 2).float()


# ---- any picture -------------------------------------------------------------------------------------------

def test_one_picture_in_any_form_gives_the_same_map(ours, learnable, tmp_path):
    pixels = learnable.x_test[7]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    want = GradCAM(ours.model, "layer3")(normalised(pixels[None], learnable))
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), tmp_path, pixels, Image.fromarray(pixels),
             (tmp_path / "a.png").read_bytes(), [pixels], (pixels,), pixels[None],
             7, np.int64(7), torch.tensor(7), torch.tensor([7]), range(7, 8)]
    for form in forms:
        fig, cam = ours.gradcam(form, layer="layer3")
        close(cam.maps, want.maps)
        close(cam.logits, want.logits, atol=1e-4)
        close(shown(fig)[0], pixels / 255)
        close(shown(fig)[1], overlay(pixels, cam.maps[0]))    # its own: colours come in 256 steps


def test_a_picture_of_another_size_is_read_as_in_training(ours):
    big = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    small = np.asarray(Image.fromarray(big).resize((16, 16), Image.Resampling.BILINEAR))
    close(ours.gradcam(big).cam.raw, ours.gradcam(small).cam.raw)


def test_figure_says_what_was_said_and_what_is_true(ours, learnable):
    fig, cam = ours.gradcam([0, 5, 9], layer=["layer1", "layer3"])
    probs, found = torch.stack([o.softmax(0) for o in cam.logits]), texts(fig)   # as it is done: digits count
    for i, k in enumerate([0, 5, 9]):
        (above, below), *rest = found[3 * i:3 * i + 3]
        said, true = probs[i].argmax().item(), learnable.y_test[k]
        assert above == f"pred {CLASSES[said]} ({percent(probs[i, said].item())})"
        p = probs[i, true]
        assert below == f"true {CLASSES[true]} ({percent(p.item())})\nloss {-p.log():.2f}"
        assert rest == [(f"why {CLASSES[said]}", "layer1"), (f"why {CLASSES[said]}", "layer3")]
        assert fig.axes[4 * i].title.get_color() == (GOOD if said == true else BAD)
    assert fig.axes[-1].get_xlabel() == "evidence for the class" and list(cam.maps) == ["layer1", "layer3"]


def test_of_a_picture_without_a_label_the_second_guess_is_told(ours, learnable):
    fig, cam = ours.gradcam(learnable.x_test[0])
    second = cam.logits[0].argsort(descending=True)[1].item()
    likely = percent(cam.logits[0].softmax(0)[second].item())
    assert texts(fig)[0][1] == f"or {CLASSES[second]} ({likely})"


def test_text_and_colour_bar_can_be_left_out(ours):
    with_all, bare = (ours.gradcam([0, 1], **kw).figure for kw in ({}, {"text": False, "colorbar": False}))
    assert texts(bare) == [("", "")] * 4 and len(with_all.axes) == len(bare.axes) + 1
    close(shown(bare), shown(with_all))


@pytest.mark.parametrize("target, want", [("ship", [3, 3]), (2, [2, 2]), ("true", [0, 1]), ("pred", None)])
def test_maps_are_for_the_class_asked_for(ours, target, want):
    fig, cam = ours.gradcam([0, 1], target=target, method="layercam")
    said = cam.logits.argmax(1).tolist()
    assert cam.target.tolist() == (want or said)
    titles = [f"{'why' if c == s else 'where'} {CLASSES[c]}" for c, s in zip(want or said, said)]
    assert [above for above, _ in texts(fig)[1::2]] == titles
    xb = choose(ours, [0, 1]).xb
    close(cam.raw, GradCAM(ours.model, default_layer(ours.model))(xb, cam.target, method="layercam").raw)
    strongest = upsample(GradCAM(ours.model, cam.names)(xb, method="layercam").raw, (16, 16)).amax((1, 2))
    mine = upsample(cam.raw, (16, 16))
    top = torch.maximum(strongest, mine.amax((1, 2)))[:, None, None]
    close(cam.maps, mine / top)                                      # on one scale with the predicted class


def test_what_speaks_against_a_class_is_shown_in_blue_where_that_is_asked_for(ours):
    fig, cam = ours.gradcam([0, 1], "layer3", target="ship", method="hirescam", signed=True)
    assert cam.maps.min() < 0 and cam.maps.abs().max() <= 1 and cam.raw.min() < 0
    assert [t.get_text() for t in fig.axes[-1].get_xticklabels()] == ["against", "for"]
    for i in (0, 1):
        want = overlay(choose(ours, [0, 1]).pictures[i], cam.maps[i], signed=True)
        close(shown(fig)[2 * i + 1], want, atol=1e-4)
    with pytest.raises(InputError, match="'layercam' leaves out what speaks against"):
        ours.gradcam(0, method="layercam", signed=True)


@pytest.mark.parametrize("items, kwargs, says", [
    ("nowhere.png", {}, "nowhere.png is not there"), ([], {}, "0 pictures"), (range(201), {}, "201 pictures"),
    (48, {}, "no picture 48 in the validation set. Choose 0 to 47"), (-1, {}, "no picture -1"),
    ([0, np.zeros((9, 9, 3), np.uint8)], {}, "one kind at a time"),
    (0, {"layer": "layer9"}, "Did you mean layer"), (0, {"target": "shp"}, "Did you mean ship"),
    (0, {"target": 4}, "target 4 is no class"),
    (0, {"method": "layrcam"}, "Did you mean layercam"), (0, {"cmap": "infernal"}, "Did you mean inferno"),
    (np.zeros((9, 9, 3), np.uint8), {"target": "true"}, "have no labels")])
def test_what_will_not_do_is_refused_with_the_way_out(ours, items, kwargs, says):
    with pytest.raises(InputError, match=says): ours.gradcam(items, **kwargs)


def test_a_look_changes_nothing(ours):
    ours.model.train()
    before, loader = generators(ours), ours.dls.train.rng.getstate()
    ours.gradcam([1, 2])
    after = generators(ours)
    assert torch.equal(before["torch"], after["torch"]) and before["python"] == after["python"]
    assert ours.model.training and loader == ours.dls.train.rng.getstate()
    assert not any(m._forward_hooks for m in ours.model.modules())
    ours.dls.valid.new()
    assert generators(ours)["python"] != before["python"]               # the control: making a loader draws


def test_a_stock_learner_explains_too():
    learn = stock_learner()
    x = items(35)[12 + 4][0]
    xb = ((torch.tensor(x / 255) - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None].float()
    want = GradCAM(learn.model, "layer2")(xb)
    for form in (4, Image.fromarray(x), [Image.fromarray(x)]):
        fig, cam = gradcam_of(learn, form, "layer2")
        close(cam.maps, want.maps, atol=1e-4)
        close(shown(fig)[0], x / 255, atol=1e-5)


def test_a_vision_learner_explains_files(tmp_path):
    from fastai.vision.augment import Resize
    from fastai.vision.data import ImageDataLoaders
    from fastai.vision.learner import vision_learner
    from torchvision.models import resnet18
    rng = np.random.default_rng(0)
    for i in range(6):
        folder = tmp_path / ("cat", "dog")[i % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), np.uint8)).save(folder / f"{i}.png")
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=.5, seed=0, bs=2, item_tfms=Resize(64),
                                       num_workers=0, device=torch.device("cpu"))
    learn = vision_learner(dls, resnet18, pretrained=False, normalize=False)
    fig, cam = gradcam_of(learn, [tmp_path / "cat/0.png", tmp_path / "dog/1.png"], layer=["0.6", "0.7"])
    assert cam.raw["0.6"].shape == (2, 4, 4) and shown(fig)[0].shape == (64, 64, 3)
    close(learn.predict(tmp_path / "cat/0.png")[2], cam.logits.softmax(1)[0])
    by_place, by_path = (gradcam_of(learn, o, "0.6").cam.raw for o in (0, dls.valid_ds.items[0]))
    close(by_place, by_path)


# ---- do the maps hold? -------------------------------------------------------------------------------------

def digits_somewhere():
    "scikit-learn's digits, doubled, each somewhere in a 32×32 picture of noise"
    from sklearn.datasets import load_digits
    rng, found = np.random.default_rng(0), load_digits()
    x = rng.integers(0, 128, (len(found.target), 32, 32, 1)).repeat(3, -1).astype(np.uint8)
    big = (found.images * 15.9).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    for picture, digit, (r, c) in zip(x, big, rng.integers(0, 17, (len(x), 2))):
        place = picture[r:r + 16, c:c + 16]
        np.maximum(place, digit[..., None], out=place)
    order = rng.permutation(len(x))
    train, test = order[:-200], order[-200:]
    return ImageData(x[train], found.target[train], x[test], found.target[test], tuple("0123456789"),
                     "digits somewhere", "", (.3,) * 3, (.25,) * 3)


def small_net(n_out, n_in=3, norm="bn"):
    def conv(i, o, s):
        return nn.Sequential(nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    return nn.Sequential(OrderedDict(
        layer1=conv(n_in, 16, 2), layer2=conv(16, 32, 1), layer3=conv(32, 64, 2), layer4=conv(64, 64, 1),
        pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(64, n_out)))


@pytest.fixture(scope="module")
def trained():
    dls = cifar_dataloaders(digits_somewhere(), 64, None, device="cpu", num_workers=0)
    learn = cifar_learner(dls, small_net, opt="adam", wd=0, precision="fp32", smoothing=0.0)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(6, .01)
    return ImageInterpretation.from_learner(learn)


def test_maps_of_a_trained_net_beat_noise_and_a_centred_blob(trained):
    assert trained.accuracy > .9
    table = trained.gradcam_faithfulness(100, "layer4", METHODS, steps=8)
    assert len(table) == len(METHODS) * 6 and set(table.n) == {100} and table.better.all()
    assert set(table.method) == set(METHODS) and set(table.control) == {"random", "centred", "mean map"}
    np.testing.assert_allclose(table.difference, table.auc - table.control_auc, atol=1e-6)
    assert (table.low < table.difference).all() and (table.difference < table.high).all()
    rises = table.measure == "insertion"
    assert (table.low[rises] > 0).all() and (table.high[~rises] < 0).all()


def test_maps_of_other_pictures_and_maps_upside_down_do_not(trained):
    found, model = choose(trained.learn, range(100)), trained.learn.model
    out = GradCAM(model, "layer4")(found.xb)
    raws = {"its own": out.raw, "the next one's": out.raw.roll(1, 0), "upside down": -out.raw}
    rows = compare_maps(model, found.xb, raws, out.target, steps=8)
    assert {name for name in raws if all(r["better"] for r in rows if r["method"] == name)} == {"its own"}
    assert not any(r["better"] for r in rows if r["method"] == "upside down")


def test_figures_are_those_of_the_same_pictures_each_time(trained):
    a, b = (trained.gradcam_faithfulness(20, "layer4", "hirescam", 4) for _ in range(2))
    assert a.equals(b) and not a.equals(trained.gradcam_faithfulness(20, "layer4", "hirescam", 4, seed=1))


@pytest.mark.parametrize("kwargs, says", [
    ({"n": 0}, "n=0"), ({"layer": ["layer3", "layer4"]}, "one at a time"),
    ({"methods": "cam"}, "unknown method"), ({"baseline": "grey"}, "baseline")])
def test_what_cannot_be_judged_is_refused(trained, kwargs, says):
    with pytest.raises(InputError, match=says): trained.gradcam_faithfulness(**{"n": 4, "steps": 2} | kwargs)
