"The same pictures while a net learns: which, when, how, and that nothing else is touched"
import copy
import gc
import io
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.tracker import EarlyStoppingCallback
from PIL import Image
from stock import count_calls, stock_dls, stock_learner
from tiny import CLASSES, learnable as make, tiny_net
from torch import nn

from cifar_fastai.checkpoints.checkpoint import Checkpoint
from cifar_fastai.errors import InputError
from cifar_fastai.explain import gradcam_callback as cam_callback
from cifar_fastai.explain.any_picture import choose
from cifar_fastai.explain.gradcam_callback import GradCAMCallback, _of_each
from cifar_fastai.gradcam.cam import GradCAM
from cifar_fastai.gradcam.faithfulness import insertion_deletion
from cifar_fastai.gradcam.methods import METHODS, heatmaps, upsample
from cifar_fastai.loaders.block import cifar_dataloaders
from cifar_fastai.loaders.picture_store import PictureStore
from cifar_fastai.plots.figures import GOOD, offscreen, overlay
from cifar_fastai.runs.logs import TensorBoardLog
from cifar_fastai.training.precision import Precision


@pytest.fixture(autouse=True)
def without_windows():
    with offscreen(): yield


def fitted(learn, epochs=2, lr=.01, **kwargs):
    cam = GradCAMCallback(**{"layer": "layer2"} | kwargs)
    learn.fit(epochs, lr, cbs=cam)
    return cam


def close(a, b, atol=1e-5): torch.testing.assert_close(a, b, rtol=0, atol=atol)


def plain_maps(model, xb, layer, **kwargs):
    "Maps by a copy of the model in its plainest form"
    model = copy.deepcopy(model).float().eval().to(memory_format=torch.contiguous_format)
    return GradCAM(model, layer)(xb.contiguous(), **kwargs).maps


class Witness(Callback):
    "At the end of each epoch, after the maps: what a plain Grad-CAM on the model at that moment gives"
    order = GradCAMCallback.order + 1
    def __init__(self, cam): self.cam, self.seen = cam, {}
    def after_epoch(self):
        cam, epoch = self.cam, self.epoch + 1
        maps = plain_maps(self.learn.model, cam.inputs, cam.layer, target=cam.targets[epoch],
                          method=cam.method)
        self.seen[epoch] = maps


