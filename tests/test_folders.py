"The rule for one picture, and folders of pictures with their cache"
import io
import logging
import os

import numpy as np
import pytest
from made import file_of, picture_folder, some_pixels
from PIL import Image

from cifar_fastai import folders, pictures
from cifar_fastai.errors import InputError
from cifar_fastai.folders import cache_dir, digest, read_folder
from cifar_fastai.pictures import read_picture


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# ---------------------------------------------------------------- one picture

def test_a_picture_of_the_right_size_is_its_pixels_from_any_source(tmp_path):
    x = some_pixels()
    Image.fromarray(x).save(tmp_path / "a.png")
    image = Image.fromarray(x)
    sources = (tmp_path / "a.png", str(tmp_path / "a.png"), file_of(image), image, x)
    for source in sources: assert np.array_equal(read_picture(source), x)
    assert not np.array_equal(read_picture(x[:, ::-1]), x)


def test_grey_palette_and_sixteen_bits_become_rgb():
    grey = some_pixels(c=1)
    rgb = np.repeat(grey[..., None], 3, 2)
    for source in (grey, grey[..., None], Image.fromarray(grey), file_of(Image.fromarray(grey)),
                   grey.astype(np.uint16) * 257, file_of(Image.fromarray(grey.astype(np.uint16) * 257)),
                   Image.fromarray(grey.astype(np.int32) * 257), grey / np.float32(255)):
        assert np.array_equal(read_picture(source), rgb)
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    for source in (palette, file_of(palette), file_of(palette, "GIF")):
        assert (read_picture(source) == [10, 20, 30]).all()
    assert (read_picture(np.ones((32, 32), bool)) == 255).all()
    assert (read_picture(file_of(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "TIFF")) == [255, 0, 0]).all()


def test_transparent_parts_lie_over_black():
    rgba = np.full((32, 32, 4), (200, 100, 50, 255), np.uint8)
    rgba[:16, :, 3], rgba[16:20, :, 3] = 0, 51                 # away; a fifth of it
    for source in (rgba, Image.fromarray(rgba), file_of(Image.fromarray(rgba))):
        got = read_picture(source)
        assert (got[:16] == 0).all() and (got[16:20] == [40, 20, 10]).all()
        assert (got[20:] == [200, 100, 50]).all()
    grey = Image.fromarray(rgba).convert("LA")
    assert (read_picture(grey)[:16] == 0).all()
    assert (read_picture(grey)[20:] == np.asarray(grey)[31, 31, 0]).all()
    keyed = file_of(Image.fromarray(np.full((32, 32, 3), 9, np.uint8)), transparency=(9, 9, 9))
    assert (read_picture(keyed) == 0).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_turns_the_picture(form):
    x = np.zeros((32, 32, 3), np.uint8)
    x[:16, :16] = 255                                          # white at the top left
    exif = Image.Exif()
    exif[274] = 6                                              # the camera was turned: show it 90° clockwise
    turned, plain = (read_picture(file_of(Image.fromarray(x), form, **e)) for e in ({"exif": exif}, {}))
    assert (turned[:14, 18:] > 240).all() and (turned[:14, :14] < 15).all()
    assert (plain[:14, :14] > 240).all()


def test_the_whole_picture_is_squeezed_to_a_square():
    x = np.zeros((40, 80, 3), np.uint8)
    x[:, 40:] = 255
    got = read_picture(x)
    assert got.shape == (32, 32, 3) and (got[:, :14] == 0).all() and (got[:, 18:] == 255).all()
    checks = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(read_picture(checks).astype(int) - 127.5).max() < 20   # averaged, not picked: 0 or 255
    assert (read_picture(np.full((1, 1, 3), 77, np.uint8)) == 77).all()
    assert read_picture(some_pixels(33, 33), size=48).shape == (48, 48, 3)


def test_a_large_jpeg_decoded_small_looks_the_same():
    y, x = np.mgrid[:600, :900]
    photo = np.stack([x / 900 * 255, y / 600 * 255, (x + y) / 1500 * 255], 2).astype(np.uint8)
    full, small = read_picture(photo), read_picture(file_of(Image.fromarray(photo), "JPEG", quality=95))
    assert np.abs(full.astype(int) - small).max() <= 4


