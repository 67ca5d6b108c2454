"""The DataBlock and its loaders do what a fastai user expects of them."""
import io
import random
from contextlib import redirect_stdout
from cProfile import Profile
from pstats import Stats

import albumentations as A
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, TransformBlock
from fastai.data.transforms import IntToFloatTensor, ToTensor
from fastai.learner import load_learner
from fastai.vision import augment as vision
from fastcore.basics import noop
from PIL import Image
from stock import clear
from tiny import tiny_net, write_folder

from cifar_fastai import policy
from cifar_fastai.data import ImageData
from cifar_fastai.errors import InputError
from cifar_fastai.loaders import block as loaders
from cifar_fastai.loaders.augment import AlbumentationsTransform
from cifar_fastai.loaders.block import cifar_block, cifar_dataloaders, suggest_workers
from cifar_fastai.loaders.picture_store import LabelOf, PictureOf, PictureStore


@pytest.fixture(scope="module")
def learn(learnable):
    "A trained Learner, so that its predictions are not all alike"
    from cifar_fastai.training.learner import cifar_learner
    dls = cifar_dataloaders(learnable, 32, policy.pad_crop_flip(2), num_workers=0, device="cpu")
    learn = cifar_learner(dls, tiny_net, precision="fp32", lr=.05)
    learn.logger = noop
    learn.fit(3)
    return learn


def inputs(learnable, folder, kind):
    "Test pictures 0…5 as `kind`"
    xs = [np.array(x) for x in learnable.x_test[:6]]
    for k, x in enumerate(xs): Image.fromarray(x).save(folder / f"{k}.png")
    paths = [folder / f"{k}.png" for k in range(6)]
    return {"indices": list(range(160, 166)), "int array": np.arange(160, 166), "paths": paths,
            "names": [str(p) for p in paths], "bytes": [p.read_bytes() for p in paths], "arrays": xs,
            "one array": np.stack(xs), "tensors": [torch.from_numpy(x) for x in xs],
            "pil": [Image.fromarray(x) for x in xs]}[kind]


KINDS = ["indices", "int array", "paths", "names", "bytes", "arrays", "one array", "tensors", "pil"]


# what comes in

@pytest.mark.parametrize("kind", KINDS)
def test_a_test_dl_takes_pictures_in_any_form(learn, learnable, tmp_path, kind):
    dl = learn.dls.test_dl(inputs(learnable, tmp_path, kind))
    batch = dl.one_batch()
    assert len(batch) == 1
    torch.testing.assert_close(batch[0], learn.dls.valid.one_batch()[0][:6])
    assert len(learn.get_preds(dl=dl)[0]) == 6


def test_a_test_dl_works_in_workers_too(learn, learnable, tmp_path):
    paths = inputs(learnable, tmp_path, "paths") * 3
    alone, shared = (learn.dls.test_dl(paths, num_workers=n, bs=4) for n in (0, 2))
    for a, b in zip(alone, shared, strict=True): assert torch.equal(a[0], b[0])


def test_labels_of_a_test_dl_come_from_the_index_or_the_folder(learn, learnable, tmp_path):
    labelled = learn.dls.test_dl([160, 161, 162], with_labels=True)
    assert labelled.one_batch()[1].tolist() == learnable.y_test[:3].tolist()
    folder = write_folder(learnable, tmp_path)
    dl = learn.dls.test_dl([folder / "test/frog/002.png", folder / "test/cat/000.png"], with_labels=True)
    assert dl.one_batch()[1].tolist() == [2, 0]
    with pytest.raises(InputError, match="no label can be read off a ndarray"):
        learn.dls.test_dl(inputs(learnable, tmp_path, "arrays"), with_labels=True).one_batch()


# what comes out

def test_predict_gives_for_every_form_what_the_validation_set_gives(learn, learnable, tmp_path):
    probs, targets = learn.get_preds()
    assert (probs.argmax(1) == targets).float().mean() > .5, "it has learned something"
    for kind in KINDS:
        label, index, p = learn.predict(inputs(learnable, tmp_path, kind)[4])
        assert torch.allclose(p, probs[4], atol=1e-5), kind
        assert label == learnable.classes[p.argmax()] and index == p.argmax()


def test_a_larger_picture_is_predicted_by_the_rule_of_training(learn):
    from cifar_fastai.data.sources import read_picture
    big = np.random.default_rng(0).integers(0, 256, (50, 70, 4), np.uint8)
    small = read_picture(big, size=16)
    assert torch.equal(learn.predict(big)[2], learn.predict(small)[2])