def state_of(model):
    return [(name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()] + [p.requires_grad for p in model.parameters()]


# ---- which pictures, and when ------------------------------------------------------------------------------

def test_pictures_are_of_each_class_by_turns_however_the_set_is_sorted(learnable):
    for order in (np.argsort(learnable.y_test), np.arange(len(learnable.y_test))):
        dls = cifar_dataloaders(learnable, 32, None, device="cpu")
        dls.valid.dataset.tls[-1].items = dls.valid.dataset.tls[-1].items[order]
        chosen = _of_each(dls.valid.dataset, 6, len(CLASSES))
        assert chosen == _of_each(dls.valid.dataset, 6, len(CLASSES)) and len(set(chosen)) == 6
        labels = [int(dls.valid.dataset.tls[-1][i]) for i in chosen]
        assert labels == [0, 1, 2, 3, 0, 1]


def test_few_items_or_items_without_a_label_are_simply_taken():
    dls = stock_dls(n_valid=3)
    assert sorted(_of_each(dls.valid.dataset, 8, 4)) == [0, 1, 2]
    assert len(set(_of_each(range(50), 8, 4))) == 8


def test_maps_are_of_the_same_pictures_in_every_set(learner, learnable):
    learn = learner()
    cam, dl = fitted(learn, items=[5, 0, 17], epochs=3, every=2), learn.dls.valid
    assert list(cam.maps) == [0, 2, 3] and cam.pictures.shape == (3, 16, 16, 3)
    xb = next(iter(dl.new(bs=48)))[0][[5, 0, 17]]
    xb = xb.as_subclass(torch.Tensor)
    close(cam.maps[3], plain_maps(learn.model, xb, "layer2", target=cam.predicted[3]), atol=1e-4)
    np.testing.assert_allclose(cam.pictures, learnable.x_test[[5, 0, 17]] / 255, atol=1e-6)
    assert not torch.allclose(cam.maps[0], cam.maps[3], atol=.01)


def test_as_many_pictures_are_watched_as_one_figure_can_hold(learner):
    data = make(n_test=240)
    learn = learner(cifar_dataloaders(data, 32, None, num_workers=0, device="cpu"))
    cam = fitted(learn, epochs=1, n=64, measure=False)
    assert len(cam.pictures) == 200 and len(cam.shown()) == 64


def test_one_forward_pass_more_for_each_set_and_no_other_picture(learner, monkeypatch):
    passes, seen, take = [], [], PictureStore.take
    monkeypatch.setattr(PictureStore, "take", lambda self, idxs: seen.append(len(idxs)) or take(self, idxs))
    for extra in ({}, {"cbs": GradCAMCallback("layer2", every=2, items=range(5), measure=False)}):
        learn = learner()
        calls = count_calls(learn.model)
        learn.fit(4, .01, **extra)
        passes.append((len(calls), calls.count(5), sum(calls), sum(seen)))
        seen.clear()
    (calls, of_five, pictures, taken), with_maps = passes
    assert of_five == 0 and with_maps == (calls + 3, 3, pictures + 15, taken + 5)      # epochs 0, 2 and 4


@pytest.mark.parametrize("stock", [False, True])
def test_weights_are_those_of_a_fit_without_it(learner, stock):
    weights = []
    for extra in ({}, {"cbs": GradCAMCallback("layer2")}):
        if stock:
            from fastai.torch_core import set_seed
            set_seed(0, reproducible=True)
            learn = stock_learner()
        else: learn = learner(aug="pad_crop_flip_cutout")
        learn.fit(2, .05, **extra)
        weights.append([t.clone() for t in learn.model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*weights))
    assert not torch.equal(weights[0][0], tiny_net(4).state_dict()["layer1.0.weight"])


# ---- right, whatever trains --------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_maps_of_a_net_that_trains_in_bf16_and_channels_last_are_those_of_the_plain_net(learner, method):
    learn = learner(precision="bf16")
    assert any(isinstance(cb, Precision) for cb in learn.cbs)
    assert learn.model.layer1[0].weight.is_contiguous(memory_format=torch.channels_last)
    cam = GradCAMCallback("layer2", method=method)
    witness = Witness(cam)
    learn.fit(3, .05, cbs=[cam, witness])
    assert list(witness.seen) == [1, 2, 3] and {m.dtype for m in cam.maps.values()} == {torch.float32}
    for epoch, want in witness.seen.items(): close(cam.maps[epoch], want, atol=1e-4)
    assert torch.stack(list(cam.maps.values())).amax((0, 2, 3)).eq(1).all()
    other = plain_maps(learn.model, learn.dls.valid.one_batch()[0][:8], "layer2")
    assert not torch.allclose(cam.maps[3][:8], other, atol=.05)              # of other pictures


def test_several_layers_are_taken_from_one_pass(learner):
    learn = learner()
    calls = count_calls(learn.model)
    cam = GradCAMCallback(["layer1", "layer2"], n=3, measure=False)
    learn.fit(1, .01, cbs=cam)
    assert calls.count(12) == 2 and list(cam.maps[1]) == ["layer1", "layer2"]
    alone = fitted(learner(), epochs=1, n=3)
    close(cam.maps[1]["layer2"], alone.maps[1])


@pytest.mark.parametrize("target, classes", [("true", None), (2, [2] * 4), ("dog", [1] * 4)])
def test_maps_are_for_the_class_asked_for_on_one_scale_with_the_predicted_one(learner, target, classes):
    learn = learner()
    cam = fitted(learn, epochs=1, items=[0, 1, 2, 3], target=target)
    assert cam.targets[1].tolist() == (classes or cam.ys.tolist())
    xb = choose(learn, range(4)).xb
    out, predicted = (GradCAM(learn.model, "layer2")(xb, t) for t in (cam.targets[1], None))
    assert torch.equal(cam.predicted[1], predicted.target)
    close(cam.maps[1], heatmaps([out.raw, predicted.raw], (16, 16))[0], atol=1e-4)


def test_pictures_from_elsewhere_can_be_watched(learner, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    cam = fitted(learner(), epochs=1, items=[tmp_path / "a.png", pixels])
    close(cam.maps[1][0], cam.maps[1][1])
    assert cam.ys is None and cam.maps[1].max() == 1
    assert [t.get_text() for t in cam.strip().axes[0].texts] == []


# ---- a stock Learner ---------------------------------------------------------------------------------------

def png_folder(root, n=6):
    rng = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (root / name).mkdir(parents=True)
        for i in range(n):
            noise = rng.integers(-40, 40, (64, 64, 3)) + colour
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def test_it_works_on_vision_learner_and_png_files(tmp_path):
    from fastai.vision.data import ImageDataLoaders
    from fastai.vision.learner import vision_learner
    from torchvision.models import resnet18
    dls = ImageDataLoaders.from_folder(png_folder(tmp_path), valid_pct=.5, seed=0, bs=3, num_workers=0,
                                       device=torch.device("cpu"))
    learn = vision_learner(dls, resnet18, pretrained=False, normalize=False)
    cam = GradCAMCallback(n=4, every=2, path=tmp_path / "strip.png")
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, cbs=cam)
    assert list(cam.raw[2]) == ["0"] and list(cam.maps) == [0, 2]
    xb, _ = dls.valid.new(bs=6).one_batch()
    picked = _of_each(dls.valid.dataset, 16, 2)
    want = plain_maps(learn.model, xb.as_subclass(torch.Tensor)[picked], "0", target=cam.predicted[2])
    close(cam.maps[2], want, atol=1e-4)
    assert Image.open(tmp_path / "strip.png").width > 300


def test_epochs_that_are_skipped_have_no_maps():
    learn, cam = stock_learner(), GradCAMCallback("layer2", n=2)
    learn.fit(4, .01, cbs=cam, start_epoch=2)
    assert list(cam.maps) == [2, 3, 4]


def test_lr_find_validation_and_predictions_take_no_maps(learner, tmp_path):
    for learn in (stock_learner(path=tmp_path), learner()):
        cam = GradCAMCallback("layer2")
        learn.add_cb(cam)
        with learn.no_bar(), learn.no_logging():
            learn.validate(); learn.get_preds()
            with suppress(InputError): learn.lr_find(num_it=20, show_plot=False, suggest_funcs=())
        assert not cam.raw
        learn.fit(1, .01)
        assert list(cam.maps) == [0, 1]


# ---- nothing is left ---------------------------------------------------------------------------------------

class Ends(Callback):
    "Ends the fit in its second epoch"
    def __init__(self, error): self.error = error
    def after_batch(self):
        if self.epoch == 1 and self.training: raise self.error


@pytest.mark.parametrize("error", [CancelFitException(), KeyboardInterrupt(), RuntimeError("no memory")])
@pytest.mark.parametrize("stock", [False, True])
def test_nothing_is_left_behind_whatever_ends_the_fit(learner, stock, error):
    learn = stock_learner() if stock else learner()
    learn.model.layer2.requires_grad_(False)
    before, cam = state_of(learn.model), GradCAMCallback("layer2")
    try: learn.fit(3, .01, cbs=[cam, Ends(error)])
    except (KeyboardInterrupt, RuntimeError) as e: assert type(e) is type(error)
    learn.model.train()
    assert state_of(learn.model) == before and not nn.modules.module._global_forward_hooks
    assert list(cam.maps)[:2] == [0, 1] and cam not in learn.cbs
    assert len(cam.strip().axes) == 1 + len(cam.maps)
    learn.fit(1, .01, cbs=cam)
    assert list(cam.maps) == [0, 1] and cam.cam is None and cam.inputs is None


@pytest.mark.parametrize("stock", [False, True])
def test_an_epoch_at_which_others_end_the_fit_has_the_last_maps_and_evidence(learner, stock, monkeypatch):
    monkeypatch.setattr(cam_callback, "affordable", lambda *_: 20)
    learn, cam = stock_learner() if stock else learner(), GradCAMCallback("layer2", every=50)
    stop = EarlyStoppingCallback("valid_loss", min_delta=10, patience=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn.fit(9, .01, cbs=[cam, stop])
    assert list(cam.maps) == [0, learn.epoch + 1] and 1 < learn.epoch < 8 and cam.evidence


def test_a_fit_that_is_ended_before_an_epoch_has_maps_of_the_one_before(learner):
    class Enough(Callback):
        order = 0
        def before_epoch(self):
            if self.epoch == 2: raise CancelFitException
    cam = GradCAMCallback("layer2", every=50, measure=False)
    learner().fit(9, .01, cbs=[cam, Enough()])
    assert list(cam.maps) == [0, 2]


def test_a_failing_map_leaves_the_model_as_it_was(learner):
    learn = learner()
    before = state_of(learn.model)
    with pytest.raises(InputError, match="'fc' has no map"): learn.fit(1, .01, cbs=GradCAMCallback("fc"))
    assert state_of(learn.model.train()) == before


def test_a_net_that_breaks_down_is_told_of_and_trains_on(learner):
    class Break(Callback):
        def before_validate(self):
            if self.epoch == 1: self.learn.model.fc.weight.data[0] = float("nan")
    learn, cam = learner(), GradCAMCallback("layer2")
    with pytest.warns(UserWarning, match="no Grad-CAM at epoch 2: layer 'fc' has NaN"):
        learn.fit(2, 1e-3, cbs=[cam, Break()])
    assert list(cam.maps) == [0, 1]


def test_the_net_can_be_freed_and_the_learner_exported(learner, tmp_path):
    import weakref
    learn, cam = learner(), GradCAMCallback("layer2", n=2)
    learn.add_cb(cam)
    learn.fit(1, .01)
    learn.export(tmp_path / "learner.pkl")
    learn.remove_cb(cam)
    net = weakref.ref(learn.model)
    del learn
    gc.collect()
    assert net() is None and list(cam.maps) == [0, 1]


@pytest.mark.parametrize("kwargs, says", [
    ({"layer": "layer8"}, "unknown layer 'layer8'. Did you mean layer"),
    ({"every": 0}, "every=0"), ({"n": 0}, "n=0"),
    ({"method": "gradcam+"}, "Did you mean gradcam"), ({"target": "dgo"}, "Did you mean dog"),
    ({"target": 9}, "target 9 is no class here"), ({"items": [0, 99]}, "no picture 99 in the validation set"),
    ({"items": []}, "0 pictures to explain"), ({"items": ["nowhere.png"]}, "nowhere.png is not there"),
    ({"items": [np.zeros((9, 9, 3), np.uint8)], "target": "true"}, "there is no y")])
def test_what_will_not_do_is_refused_before_training(learner, kwargs, says):
    learn, calls = learner(), []
    learn.model.register_forward_pre_hook(lambda m, x: calls.append(m.training))
    with pytest.raises(InputError, match=says): fitted(learn, **kwargs)
    assert not any(calls)


# ---- shown -------------------------------------------------------------------------------------------------

def test_strip_has_a_row_for_each_set_with_the_class_below_each_map(learner):
    cam = fitted(learner(), epochs=3, every=2, n=4)
    fig, at = cam.strip(), cam.shown()
    assert [ax.get_ylabel() for ax in fig.axes] == ["picture", "epoch 0", "epoch 2", "epoch 3"]
    assert [t.get_text() for t in fig.axes[0].texts] == [CLASSES[y] for y in cam.ys[at]]
    for ax, epoch in zip(fig.axes[1:], (0, 2, 3)):
        said = cam.predicted[epoch][at].tolist()
        assert [t.get_text() for t in ax.texts] == [CLASSES[c] for c in said]
        right = [c == y for c, y in zip(said, cam.ys[at].tolist())]
        assert [t.get_color() == GOOD for t in ax.texts] == right
        want = overlay(cam.pictures[at[1]], cam.maps[epoch][at[1]])
        np.testing.assert_allclose(ax.images[1].get_array(), want)


def with_fates(predicted, ys, **kwargs):
    "A callback that has seen these predictions, a row for each epoch from 0 on"
    cam = GradCAMCallback(**{"n": 4} | kwargs)
    cam.pictures, cam.ys = np.zeros((len(ys), 4, 4, 3)), torch.tensor(ys)
    cam.predicted = {e: torch.tensor(p) for e, p in enumerate(predicted)}
    return cam


@pytest.mark.parametrize("predicted, want", [
    ([[1] * 8, [0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1, 1]], [0, 1, 2, 6]),    # 6 never, 7 forgotten
    ([[1] * 8, [0] * 8, [0, 0, 0, 0, 0, 0, 0, 1]], [0, 1, 2, 7]),                     # only a forgotten one
    ([[1] * 8, [0] * 8], [0, 1, 2, 3]),                                               # none is wrong
    ([[0] * 8, [1] * 8], [0, 1, 2, 3]),                                               # none is right
    ([[0] * 8, [1, 1, 1, 1, 1, 0, 0, 1]], [5, 6, 0, 1]),                              # too few are right
    ([[1] * 8], [0, 1, 2, 3])])                                                       # nothing is known yet
def test_the_strip_shows_both_fates_whatever_came_of_the_net(predicted, want):
    assert with_fates(predicted, [0] * 8).shown() == want
    assert with_fates(predicted, [0] * 8, items=[3] * 8).shown() == list(range(8)), "what is asked for"


def test_pictures_without_labels_have_no_fate():
    cam = with_fates([[1] * 8, [0] * 8], [0] * 8)
    cam.ys = None
    assert cam.shown() == [0, 1, 2, 3]


# ---- believed? ---------------------------------------------------------------------------------------------

def test_at_the_end_the_maps_are_measured_and_the_strip_says_so(learner):
    learn = learner()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cam = fitted(learn, epochs=80, every=80, layer="layer3", lr=.05)
    e, said = cam.evidence[0], [str(w.message) for w in caught if "Grad-CAM" in str(w.message)]
    assert (e.layer, e.method) == ("layer3", "gradcam") and e.pictures == 48, "all"
    xb = choose(learn, np.random.default_rng(0).permutation(48).tolist()).xb
    out = GradCAM(learn.model, "layer3")(xb)
    exact = insertion_deletion(learn.model, xb, upsample(out.raw, (16, 16)), out.target, 8)
    assert e.insertion == pytest.approx(exact[0].mean().item(), abs=.02)
    assert e.deletion == pytest.approx(exact[1].mean().item(), abs=.02)
    assert e.caption in cam.strip()._supxlabel.get_text().replace("\n", " ")
    assert len(said) == (not e.better) and (len(cam.evidence) == 1) == e.better


def test_maps_no_better_than_noise_are_called_so_in_one_line_with_the_best_pair(learner, monkeypatch):
    upside_down = lambda A, g: -g.mean((2, 3), keepdim=True)
    monkeypatch.setitem(METHODS, "gradcam++", upside_down)
    says = ("Grad-CAM: gradcam.. at layer3 is not better than noise on this net: insertion .*, deletion .* "
            "n=48. (Take|So)")
    with pytest.warns(UserWarning, match=says) as caught:
        cam = fitted(learner(), epochs=80, every=80, layer="layer3", lr=.05, method="gradcam++")
    assert sum("Grad-CAM" in str(w.message) for w in caught) == 1 and not cam.evidence[0].better
    assert "NOT better than noise" in cam.strip()._supxlabel.get_text().replace("\n", " ")


def test_a_caption_from_elsewhere_is_written_only_where_something_was_trained(learner, tmp_path):
    cam = fitted(learner(), epochs=1, path=tmp_path / "a.png", measure=False)
    before, found = (tmp_path / "a.png").read_bytes(), fitted(learner(), epochs=80, every=80, lr=.05).evidence
    cam.caption(found)
    assert (tmp_path / "a.png").read_bytes() != before and found[0].layer == "layer2"
    assert found[0].caption in cam.strip()._supxlabel.get_text().replace("\n", " ")
    (tmp_path / "a.png").write_bytes(b"of the run that was resumed")
    cam.trained = False
    cam.caption(found)
    assert (tmp_path / "a.png").read_bytes() == b"of the run that was resumed"


def test_a_short_fit_and_one_that_asks_for_none_measure_nothing(learner):
    assert fitted(learner(), epochs=1).evidence == []
    assert fitted(learner(), epochs=40, every=40, measure=False).evidence == []


def test_of_many_sets_the_strip_shows_some_from_the_first_to_the_last(learner):
    cam = fitted(learner(), epochs=1)
    cam.raw = dict.fromkeys(range(100), cam.raw[1])
    cam.predicted, cam.targets = (dict.fromkeys(range(100), cam.predicted[1]) for _ in range(2))
    labels = [ax.get_ylabel() for ax in cam.strip(rows=5).axes]
    assert labels == ["picture", "epoch 0", "epoch 25", "epoch 50", "epoch 74", "epoch 99"]


def test_a_notebook_shows_the_strip_at_the_end_and_a_script_does_not(learner, monkeypatch):
    shown = []
    monkeypatch.setattr(cam_callback, "_display", shown.append)
    fitted(learner(), epochs=1)
    assert not shown
    monkeypatch.setattr(cam_callback, "IN_NOTEBOOK", True)
    learn = stock_learner()
    fitted(learn, epochs=1)
    with pytest.raises(InputError): fitted(stock_learner(), layer="layer8")
    assert [len(fig.axes) for fig in shown] == [3]


def test_the_file_is_written_with_each_set(learner, tmp_path):
    seen = []
    class Look(Callback):
        order = GradCAMCallback.order + 1
        def after_epoch(self): seen.append(Image.open(tmp_path / "a" / "b.png").height)
    cam = GradCAMCallback("layer2", path=tmp_path / "a" / "b.png")
    learner().fit(3, .01, cbs=[cam, Look()])
    assert seen[0] < seen[1] < seen[2]


def images_in(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, np.asarray(Image.open(io.BytesIO(e.encoded_image_string))))
                  for e in board.Images(tag)] for tag in board.Tags()["images"]}


