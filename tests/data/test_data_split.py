"""The test set of a folder that has none: split off by content and seed, and kept when a run is resumed."""
import json
import shutil

import numpy as np
import pytest
import tiny
from made import alone, picture_folder, pictures, some_data  # noqa: F401  alone is a fixture

from cifar_fastai.data import picture_cache
from cifar_fastai.data.image_data import split_off, statistics
from cifar_fastai.data.sources import load_data
from cifar_fastai.errors import InputError
from cifar_fastai.loaders.block import cifar_dataloaders
from cifar_fastai.machine import cache_dir
from cifar_fastai.runs.one_run import train

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def folder(tmp_path):
    "cat/ and dog/ with 20 pictures each"
    picture_folder(tmp_path / "d", n=20, side=16)
    shutil.rmtree(tmp_path / "d/test")
    return tmp_path / "d/train"


def test_share_and_seed_choose_the_pictures_and_one_cache_serves_them_all(folder, monkeypatch):
    calls, decode = [], picture_cache.decode
    monkeypatch.setattr(picture_cache, "decode", lambda *a, **kw: calls.append(1) or decode(*a, **kw))
    asked = {}, {"split": .2}, {"split": .5}, {"split_seed": 1}
    fifth, again, half, other = (load_data(folder, **kwargs) for kwargs in asked)
    assert calls == [1] and len(list(cache_dir().iterdir())) == 1
    assert [len(d.x_test) for d in (fifth, again, half, other)] == [8, 8, 20, 8]
    assert fifth.fingerprint == again.fingerprint and np.array_equal(fifth.x_test, again.x_test)
    assert len({d.fingerprint for d in (fifth, half, other)}) == 3
    assert np.bincount(other.y_test).tolist() == [4, 4] and pictures(other.x_test) != pictures(fifth.x_test)
    assert half.mean == statistics(half.x_train)[0]                 # of what trains, not of what tests


def test_names_labels_and_pictures_stay_together(folder):
    data = load_data(folder)
    for which in ("train", "test"):
        x, y, files = (getattr(data, f"{part}_{which}") for part in ("x", "y", "files"))
        assert len(x) == len(y) == len(files) and list(files) == sorted(files)
        for picture, label, name in zip(x, y, files):
            assert name.startswith(data.classes[label])
            assert np.array_equal(picture, picture_cache.read_picture(folder / name, 32))
    assert not set(data.files_train) & set(data.files_test)


def test_new_names_change_nothing(folder):
    before = pictures(load_data(folder).x_test)
    for path in list(folder.glob("cat/*")): path.rename(path.with_name(f"{100 - int(path.stem)}.png"))
    assert pictures(load_data(folder).x_test) == before


def test_classes_keep_their_shares_and_doubles_one_side():
    data = some_data(n=1000)
    x = data.x_train.copy()
    x[500:] = x[:500]                                               # each twice, some under another class
    train, test = split_off(x, data.y_train, .2)
    assert sorted([*train, *test]) == list(range(1000)) and not pictures(x[train]) & pictures(x[test])
    assert len(split_off(data.x_train, data.y_train, .2)[1]) == 200
    y = data.y_train
    assert np.abs(np.bincount(y[split_off(data.x_train, y, .2)[1]]) / np.bincount(y) - .2).max() < .01
    y = np.r_[np.zeros(30, int), [1, 1, 2]]                         # two of one class, one of another
    train, test = split_off(data.x_train[:33], y, .1)
    assert np.bincount(y[test], minlength=3)[1:].tolist() == [1, 0] and set(y[train]) == {0, 1, 2}


@pytest.mark.parametrize("split", [0, 1, -.1, 1.5, "0.2", float("nan"), True])
def test_shares_that_are_none_are_refused(folder, split):
    with pytest.raises(InputError, match="data split .* is no share"): load_data(folder, split=split)


def test_data_with_a_test_set_takes_no_split(tmp_path):
    picture_folder(tmp_path / "d")
    for source in ("digits", "cifar10", tmp_path / "d"):
        with pytest.raises(InputError, match="has its own test set"): load_data(source, split=.2)
    with pytest.raises(InputError, match="this data is split"): cifar_dataloaders(some_data(), split=.2)


def test_too_few_pictures_to_split_are_refused(tmp_path):
    picture_folder(tmp_path / "d", n=1)
    with pytest.raises(InputError, match="too few pictures to split off"): load_data(tmp_path / "d/train")


def test_loaders_take_the_share(folder):
    dls = cifar_dataloaders(folder, bs=8, split=.5, num_workers=0, device="cpu", size=16)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (20, 20)


def test_a_resumed_run_keeps_its_split(folder, tmp_path, undrawn):
    recipe = tiny.recipe.but(lr=.01, epochs=1, min_steps=1)
    run = train(recipe, folder, tmp_path / "run", split=.5, quiet=True)
    assert run.results["pictures"] == 20
    kept = json.loads((tmp_path / "run/checkpoints/begun.json").read_text())
    assert kept["data_split"] == .5
    again = train(recipe, folder, tmp_path / "run", resume=True, quiet=True)
    assert again.results["data_fingerprint"] == run.results["data_fingerprint"]
    with pytest.raises(InputError, match="cannot resume .* data"):
        train(recipe, folder, tmp_path / "run", resume=True, split=.2, quiet=True)


@pytest.mark.slow
def test_a_class_without_test_pictures_can_be_trained_and_explained(folder, tmp_path, tiny_registered):
    (folder / "frog").mkdir()
    tiny.write_folder(tiny.learnable(4, 4, 16), tmp_path / "more")
    shutil.copy(next((tmp_path / "more/train").rglob("*.png")), folder / "frog/0.png")
    run = train(tiny.recipe.but(lr=.01, epochs=1, min_steps=1), folder, tmp_path / "run", quiet=True)
    assert run.results["pictures"] == 8 and len(list((tmp_path / "run/figures").glob("*.png"))) > 8
