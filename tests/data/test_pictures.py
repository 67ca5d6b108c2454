"""One picture, from whatever it comes as, is the right pixels."""
import io

import numpy as np
import pytest
from made import file_of, some_pixels
from PIL import Image

from cifar_fastai.data.pictures import read_picture
from cifar_fastai.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


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