def test_maps_go_to_our_tensorboard_log_at_the_step_of_each_set(learner, tmp_path):
    cam = GradCAMCallback(["layer1", "layer2"], n=3)
    learner().fit(2, .01, cbs=[TensorBoardLog(tmp_path), cam])
    found = images_in(tmp_path)
    assert set(found) == {"gradcam/layer1", "gradcam/layer2"}
    assert [step for step, _ in found["gradcam/layer2"]] == [5, 10]
    want = np.concatenate([overlay(p, m) for p, m in zip(cam.pictures[:3], cam.maps[2]["layer2"])], axis=1)
    np.testing.assert_allclose(found["gradcam/layer2"][1][1], want * 255, atol=1)


def test_maps_go_to_fastais_tensorboard_callback(tmp_path):
    from fastai.callback.tensorboard import TensorBoardCallback
    board = TensorBoardCallback(tmp_path, trace_model=False, log_preds=False)
    learn = stock_learner()
    learn.fit(1, .01, cbs=[GradCAMCallback("layer2", n=3), board])
    (step, pixels), = images_in(tmp_path)["gradcam/layer2"]
    assert step == learn.train_iter and pixels.shape == (16, 48, 3)


# ---- resumed -----------------------------------------------------------------------------------------------

def test_a_resumed_fit_has_the_maps_of_the_whole(learner, tmp_path):
    class Stop(Callback):
        order = 1000
        def after_epoch(self):
            if self.epoch == 1: raise KeyboardInterrupt
    whole, cam = fitted(learner(), epochs=4), GradCAMCallback("layer2")
    with pytest.raises(KeyboardInterrupt): learner().fit(4, .01, cbs=[cam, Checkpoint(tmp_path), Stop()])
    assert list(cam.maps) == [0, 1, 2]
    cam = GradCAMCallback("layer2")
    learner().fit(4, .01, cbs=[cam, Checkpoint(tmp_path, resume=True)])
    assert list(cam.maps) == list(whole.maps) == [0, 1, 2, 3, 4]
    for epoch, m in whole.maps.items():
        assert torch.equal(cam.maps[epoch], m) and torch.equal(cam.predicted[epoch], whole.predicted[epoch])
