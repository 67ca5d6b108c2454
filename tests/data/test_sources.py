"""Sources, statistics, limit, holdout and fingerprint."""
import logging
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made import alone, pictures, shuffled, some_data  # noqa: F401  alone is a fixture
from official import NAMES10, PY10, members_of, rows_of, tar
from PIL import Image

from cifar_fastai.data import sources as search
from cifar_fastai.data.image_data import ImageData, content_keys, shared_pictures, statistics
from cifar_fastai.data.sources import load_data
from cifar_fastai.errors import InputError

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(scope="module")
def digits(): return load_data("digits")


# ---------------------------------------------------------------- digits

def cubic(t, a=-.5):
    "Keys 1981, the bicubic kernel that Pillow uses"
    t = abs(t)
    if t < 1: return ((a + 2) * t - (a + 3)) * t * t + 1
    return (((t - 5) * t + 8) * t - 4) * a if t < 2 else 0


def test_digits_are_sklearns_enlarged_by_the_bicubic_kernel(digits):
    from sklearn.datasets import load_digits
    grey, y = load_digits(return_X_y=True)
    w = np.array([[cubic((i + .5) / 4 - .5 - j) for j in range(8)] for i in range(32)])
    w /= w.sum(1, keepdims=True)
    big = np.einsum("ij,njk,lk->nil", w, grey.reshape(-1, 8, 8) * 255 / 16, w).clip(0, 255)
    ours = np.concatenate([digits.x_train, digits.x_test])
    labels = np.concatenate([digits.y_train, digits.y_test])
    assert (ours[..., 0] == ours[..., 1]).all() and (ours[..., 0] == ours[..., 2]).all()
    flat = {p.tobytes(): i for i, p in enumerate(np.rint(big).astype(np.uint8))}
    near = [flat.get(p[..., 0].tobytes()) for p in ours]
    found = [i for i in near if i is not None]
    assert len(found) > .9 * len(ours)                       # to the byte, but for sums that end in .5
    assert sorted(found) == sorted(set(found))
    assert all(labels[k] == y[i] for k, i in enumerate(near) if i is not None)
    assert np.allclose(sorted(ours[..., 0].mean((1, 2))), sorted(np.rint(big).mean((1, 2))), atol=.05)


def test_digits_are_split_80_to_20_in_every_class(digits):
    assert (len(digits.x_train), len(digits.x_test)) == (1437, 360) and digits.classes == tuple("0123456789")
    share = np.bincount(digits.y_test) / np.bincount(np.r_[digits.y_train, digits.y_test])
    assert np.abs(share - .2).max() < .005
    assert load_data("digits").fingerprint == digits.fingerprint
    assert load_data("digits", size=16).x_test.shape == (360, 16, 16, 3)


# ---------------------------------------------------------------- numbers

def test_statistics_are_those_of_float64_over_all_pixels():
    x = some_data(n=5000).x_train
    mean, std = statistics(x)
    assert np.allclose(mean, x.mean((0, 1, 2), dtype=np.float64) / 255, rtol=1e-14)
    assert np.allclose(std, x.std((0, 1, 2), dtype=np.float64) / 255, rtol=1e-12)
    white = np.full((3000, 32, 32, 3), 255, np.uint8)                  # the largest sums: none overflows
    assert statistics(white) == ((1.0,) * 3, (0.0,) * 3)


def test_fingerprint_sees_pictures_labels_names_and_size(tmp_path):
    def load(rows=None, names=NAMES10, size=32):
        members = members_of(PY10, rows)
        members[PY10.meta] = members[PY10.meta].replace(b"U\x04ship", b"U\x04" + names[8].encode())
        return load_data(tar(tmp_path / "a.tar", PY10, members), unverified=True, size=size).fingerprint

    pixel, label = rows_of(PY10), rows_of(PY10)
    pixel["test_batch"][0][3, 100] ^= 1
    label["data_batch_5"][1][0] = (label["data_batch_5"][1][0] + 1) % 10
    prints = [load(), load(pixel), load(label), load(names=[*NAMES10[:8], "boat", "truck"]), load(size=31)]
    assert len(set(prints)) == 5 and load() == prints[0] and len(prints[0]) == 64