def test_tta_averages_different_views_and_repeats_itself(learn):
    views = []
    handle = learn.model.register_forward_hook(lambda m, i, o: views.append(i[0][0].clone()))
    with redirect_stdout(io.StringIO()) as said: first, targets = learn.tta(n=3)
    handle.remove()
    assert said.getvalue() == "", "no bars where nobody watches"
    assert len({v.numpy().tobytes() for v in views}) == len(views) == 4, "three views and the plain one"
    assert torch.equal(learn.dls.valid.one_batch()[0][0], views[3])
    assert torch.equal(learn.tta(n=3)[0], first) and targets.tolist() == learn.dls.data.y_test.tolist()
    assert not torch.allclose(first, learn.get_preds()[0])



def shown(): return [ax for ax in plt.gcf().axes if ax.images]


def matches(ax, pictures):
    "Which of `pictures` the axes show, within rounding"
    x = np.asarray(ax.images[0].get_array(), float)
    x = x * 255 if x.max() <= 1 else x
    return [k for k, p in enumerate(pictures) if np.abs(p.astype(float) - x).max() <= 1]


def test_show_batch_shows_unnormalised_pictures_under_their_class(learn, learnable):
    plt.close("all")
    learn.dls.valid.show_batch(max_n=4)
    axes = shown()
    assert [matches(ax, learnable.x_test) for ax in axes] == [[0], [1], [2], [3]]
    assert [ax.get_title() for ax in axes] == ["cat", "dog", "frog", "ship"]
    plt.close("all")
    learn.dls.show_batch(max_n=9)
    assert len(shown()) == 9 and all(ax.get_title() in learnable.classes for ax in shown())
    plt.close("all")


def test_show_results_puts_truth_and_prediction_over_the_picture(learn, learnable):
    plt.close("all")
    learn.show_results(max_n=4, shuffle=False)
    probs = learn.get_preds()[0][:4]
    said = [learnable.classes[k] for k in probs.argmax(1)]
    true = [learnable.classes[k] for k in learnable.y_test[:4]]
    assert clear(probs) and [ax.get_title() for ax in shown()] == [f"{t}\n{p}" for t, p in zip(true, said)]
    assert [matches(ax, learnable.x_test) for ax in shown()] == [[0], [1], [2], [3]]
    plt.close("all")


def test_an_exported_learner_holds_no_pictures_and_the_learner_goes_on(learn, learnable, tmp_path):
    before = learn.predict(learnable.x_test[0])[2]
    batch = learn.dls.train.one_batch()[0]
    learn.path = tmp_path
    learn.export("net.pkl")
    assert (tmp_path / "net.pkl").stat().st_size < learnable.x_train.nbytes / 2
    assert torch.equal(learn.predict(learnable.x_test[0])[2], before) and len(batch) == 32
    learn.fit(1)
    with pytest.warns(UserWarning, match="insecure"): there = load_learner(tmp_path / "net.pkl")
    del learn
    Image.fromarray(np.array(learnable.x_test[0])).save(tmp_path / "a.png")
    assert torch.allclose(there.predict(tmp_path / "a.png")[2], before, atol=1e-5)


# which pictures

def pictures(dl): return {p.tobytes() for p in np.array([dl.direct()[0][i] for i in dl.dataset.items])}


def test_all_training_pictures_train_and_the_test_set_is_only_watched(learnable):
    dls = cifar_dataloaders(learnable, 32, num_workers=0, device="cpu")
    assert len(dls.loaders) == 2 and dls.vocab == list(learnable.classes) and dls.data is learnable
    assert pictures(dls.train) == {p.tobytes() for p in learnable.x_train}
    assert pictures(dls.valid) == {p.tobytes() for p in learnable.x_test}


def test_a_holdout_is_taken_from_the_training_pictures_and_the_test_set_is_a_third_loader(learnable):
    dls = cifar_dataloaders(learnable, 32, valid="holdout", seed=3, num_workers=0, device="cpu")
    train, held, test = (pictures(dl) for dl in dls.loaders)
    assert (len(train), len(held), len(test)) == (128, 32, 48) and dls.valid_name == "holdout"
    assert not train & held and not (train | held) & test
    assert np.bincount(dls.valid.one_batch()[1]).tolist() == [8, 8, 8, 8], "stratified"
    again = cifar_dataloaders(learnable, 32, valid="holdout", seed=4, num_workers=0, device="cpu")
    assert pictures(again.valid) != held, "another seed, another holdout"