@pytest.mark.parametrize("bad", [
    np.zeros((3, 32, 32), np.uint8), np.zeros((0, 5), np.uint8), np.zeros(7, np.uint8),
    np.zeros((4, 4), np.int64), np.full((4, 4), 1.5), np.full((4, 4), np.nan), -np.ones((4, 4)),
    Image.new("F", (4, 4)), Image.new("I", (4, 4), -1), b"", b"GIF89a", 7, None],
    ids=lambda b: f"{type(b).__name__}-{getattr(b, 'shape', '')}")
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(InputError, match="cannot read"): read_picture(bad)


def test_no_program_is_run_to_show_a_picture():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"           # Pillow itself would call Ghostscript
    with pytest.raises(InputError, match="known format"): read_picture(eps)


# ---------------------------------------------------------------- folders

def test_a_folder_gives_its_pictures_in_the_order_of_their_names(tmp_path):
    made = picture_folder(tmp_path / "größe ✓", classes=("zebra", "ant"))
    got = read_folder(tmp_path / "größe ✓", 32, lambda *a: {"n": len(a[0])})
    assert got.classes == ("ant", "zebra") and got.y_train.tolist() == [0, 0, 0, 1, 1, 1]
    assert got.about == {"n": 6}
    assert got.files_test == ["test/ant/0.png", "test/zebra/0.png"] and got.y_test.tolist() == [0, 1]
    for x, name in zip([*got.x_train, *got.x_test], [*got.files_train, *got.files_test]):
        assert np.array_equal(x, made[name])


def test_hidden_files_are_passed_over_and_strangers_named(tmp_path):
    picture_folder(tmp_path / "d")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"): (tmp_path / "d/train/cat" / name).write_bytes(b"x")
    (tmp_path / "d/labels.txt").write_text("beside train/ and test/ anything may lie")
    assert len(read_folder(tmp_path / "d", 32, lambda *a: {}).x_train) == 6
    (tmp_path / "d/train/cat/notes.txt").write_text("x")
    with pytest.raises(InputError, match="notes.txt is no picture by its name"):
        read_folder(tmp_path / "d", 32, lambda *a: {})


@pytest.mark.parametrize("large", [False, True], ids=["one thread", "many"])
def test_threads_change_nothing(tmp_path, monkeypatch, large):
    made = picture_folder(tmp_path / "d", n=300, side=8 if not large else 64)
    got = read_folder(tmp_path / "d", 8, lambda *a: {})
    assert np.array_equal(got.x_train[-1], read_picture(made["train/dog/99.png"], 8))
    assert len(got.x_train) == 600


# ---------------------------------------------------------------- the cache

def load(root, size=32): return read_folder(root, size, lambda x, *rest: {"sum": int(x.sum())})


def counted(monkeypatch):
    calls = []
    decode = folders._decode
    monkeypatch.setattr(folders, "_decode", lambda *a: calls.append(1) or decode(*a))
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
    if change == "rule": monkeypatch.setattr(folders, "RULE", pictures.RULE + 1)
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


def test_a_full_disk_costs_only_the_cache(tmp_path, monkeypatch, caplog):
    picture_folder(tmp_path / "d")
    def full(fd): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    assert len(load(tmp_path / "d").x_train) == 6
    assert "No space left" in caplog.text and list(cache_dir().iterdir()) == []


def test_old_parts_of_killed_runs_are_swept(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    picture_folder(tmp_path / "d")
    load(tmp_path / "d")
    (whole,) = cache_dir().iterdir()
    old, young = whole.with_suffix(".1.part"), whole.with_suffix(".2.part")
    for p in (old, young): p.write_bytes(b"half")
    os.utime(old, (1, 1))
    os.utime(tmp_path / "d/train/cat/0.png", (1, 1))
    load(tmp_path / "d")
    assert sorted(cache_dir().iterdir()) == sorted([whole, young])


def test_digest_sees_every_byte_and_every_piece(monkeypatch):
    x = np.zeros((3 << 24) + 5, np.uint8)
    seen = {digest(x)}
    for at in (0, (1 << 24) - 1, 1 << 24, len(x) - 1):
        x[at] = 1
        seen.add(digest(x))
    assert len(seen) == 5 and digest(x) == digest(x.copy())