def test_another_size_is_resized_by_the_one_rule(tmp_path):
    path = tar(tmp_path / "a.tar", PY10, members_of(PY10))
    small, full = (load_data(path, unverified=True, size=s) for s in (16, 32))
    expected = np.asarray(Image.fromarray(full.x_train[7]).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(small.x_train[7], expected) and small.size == 16


@pytest.mark.parametrize("size", [0, 7, 257, -1, 32.0, "32", True, None])
def test_sizes_that_make_no_sense_are_refused(size):
    with pytest.raises(InputError, match="8 to 256"): load_data("digits", size=size)


def test_data_is_read_only_and_checked():
    data = some_data()
    with pytest.raises(ValueError): data.x_train[0] = 0
    with pytest.raises(InputError, match="labels go from"): replace(data, y_test=data.y_test + 9)
    with pytest.raises(InputError, match="199 labels"): replace(data, y_train=data.y_train[1:])
    with pytest.raises(InputError, match="expected uint8"): replace(data, x_test=data.x_test / 255)
    assert repr(data) == "ImageData(random: 200 training and 20 test pictures of 8×8, 4 classes)"


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_channel_that_never_changes_is_zero_to_the_net_and_no_nan(value):
    from cifar_fastai.loaders.block import cifar_dataloaders
    data = some_data()
    x = data.x_train.copy()
    x[..., 1] = value
    mean, std = statistics(x)
    assert std[1] == 0                                                # the statistics tell the truth
    data = replace(data, x_train=x, mean=mean, std=std)
    assert data.std == (std[0], 1.0, std[2])
    xb = cifar_dataloaders(data, bs=50, aug=None, num_workers=0, device="cpu").train.one_batch()[0]
    assert xb.isfinite().all() and xb[:, 1].abs().max() < 1e-6
    assert abs(float(xb[:, 0].std()) - 1) < .1                        # the others as ever


# ---------------------------------------------------------------- limit and holdout

def test_limit_is_stratified_and_leaves_the_test_set():
    data = some_data(n=1000)
    small = data.limit(100)
    share = 100 * np.bincount(data.y_train) / 1000
    assert len(small.x_train) == 100 and np.abs(np.bincount(small.y_train) - share).max() < 1
    assert np.array_equal(small.x_test, data.x_test) and small.fingerprint != data.fingerprint
    assert small.mean == statistics(small.x_train)[0]
    assert data.limit(1000) is data and data.limit(5000) is data
    assert (np.bincount(data.limit(4).y_train) == 1).all()             # one of each, however rare
    with pytest.raises(InputError, match="below the 4 classes"): data.limit(3)


def test_limit_and_holdout_follow_content_and_seed_not_file_order():
    data = some_data()
    other = shuffled(data)
    assert np.array_equal(data.limit(50).x_train, other.limit(50).x_train)
    assert pictures(data.limit(50).x_train) != pictures(data.limit(50, seed=1).x_train)
    held, held_other = (d.x_train[d.holdout(40)[1]] for d in (data, other))
    assert np.array_equal(held, held_other)
    assert pictures(held) != pictures(data.x_train[data.holdout(40, seed=1)[1]])


def test_the_only_picture_of_a_class_trains():
    rng = np.random.default_rng(0)
    y = np.array([0] * 30 + [1] * 30 + [2])
    x = rng.integers(0, 256, (len(y), 8, 8, 3), np.uint8)
    data = ImageData(x, y, x[:3], np.arange(3), tuple("abc"), "made", "", (.5,) * 3, (.2,) * 3)
    for seed in range(5):
        train, held = data.holdout(seed=seed)
        assert set(y[train]) == {0, 1, 2} and set(y[held]) == {0, 1} and len(train) + len(held) == len(y)


def test_holdout_is_a_stratified_part_of_a_fifth_at_most():
    data = some_data(n=1000)
    train, held = data.holdout(150)
    assert sorted([*train, *held]) == list(range(1000)) and len(held) == 150
    share = np.bincount(data.y_train) * .15
    assert np.abs(np.bincount(data.y_train[held]) - share).max() < 1
    assert len(data.holdout(5000)[1]) == 200
    with pytest.raises(InputError, match="expected 1 to 200"): data.holdout(0)


def test_content_keys_are_of_content_and_seed():
    x = some_data().x_train
    keys = content_keys(x)
    assert len(set(keys.tolist())) == 200 and np.array_equal(content_keys(x[::-1]), keys[::-1])
    assert not np.isin(content_keys(x, seed=1), keys).any()
    assert shared_pictures(x[:100], x[90:120]).tolist() == list(range(10))


# ---------------------------------------------------------------- wrong sources, light imports

@pytest.mark.parametrize("source, says", [
    ("digit", "unknown data source or path 'digit'. Did you mean digits?"),
    ("/no/such", "/no/such is not there"),
    ("x.tar.gz", "data x.tar.gz is not there"), ("~/nothing", "is not there"),
    (".", "has no train/ and test/ and no CIFAR files (found: nothing)")])
def test_wrong_sources_are_named(source, says):
    with pytest.raises(InputError) as e: load_data(source)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_folder_without_rights_is_an_input_error(monkeypatch, tmp_path):
    def denied(*a): raise PermissionError(13, "Permission denied", "/secret")
    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(InputError, match="Permission denied"): load_data(tmp_path)


def test_importing_costs_neither_torch_nor_pillow():
    code = ("import sys, cifar_fastai.data as data; [getattr(data, name) for name in data.__all__]; "
            "print({m.split('.')[0] for m in sys.modules})")
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'numpy'" in loaded
    for heavy in ("torch", "torchvision", "PIL", "sklearn", "fastai"): assert f"'{heavy}'" not in loaded


def test_a_name_server_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.undo()
    let_go = threading.Event()
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: let_go.wait(60))
    assert search._unreachable("https://example.org/x", seconds=.05) == "no answer in 0.05 s"
    let_go.set()


def test_loading_says_what_was_loaded(caplog):
    caplog.set_level(logging.DEBUG, "cifar_fastai")   # a run says it again, with what it makes of it
    load_data("digits", size=8)
    assert "digits: 1,437 training and 360 test pictures of 8×8, 10 classes" in caplog.text
