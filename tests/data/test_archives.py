"The four official archives, packed and unpacked, against rows written by hand"
import hashlib
import pickle
import pickletools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from official import BIN10, BIN100, NAMES10, PY10, PY100, members_of, pickled, rows_of, tar, unpacked

from cifar_fastai.data import archives
from cifar_fastai.data.archives import KINDS, official_in, read_official
from cifar_fastai.errors import InputError

SMALL = Path(__file__).parents[3] / "shared/data/cifar-10-python-first1000.tar.xz"


def test_the_fixture_is_the_official_format():
    raw = pickled({b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [3, 300]})
    names = {arg.replace(" ", ".") for op, arg, _ in pickletools.genops(raw) if op.name == "GLOBAL"}
    assert names == {"numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"}
    batch = pickle.loads(raw, encoding="bytes")
    assert batch[b"data"].tolist() == [[0, 1, 2], [3, 4, 5]] and batch[b"labels"] == [3, 300]


def test_planes_become_pixels(tmp_path):
    rows = rows_of(PY10, n=2)
    row = np.zeros(3072, np.uint8)
    row[0 * 1024 + 5 * 32 + 7], row[1 * 1024 + 5 * 32 + 7], row[2 * 1024 + 31 * 32 + 0] = 11, 22, 33
    rows["data_batch_3"] = (np.stack([rows["data_batch_3"][0][0], row]), [1, 9])
    got = read_official(tar(tmp_path / "a.tar.gz", PY10, members_of(PY10, rows)), unverified=True)
    picture = got.x_train[5]                       # the second of the third batch of two
    assert picture[5, 7].tolist() == [11, 22, 0] and picture[31, 0].tolist() == [0, 0, 33]
    assert picture.sum() == 66 and got.y_train[5] == 9


def test_a_binary_file_written_by_hand(tmp_path):
    picture = bytes(range(256)) * 12
    members = dict.fromkeys(BIN10.members, bytes([7]) + picture) | {BIN10.meta: " ".join(NAMES10).encode()}
    got = read_official(tar(tmp_path / "a.tar", BIN10, members), unverified=True)
    assert got.y_train.tolist() == [7] * 5 and got.y_test.tolist() == [7]
    assert got.x_train.shape == (5, 32, 32, 3)
    assert got.x_test[0, 0, :3].tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]     # 1,024 is a multiple of 256
    assert got.x_test[0, 8, 0].tolist() == [0, 0, 0] and got.x_test[0, 7, 31].tolist() == [255] * 3


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.folder)
def test_every_layout_gives_the_rows_that_were_written(tmp_path, kind):
    rows = rows_of(kind)
    members = members_of(kind, rows)
    train = np.concatenate([rows[m][0] for m in kind.train]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    packed = read_official(tar(tmp_path / "a.tar.xz", kind, members), unverified=True)
    loose = read_official(unpacked(tmp_path, kind, members), unverified=True)
    for got in (packed, loose):
        assert got.kind is kind and np.array_equal(got.x_train, train)
        assert got.y_train.tolist() == sum((rows[m][1] for m in kind.train), [])   # CIFAR-100: the fine
        assert got.y_test.tolist() == rows[kind.test][1] and got.y_test.dtype == np.int64
        assert len(got.classes) == kind.n_classes and got.x_train.dtype == np.uint8


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz", "no suffix.gz"])
def test_any_packing_is_read(tmp_path, name):
    got = read_official(tar(tmp_path / name, PY10, members_of(PY10)), unverified=True)
    assert got.classes == tuple(NAMES10) and len(got.x_train) == 20


def test_members_may_come_in_any_order_and_below_a_dot(tmp_path):
    members = dict(reversed(members_of(PY10).items()))
    dotted = replace(PY10, folder=f"./{PY10.folder}")
    got = read_official(tar(tmp_path / "a.tar", dotted, members), unverified=True)
    plain = read_official(tar(tmp_path / "b.tar", PY10, members_of(PY10)), unverified=True)
    assert np.array_equal(got.x_train, plain.x_train)


def test_another_md5_is_refused_with_both_sums_and_the_way_out(tmp_path):
    path = tar(tmp_path / "cifar-10-python.tar.gz", PY10, members_of(PY10))
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(InputError) as e: read_official(path)
    for part in (str(path), PY10.md5, found, "--unverified"): assert part in str(e.value)


def test_the_right_md5_needs_no_flag(tmp_path, monkeypatch):
    path = tar(tmp_path / "a.tar.gz", PY10, members_of(PY10))
    ours = replace(PY10, md5=hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(archives, "KINDS", (ours, *KINDS[1:]))
    assert len(read_official(path).x_test) == 4


def test_unpacked_files_are_compared_one_by_one(tmp_path, monkeypatch):
    members = members_of(PY10)
    folder = unpacked(tmp_path, PY10, members)
    ours = replace(PY10, sums=tuple(hashlib.md5(members[m]).hexdigest() for m in PY10.members))
    monkeypatch.setattr(archives, "KINDS", (ours, *KINDS[1:]))
    assert len(read_official(folder).x_train) == 20
    changed = bytearray(members["data_batch_4"])
    changed[-200] ^= 1
    (folder / "data_batch_4").write_bytes(changed)
    with pytest.raises(InputError, match="data_batch_4 is not the official file"): read_official(folder)


def test_unpacked_binary_files_have_no_sums_to_trust(tmp_path):
    folder = unpacked(tmp_path, BIN10, members_of(BIN10))
    with pytest.raises(InputError, match="cannot be verified.*--unverified"): read_official(folder)
    assert len(read_official(folder, unverified=True).x_train) == 20


def test_files_are_found_in_the_folder_its_parent_and_packed(tmp_path):
    folder = unpacked(tmp_path, PY10, members_of(PY10))
    (tmp_path / BIN100.archive).write_bytes(b"not looked into")
    assert official_in(folder) == [folder]
    assert official_in(tmp_path) == [folder, tmp_path / BIN100.archive]
    assert official_in(tmp_path, "cifar100") == [tmp_path / BIN100.archive]


def test_a_file_called_test_is_no_cifar100(tmp_path):
    (tmp_path / "test").write_text("a script")
    assert official_in(tmp_path) == []
    (tmp_path / "meta").write_text("and another")
    assert official_in(tmp_path, PY100.name) == [tmp_path]


@pytest.mark.skipif(not SMALL.exists(), reason="the small archive of real pictures is not on this machine")
def test_real_bytes_of_the_official_format():
    got = read_official(SMALL, unverified=True)
    assert (len(got.x_train), len(got.x_test)) == (5000, 1000) and got.classes == tuple(NAMES10)
    assert np.abs(got.x_train.mean((0, 1, 2)) / 255 - [.4934, .4842, .4481]).max() < 1e-4
