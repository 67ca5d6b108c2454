"""Folders of pictures, and the cache of what was decoded."""
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from made import picture_folder, some_pixels
from PIL import Image

from cifar_fastai.data import picture_cache, pictures
from cifar_fastai.data.picture_cache import read_folder
from cifar_fastai.data.pictures import read_picture
from cifar_fastai.errors import InputError
from cifar_fastai.files import digest
from cifar_fastai.machine import cache_dir


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_folder_gives_its_pictures_in_the_order_of_their_names(tmp_path):
    made = picture_folder(tmp_path / "größe ✓", classes=("zebra", "ant"))
    got = read_folder(tmp_path / "größe ✓", 32, lambda *a: {"n": len(a[0])})
    assert got.classes == ("ant", "zebra") and got.y_train.tolist() == [0, 0, 0, 1, 1, 1]
    assert got.about == {"n": 6}
    assert got.files_test == ["test/ant/0.png", "test/zebra/0.png"] and got.y_test.tolist() == [0, 1]
    for x, name in zip([*got.x_train, *got.x_test], [*got.files_train, *got.files_test]):
        assert np.array_equal(x, made[name])


def test_hidden_files_are_passed_over_and_strangers_named(tmp_path, caplog):
    picture_folder(tmp_path / "d")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"): (tmp_path / "d/train/cat" / name).write_bytes(b"x")
    (tmp_path / "d/labels.txt").write_text("beside train/ and test/ anything may lie")
    assert len(read_folder(tmp_path / "d", 32, lambda *a: {}).x_train) == 6
    (tmp_path / "d/train/cat/notes.txt").write_text("x")
    assert "passed over" not in caplog.text
    assert len(read_folder(tmp_path / "d", 32, lambda *a: {}).x_train) == 6
    assert "passed over: 1 file that is no picture by name: train/cat/notes.txt" in caplog.text


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("side", [8, 64], ids=["one thread", "many"])
def test_threads_change_nothing(tmp_path, monkeypatch, side, packed):
    made = picture_folder(tmp_path / "d", n=100, side=side)
    source = shutil.make_archive(tmp_path / "d", "zip", tmp_path / "d") if packed else tmp_path / "d"
    monkeypatch.setattr(picture_cache, "PIECE", 10)
    got = read_folder(Path(source), 8, lambda *a: {})
    expected = [read_picture(made[str(name)], 8) for name in got.files_train]
    assert np.array_equal(got.x_train, expected) and len(expected) == 200


def test_after_a_picture_that_cannot_be_read_no_further_piece_is_begun(tmp_path, monkeypatch):
    picture_folder(tmp_path / "d", n=40, side=64)
    begun, over, first = [], Event(), count()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args, **kwargs):
            super().shutdown(False, cancel_futures=kwargs.get("cancel_futures", False))
            over.set()
            super().shutdown()

    def decode(source, names, **kwargs):
        begun.append(names)
        if next(first): over.wait(60)                     # those behind the first wait until all is over
        raise InputError("no picture")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for name, value in (("PIECE", 1), ("decode", decode), ("ThreadPoolExecutor", Pool)):
        monkeypatch.setattr(picture_cache, name, value)
    with pytest.raises(InputError, match="no picture"): load(tmp_path / "d")
    assert len(begun) <= 3, "of five that were waiting"


# ---------------------------------------------------------------- the cache

def load(root, size=32): return read_folder(root, size, lambda x, *rest: {"sum": int(x.sum())})


def counted(monkeypatch):
    calls = []
    decode = picture_cache.decode
    monkeypatch.setattr(picture_cache, "decode", lambda *a, **kw: calls.append(1) or decode(*a, **kw))
    return calls


