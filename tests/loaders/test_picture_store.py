"""Pictures under one index, shared with workers and left out of other pickles."""
import copy
import os
import pickle
from multiprocessing import context, reduction

import numpy as np
import pytest
import torch
from made import some_pixels
from PIL import Image

from cifar_fastai.errors import InputError
from cifar_fastai.loaders.picture_store import LabelOf, PictureOf, PictureStore


@pytest.fixture(scope="module")
def store(learnable): return PictureStore(learnable)


def test_an_index_goes_through_training_pictures_and_then_the_test_set(store, learnable):
    assert len(store) == 208 and store.size == 16
    assert (store[159] == learnable.x_train[159]).all() and (store[160] == learnable.x_test[0]).all()
    assert store.y[159] == learnable.y_train[159] and store.y[160] == learnable.y_test[0]


def test_pictures_are_taken_in_the_order_asked_for_and_copied(store, learnable):
    taken = store.take(np.array([170, 3, 161, 3]))
    assert [x.tobytes() for x in taken] == [store[i].tobytes() for i in (170, 3, 161, 3)]
    taken[:] = 0
    assert learnable.x_train[3].any()


def test_a_picture_is_named_by_its_place_or_its_file(store, learnable):
    from dataclasses import replace
    assert store.name(3) == "training picture 3" and store.name(160) == "test picture 0"
    named = PictureStore(replace(learnable, files_train=[f"{i}.png" for i in range(160)]))
    assert named.name(3) == "3.png" and named.name(161) == "test picture 1"


def test_a_pickle_holds_no_pictures_and_a_copy_shares_them(store):
    assert len(pickle.dumps(store)) < 1000
    assert copy.deepcopy({"a": store})["a"][3] is not None and copy.deepcopy(store) is store


class Passed:
    "A file that a child has open, too"
    def __init__(self, fd): self.fd = os.dup(fd)
    def detach(self): return self.fd


def sent(store, monkeypatch):
    "`store` as a spawned worker gets it, and how many bytes the pickle had"
    monkeypatch.setattr(context._tls, "spawning_popen", type("Popen", (), {
        "duplicate_for_child": staticmethod(lambda fd: fd), "DupFd": Passed})(), raising=False)
    data = bytes(reduction.ForkingPickler.dumps(store))
    monkeypatch.setattr(context._tls, "spawning_popen", None)
    return pickle.loads(data), len(data)


def test_a_mapped_file_is_mapped_again_in_a_spawned_worker(learnable, tmp_path, monkeypatch):
    from dataclasses import replace
    np.save(tmp_path / "ü.npy", np.concatenate([learnable.x_test, learnable.x_train]))
    mapped = np.load(tmp_path / "ü.npy", mmap_mode="r")
    store = PictureStore(replace(learnable, x_train=mapped[48:], x_test=mapped[:48]))
    there, size = sent(store, monkeypatch)
    assert size < 6000 and all(isinstance(p, np.memmap) for p in there.parts)
    assert all((there[i] == store[i]).all() for i in range(len(store)))


def test_a_cache_that_was_made_anew_does_not_reach_the_workers(learnable, tmp_path, monkeypatch):
    "They would show its pictures under the labels of before"
    from dataclasses import replace
    old, new = tmp_path / "ü.npy", tmp_path / "new.npy"
    np.save(old, learnable.x_train)
    store = PictureStore(replace(learnable, x_train=np.load(old, mmap_mode="r")))
    for _ in range(2):
        there, _size = sent(store, monkeypatch)
        assert all((there[i] == store[i]).all() for i in range(len(store)))
        np.save(new, learnable.x_train[::-1])
        os.replace(new, old)
    assert (store[0] == learnable.x_train[0]).all() and not isinstance(there.parts[0], np.memmap)


@pytest.mark.parametrize("o", ["path", "str", "bytes", "array", "tensor", "pil", "index"])
def test_a_picture_is_read_alike_from_whatever_it_comes(store, tmp_path, o):
    x = np.array(store[3])
    Image.fromarray(x).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    given = {"path": path, "str": str(path), "bytes": path.read_bytes(), "array": x, "index": 3,
             "tensor": torch.from_numpy(x), "pil": Image.fromarray(x)}[o]
    assert (np.asarray(PictureOf(store)(given)) == x).all()


def test_a_picture_of_another_size_is_brought_to_the_size_of_the_data(store):
    assert PictureOf(store)(some_pixels(40, 30)).size == (16, 16)


def test_a_label_is_read_off_an_index_or_the_folder_of_a_path(store):
    label = LabelOf(store)
    assert label(1) == "dog" and label(np.int64(162)) == "frog" and label("/a/cat/1.png") == "cat"
    with pytest.raises(InputError, match="no label can be read off a ndarray"): label(some_pixels())