def test_neither_holdout_nor_test_set_is_augmented(learnable):
    dls = cifar_dataloaders(learnable, 32, "pad_crop_flip", valid="holdout", num_workers=0, device="cpu")
    assert dls.train.direct()[1] is not None
    for dl in dls.loaders[1:]:
        shown = dl.decode(next(iter(dl)))[0].permute(0, 2, 3, 1).numpy() * 255
        original = np.array([dl.direct()[0][i] for i in dl.dataset.items[:len(shown)]])
        assert np.abs(shown - original).max() < .01


def test_a_limit_takes_a_stratified_part(learnable):
    dls = cifar_dataloaders(learnable, 8, limit=40, num_workers=0, device="cpu")
    assert len(dls.train.dataset) == 40 and np.bincount(dls.data.y_train).tolist() == [10] * 4
    assert len(dls.valid.dataset) == 48


def test_a_block_can_be_built_on(learnable):
    dls = cifar_block(learnable, None).dataloaders(learnable, bs=16, val_bs=10, num_workers=0, device="cpu")
    assert len(dls.train) == 10 and len(dls.valid) == 5 and dls.one_batch()[0].shape == (16, 3, 16, 16)


def test_loaders_of_a_hundred_times_as_many_pictures_are_set_up_by_the_same_calls():
    "No call is made for a picture: what goes through all of them are single passes, so the time is linear"
    def calls(n):
        x, y = np.zeros((n, 8, 8, 3), np.uint8), np.arange(n) % 4
        data = ImageData(x, y, x[:8], y[:8], tuple("abcd"), "made", "made", (.5,) * 3, (.2,) * 3)
        with Profile() as profile: cifar_dataloaders(data, 64, None, device="cpu")
        return Stats(profile).total_calls
    calls(500)                                            # what the first one imports
    assert abs(calls(100_000) - calls(1000)) < 100        # what Python cleans up meanwhile


def test_batches_are_larger_in_validation_and_no_larger_than_the_data(learnable):
    dls = cifar_dataloaders(learnable, 500, num_workers=0, device="cpu")
    assert (dls.train.bs, dls.valid.bs) == (160, 1000) and len(dls.train) == 1


def with_batch_tfms(learnable, *tfms):
    "The first training and validation batches, decoded to 0…1, with and without `tfms`"
    made = []
    for given in ([], list(tfms)):
        torch.manual_seed(0), random.seed(0)
        dls = cifar_dataloaders(learnable, 32, None, num_workers=0, device="cpu", batch_tfms=given)
        norm = dls.train.after_batch.fs[-1]
        made += [norm.decode(dl.one_batch()[0]).as_subclass(torch.Tensor) for dl in dls.loaders]
    return made


def test_fastais_own_flip_mirrors_each_training_picture(learnable):
    plain, valid, flipped, valid_too = with_batch_tfms(learnable, vision.Flip(p=1.))
    assert torch.allclose(flipped, plain.flip(-1), atol=2e-2) and not torch.allclose(flipped, plain, atol=.1)
    assert torch.allclose(valid, valid_too, atol=1e-5)


def test_fastais_brightness_adds_to_the_logits_of_pictures_of_0_to_1(learnable):
    plain, _, brighter, _ = with_batch_tfms(learnable, vision.Brightness(max_lighting=.4, p=1., draw=.7))
    wanted = torch.sigmoid(torch.logit(plain.clamp(1e-7, 1 - 1e-7)) + torch.logit(torch.tensor(.7)))
    assert torch.allclose(brighter, wanted, atol=1e-4)


def test_fastais_rotation_by_180_degrees_turns_the_training_pictures(learnable):
    plain, _, turned, _ = with_batch_tfms(learnable, vision.Rotate(p=1., draw=180.))
    assert torch.allclose(turned, plain.flip(-1, -2), atol=2e-2)


@pytest.mark.parametrize("tfms", [vision.aug_transforms(size=16), [vision.Flip()], [vision.Zoom(p=1.)],
                                  [vision.RandomErasing(p=1.)], [IntToFloatTensor(), vision.Contrast(p=1.)]],
                         ids=lambda tfms: type(tfms[-1]).__name__)
def test_a_net_trains_with_fastais_batch_transforms(learnable, learner, tfms):
    dls = cifar_dataloaders(learnable, 32, None, num_workers=0, device="cpu", batch_tfms=tfms)
    xb, _ = dls.train.one_batch()
    plain, _ = cifar_dataloaders(learnable, 32, None, num_workers=0, device="cpu").train.one_batch()
    assert xb.dtype == torch.float32 and xb.shape == plain.shape and not torch.equal(xb, plain)
    assert xb.std() == pytest.approx(float(plain.std()), rel=.5), "normalised once"
    learn = learner(dls)
    learn.fit(2, .05)
    assert learn.recorder.values[1][0] < learn.recorder.values[0][0]