def test_the_second_load_decodes_nothing_and_is_equal(tmp_path, monkeypatch):
    picture_folder(tmp_path / "d")
    calls = counted(monkeypatch)
    first, second = load(tmp_path / "d"), load(tmp_path / "d")
    assert calls == [1] and np.array_equal(first.x_train, second.x_train) and first.about == second.about
    base = second.x_test
    while isinstance(base.base, np.ndarray): base = base.base
    assert isinstance(base, np.memmap) and not second.x_test.flags.writeable


@pytest.mark.parametrize("change", ["content", "time", "added", "removed", "renamed", "size", "rule"])
def test_whatever_changes_is_decoded_again(tmp_path, monkeypatch, change):
    made, root, size = picture_folder(tmp_path / "d"), tmp_path / "d", 32
    load(root)
    calls = counted(monkeypatch)
    one = root / "train/cat/1.png"
    if change == "content": Image.fromarray(some_pixels(seed=99)).save(one)
    if change == "time": os.utime(one, ns=(1, 1))
    if change == "added": (root / "train/cat/9.png").write_bytes(one.read_bytes())
    if change == "removed": one.unlink()
    if change == "renamed": one.rename(root / "train/cat/8.png")
    if change == "size": size = 16
    if change == "rule": monkeypatch.setattr(picture_cache, "RULE", pictures.RULE + 1)
    got = load(root, size)
    assert calls == [1] and len(got.x_train) == len(made) - 2 + {"added": 1, "removed": -1}.get(change, 0)
    assert len(list(cache_dir().iterdir())) == (2 if change == "size" else 1)       # the old one is not kept


def test_a_cache_of_another_folder_is_not_taken(tmp_path, monkeypatch):
    picture_folder(tmp_path / "a")
    picture_folder(tmp_path / "b", classes=("x", "y"))
    assert load(tmp_path / "a").classes != load(tmp_path / "b").classes
    assert len(list(cache_dir().iterdir())) == 2


def test_without_a_place_for_the_cache_it_goes_on(tmp_path, monkeypatch, caplog):
    picture_folder(tmp_path / "d")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load(tmp_path / "d").x_train) == 6 and "going on without" in caplog.text
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda p: p)      # HOME unset and no entry in the user list
    assert cache_dir() is None and len(load(tmp_path / "d").x_train) == 6
    assert "not cached" in caplog.text


def test_a_relative_variable_does_not_split_the_cache_in_two(tmp_path, monkeypatch):
    "The XDG specification: paths in these variables must be absolute, others are to be ignored"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for relative in ("cache", "./cache", "~/cache", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert cache_dir() == tmp_path / "home/.cache/cifar_fastai"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert cache_dir() == tmp_path / "c/cifar_fastai"


def test_a_full_disk_costs_only_the_cache(tmp_path, monkeypatch, caplog):
    picture_folder(tmp_path / "d")
    def full(fd): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    assert len(load(tmp_path / "d").x_train) == 6
    assert "No space left" in caplog.text and list(cache_dir().iterdir()) == []


BUILD = """
import os, signal, sys
from pathlib import Path
from cifar_fastai.data import picture_cache
from cifar_fastai.data.picture_cache import read_folder
picture_cache.PIECE, decode, left = 1, picture_cache.decode, [6]
def some(*args, **kwargs):
    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return decode(*args, **kwargs)
picture_cache.decode = some
read_folder(Path(sys.argv[1]), 32, lambda *arrays: {})
"""


@pytest.mark.parametrize("then", ["as it was", "another file", "a mark without its pictures"])
def test_a_build_that_was_killed_goes_on_where_it_was(then, tmp_path, monkeypatch, caplog):
    made, root = picture_folder(tmp_path / "d"), tmp_path / "d"
    monkeypatch.setattr(picture_cache, "PIECE", 1)
    whole = load(root).x_train.copy()
    for p in cache_dir().iterdir(): p.unlink()
    killed = subprocess.run([sys.executable, "-c", BUILD, str(root)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    part, done = (next(cache_dir().glob(f"*.{end}")) for end in ("part", "done"))
    kept = done.read_bytes()[64:].count(1)
    assert 1 <= kept <= 6 and len(done.read_bytes()) == 64 + len(made)
    if then == "another file": os.utime(root / "train/cat/0.png", (1, 1))
    if then == "a mark without its pictures": part.unlink()
    calls = counted(monkeypatch)
    caplog.set_level(logging.INFO)
    assert np.array_equal(load(root).x_train, whole) and [p.suffix for p in cache_dir().iterdir()] == [".npy"]
    assert len(calls) == len(made) - (kept if then == "as it was" else 0)
    assert (f"{kept} of {len(made)} parts are decoded already" in caplog.text) == (then == "as it was")


def test_those_that_want_the_same_pictures_wait_for_the_one_that_decodes(tmp_path, monkeypatch, caplog):
    picture_folder(tmp_path / "d")
    caplog.set_level(logging.INFO)
    calls, decode = [], picture_cache.decode
    def slowly(*args, **kwargs):
        calls.append(1)
        time.sleep(.5)
        return decode(*args, **kwargs)
    monkeypatch.setattr(picture_cache, "decode", slowly)
    with ThreadPoolExecutor(3) as pool: found = list(pool.map(lambda _: load(tmp_path / "d"), range(3)))
    assert calls == [1] and "waiting for the process that makes" in caplog.text
    first, *others = found
    for other in others: assert np.array_equal(other.x_train, first.x_train) and other.about == first.about


@pytest.mark.parametrize("bad", [False, True])
def test_many_pictures_are_decoded_by_processes_to_the_same(bad, tmp_path, monkeypatch):
    picture_folder(tmp_path / "d")
    expected = load(tmp_path / "d").x_train.copy()
    for p in cache_dir().iterdir(): p.unlink()
    for name, value in (("MANY", 2), ("PIECE", 3)): monkeypatch.setattr(picture_cache, name, value)
    def never(*args, **kwargs): raise AssertionError("this process decodes nothing")
    monkeypatch.setattr(picture_cache, "decode", never)
    if bad:
        (tmp_path / "d/train/dog/1.png").write_bytes(b"no picture")
        with pytest.raises(InputError, match="train/dog/1.png"): load(tmp_path / "d")
        assert not cache_dir().exists() or not list(cache_dir().iterdir())
    else: assert np.array_equal(load(tmp_path / "d").x_train, expected)


SHORT = """
import json, os, sys
for k, line in enumerate(sys.stdin.buffer):
    pixels = bytes(len(json.loads(line)) * 32 * 32 * 3)
    sys.stdout.buffer.write((b'""\\n' + pixels)[:%s if k else None])
    sys.stdout.buffer.flush()
    if k: os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("sent", [0, 2, 3, 3 + 32 * 32 * 3, 100])
def test_F2_a_process_that_is_killed_while_it_answers_leaves_no_black_pictures(sent, tmp_path, monkeypatch):
    "After `sent` bytes of an answer, among them a whole number of pictures; what was read before stays"
    picture_folder(tmp_path / "d", n=6)
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kw: start(
        [sys.executable, "-c", SHORT % sent], **kw))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    for name, value in (("MANY", 2), ("PIECE", 3)): monkeypatch.setattr(picture_cache, name, value)
    with pytest.raises(InputError, match="has ended .for lack of memory") as e: load(tmp_path / "d")
    assert e.value.exit_status == 1
    done, = cache_dir().glob("*.done")
    assert done.read_bytes()[64:].count(1) == 1 and not list(cache_dir().glob("*.npy"))


def test_digest_sees_every_byte_and_every_piece(monkeypatch):
    x = np.zeros((3 << 24) + 5, np.uint8)
    seen = {digest(x)}
    for at in (0, (1 << 24) - 1, 1 << 24, len(x) - 1):
        x[at] = 1
        seen.add(digest(x))
    assert len(seen) == 5 and digest(x) == digest(x.copy())