def test_a_second_albumentations_transform_is_refused_as_it_would_replace_the_first(learnable):
    mine = AlbumentationsTransform(None, valid=[A.HorizontalFlip(p=1)])
    with pytest.raises(InputError, match="would take the place of aug="):
        cifar_dataloaders(learnable, 32, "pad_crop", item_tfms=mine, device="cpu")


def test_fastais_normalize_is_refused_where_it_would_be_the_second(learnable):
    "The line of every fastai notebook: *aug_transforms(), Normalize.from_stats(*imagenet_stats)"
    tfms = [*vision.aug_transforms(size=16), vision.Normalize.from_stats(*vision.imagenet_stats)]
    with pytest.raises(InputError, match="batch_tfms has a Normalize, but these pictures are normalised"):
        cifar_dataloaders(learnable, 32, None, num_workers=0, device="cpu", batch_tfms=tfms)


def test_pictures_that_fastai_brought_to_the_cpu_are_decoded_there(learnable):
    "Where a GPU trains, the statistics are on it; `predict` and `show_results` decode on the CPU"
    class Elsewhere(torch.Tensor):
        "Refuses to be counted with before it is on the CPU"
        def cpu(self): return self.as_subclass(torch.Tensor)
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func in (torch.Tensor.mul, torch.Tensor.add): raise RuntimeError("two devices")
            return super().__torch_function__(func, types, args, kwargs or {})
    dls = cifar_dataloaders(learnable, 32, None, num_workers=0, device="cpu")
    xb, _ = dls.valid.one_batch()
    normalise = next(t for t in dls.valid.after_batch.fs if isinstance(t, vision.Normalize))
    whole = normalise.decodes(xb)
    normalise.mean, normalise.std = (t.as_subclass(Elsewhere) for t in (normalise.mean, normalise.std))
    with pytest.raises(RuntimeError, match="two devices"): xb.as_subclass(torch.Tensor) * normalise.std
    assert torch.equal(normalise.decodes(xb), whole)


def test_each_label_of_a_block_comes_with_the_batch(learnable):
    block, store = cifar_block(learnable, None), PictureStore(learnable)
    labels = [CategoryBlock(vocab=list(learnable.classes), sort=False) for _ in range(2)]
    two = DataBlock(blocks=(TransformBlock(type_tfms=PictureOf(store), item_tfms=ToTensor), *labels),
                    dl_type=block.dl_type, get_items=block.get_items, splitter=block.splitter,
                    get_y=[LabelOf(store)] * 2, n_inp=1)
    xb, first, second = two.dataloaders(learnable, bs=32, num_workers=0, device="cpu").valid.one_batch()
    assert torch.equal(first, second) and len(xb) == len(first) == 32
    assert first.tolist() == learnable.y_test[:32].tolist()


def test_a_folder_is_read_and_its_files_are_named(learnable, tmp_path):
    folder = write_folder(learnable, tmp_path / "a b")
    dls = cifar_dataloaders(folder, 32, None, size=16, num_workers=0, device="cpu")
    assert pictures(dls.train) == {p.tobytes() for p in learnable.x_train}
    assert dls.train.direct()[0].name(0).endswith(".png")


# what is refused

@pytest.mark.parametrize("wrong, says", [
    ({"bs": 0}, "bs=0"), ({"num_workers": -1}, "num_workers=-1"), ({"seed": -1}, "seed=-1"),
    ({"valid": "hold"}, "Did you mean holdout"), ({"aug": "pad_crp"}, "Did you mean pad_crop"),
    ({"limit": 3}, "limit 3 is below the 4 classes"), ({"device": "gpu"}, "device 'gpu'")])
def test_a_wrong_value_is_refused_by_name(learnable, wrong, says):
    with pytest.raises(InputError, match=says):
        cifar_dataloaders(learnable, **{"bs": 32, "num_workers": 0, "device": "cpu", **wrong})


def test_an_unknown_source_is_answered_with_the_nearest_name():
    with pytest.raises(InputError, match="Did you mean digits"): cifar_dataloaders("digit")


def test_workers_are_started_where_the_cpu_does_not_train():
    assert suggest_workers(torch.device("cpu")) == 0
    assert 1 <= suggest_workers(torch.device("cuda")) <= 8


def test_the_data_is_read_once_for_a_block_and_its_loaders(monkeypatch, learnable):
    calls = []
    monkeypatch.setattr(loaders, "load_data", lambda *a, **k: calls.append(a) or learnable)
    cifar_dataloaders("digits", 64, num_workers=0, device="cpu")
    assert len(calls) == 1
