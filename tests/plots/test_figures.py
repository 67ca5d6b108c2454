import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from cifar_fastai.errors import InputError
from cifar_fastai.plots.figures import (
    Tile,
    add_caption,
    add_colorbar,
    as_picture,
    new_figure,
    offscreen,
    overlay,
    percent,
    save_figure,
    short,
    show_grid,
    show_message,
    show_tiles,
    text,
)

GREY = np.full((8, 8, 3), .5)


@pytest.fixture(autouse=True)
def no_figures_are_left():
    yield
    plt.close("all")


def spot():
    "A map that is hot in one place"
    heat = np.zeros((8, 8))
    heat[2, 5] = 1
    return heat


def test_hot_is_bright_and_cold_is_dark():
    light = overlay(GREY, spot()).mean(2)
    assert light[2, 5] == light.max() and light[2, 5] > light[0, 0] + .2


@pytest.mark.parametrize("cmap", ["turbo", "jet", "coolwarm"])
def test_hot_is_red_and_cold_is_blue_not_the_other_way_round(cmap):
    out = overlay(GREY, spot(), cmap=cmap)
    (r, _, b), (r0, _, b0) = out[2, 5], out[0, 0]
    assert r > b and b0 > r0


def test_brightness_of_the_default_rises_with_the_evidence():
    light = overlay(np.zeros((1, 64, 3)), np.linspace(0, 1, 64)[None], alpha=1)[0] @ [.2126, .7152, .0722]
    assert (np.diff(light) > 0).all()


def test_alpha_goes_from_the_picture_to_the_colours():
    picture = np.random.default_rng(0).random((8, 8, 3))
    np.testing.assert_allclose(overlay(picture, spot(), alpha=0), picture)
    np.testing.assert_allclose(overlay(picture, spot(), alpha=1)[2, 5], colormaps["inferno"](1.)[:3])
    np.testing.assert_allclose(overlay(picture, spot(), alpha=.25)[2, 5],
                               .75 * picture[2, 5] + .25 * np.array(colormaps["inferno"](1.)[:3]))


def test_overlay_takes_tensors_and_maps_with_nothing_in_them():
    heat = torch.full((8, 8), torch.nan)
    np.testing.assert_array_equal(overlay(torch.full((3, 8, 8), .5), heat), overlay(GREY, np.zeros((8, 8))))


def test_overlay_refuses_what_would_be_drawn_wrong():
    with pytest.raises(InputError, match="Upsample the map first"): overlay(GREY, np.zeros((4, 4)))
    with pytest.raises(InputError, match="Did you mean inferno"): overlay(GREY, spot(), cmap="infernal")


def test_every_form_of_a_picture_is_the_same_picture():
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    forms = [x, Image.fromarray(x), torch.from_numpy(x).permute(2, 0, 1), x.transpose(2, 0, 1).astype(int),
             x / 255, torch.from_numpy(x / 255).permute(2, 0, 1).requires_grad_()]
    for form in forms: np.testing.assert_allclose(as_picture(form), x / 255, atol=1e-6)
    np.testing.assert_allclose(as_picture(torch.tensor(x / 255).bfloat16()), x / 255, atol=.004)


def test_grey_is_shown_in_three_channels_and_what_is_out_of_range_is_cut():
    x = np.array([[0., .5], [2., np.nan]])
    for form in (x, x[..., None], x[None]):
        assert (as_picture(form) == np.array([[0, .5], [1, 0]])[..., None].repeat(3, 2)).all()
    with pytest.raises(InputError, match=r"shape \(4, 5, 6\)"): as_picture(np.zeros((4, 5, 6)))


def test_names_are_cut_to_one_line():
    assert short("cat") == "cat" and short("a\n\tb\x00c") == "a b c" and short("größe 猫") == "größe 猫"
    assert short("x" * 19) == "x" * 17 + "…" and short("x" * 18) == "x" * 18
    assert short("one two three", 9) == "one two…" and short(7) == "7"


def test_shares_are_written_as_people_say_them():
    said = {0: "0 %", .0004: "0 %", .003: "0.3 %", .0099: "1 %", .012: "1 %", .5: "50 %", .974: "97 %",
            .991: "99 %", .9951: "99.5 %", .9996: "100 %", 1: "100 %"}
    assert {p: percent(p) for p in said} == said


@pytest.mark.parametrize("name", [r"$\frac{1$", "$5$ a_b ^c", "<script>alert(1)</script>", "\\", "%s {x}"])
def test_names_are_never_read_as_tex(name, tmp_path):
    fig = show_grid([GREY], [name])
    assert fig.axes[0].get_title() == short(name)
    save_figure(fig, tmp_path / "a.png")


def test_control_matplotlib_alone_fails_on_such_a_name(tmp_path):
    fig, axs = new_figure()
    axs[0, 0].set_title(r"$\frac{1$")
    with pytest.raises(ValueError): save_figure(fig, tmp_path / "a.png")


def test_text_keeps_the_styles_colour_unless_told_otherwise():
    fig, axs = new_figure()
    with plt.rc_context({"text.color": "white"}):
        assert text(axs[0, 0].text, 0, 0, "a").get_color() == "white"
        assert text(axs[0, 0].text, 0, 0, "a", color="red").get_color() == "red"


def boxes(fig, side):
    "Where the texts above (or below) the pictures of a figure end up"
    fig.draw_without_rendering()
    texts = [ax.title if side == "above" else ax.xaxis.label for ax in fig.axes]
    return [t.get_window_extent() for t in texts if t.get_text()]


@pytest.mark.parametrize("n, title", [(1, ""), (2, "Mistakes"), (3, ""), (5, "Mistakes")])
def test_no_text_is_cut_off_or_runs_into_another(n, title):
    left, right = Tile(GREY, "pred automobile 100 %", "true bird 1 %\nloss 10"), Tile(GREY, "where airplane")
    fig = show_tiles([[left, right]] * n, title=title)
    if n > 1: add_colorbar(fig)
    page = fig.bbox
    for side in ("above", "below"):
        found = boxes(fig, side)
        assert found and all(page.x0 <= b.x0 and b.x1 <= page.x1 for b in found)
        assert all(page.y0 <= b.y0 and b.y1 <= page.y1 for b in found)
        assert not any(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])


WIDE = ("pred AUTOMOBILE (97 %)", f"{'W' * 12} (97 %)", "pred golden retri… (97 %)", r"\u72ac" * 9, "犬" * 30,
        "melanocytic… (97 %)\ntrue WWWWWWWWWWWW (100 %)")


@pytest.mark.parametrize("size", [.8, 1.4])
@pytest.mark.parametrize("name", WIDE)
def test_wide_names_shrink_and_are_cut_where_they_would_run_into_another(name, size):
    with offscreen(): fig = show_tiles([[Tile(GREY, name, name)]] * 5, size=size)
    for side in ("above", "below"):
        found = boxes(fig, side)
        assert len(found) == 5 and all(fig.bbox.x0 <= b.x0 and b.x1 <= fig.bbox.x1 for b in found)
        assert not any(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])
    label = fig.axes[0].title
    assert label.get_fontsize() >= 5
    if size == 1.4 and name.isascii() and len(name) < 40: assert label.get_text() == name, "small, but whole"


def test_no_letter_is_lost_where_smaller_ones_fit():
    for n in range(12, 26):
        for letter in "CATERPILLAR"[:5]:
            with offscreen(): label = show_tiles([[Tile(GREY, f"{letter * n} (100 %)")]]).axes[0].title
            assert label.get_text().endswith(" (100 %)") or label.get_fontsize() == 5


def test_a_text_that_fits_stays_as_it_is():
    label = show_tiles([[Tile(GREY, "cat (97 %)")]] * 10).axes[0].title
    assert (label.get_text(), label.get_fontsize()) == ("cat (97 %)", 8)


def test_control_names_that_are_too_long_do_run_into_another(monkeypatch):
    monkeypatch.setattr("cifar_fastai.plots.figures.fit_text", lambda *_: None)
    found = boxes(show_tiles([[Tile(GREY, "pred automobile automobile automobile")]] * 5), "above")
    assert any(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("rows, cols", [(1, 1), (1, 4), (3, 3), (2, 5), (4, 4), (5, 5)])
def test_grids_leave_no_places_empty_where_they_can(rows, cols):
    assert show_grid([GREY] * rows * cols).axes[0].get_gridspec().get_geometry() == (rows, cols)


def test_rows_columns_and_size_can_be_chosen():
    geometry = lambda **kwargs: show_grid([GREY] * 6, **kwargs).axes[0].get_gridspec().get_geometry()
    assert (geometry(nrows=1), geometry(ncols=2), geometry(nrows=4, ncols=3)) == ((1, 6), (3, 2), (4, 3))
    assert tuple(show_grid([GREY], figsize=(3, 2)).get_size_inches()) == (3, 2)


def test_no_pictures_are_said_to_be_none():
    assert [t.get_text() for t in show_grid([]).axes[0].texts] == ["No pictures to show."]
    assert show_message("100 $").axes[0].texts[0].get_text() == "100 $"


def test_offscreen_figures_do_not_pile_up_and_others_are_pyplots():
    with offscreen():
        for _ in range(30): new_figure()
    assert plt.get_fignums() == []
    fig, _ = new_figure()
    assert plt.gcf() is fig


def test_saved_figures_are_closed_and_the_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "fig.png"
    assert save_figure(new_figure(figsize=(4, 3))[0], path, dpi=50) == path
    assert plt.get_fignums() == [] and Image.open(path).size == (200, 150)
    assert [p.name for p in path.parent.iterdir()] == ["fig.png"]


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = save_figure(show_grid([GREY]), tmp_path / "fig.png")
    before, fig = path.read_bytes(), show_grid([GREY] * 2)

    def fail(file, **_):
        file.write(b"half")
        raise OSError("disk full")
    monkeypatch.setattr(fig, "savefig", fail)
    with pytest.raises(OSError, match="disk full"): save_figure(fig, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["fig.png"]


def test_a_caption_keeps_its_lines_and_wraps_long_ones_on_a_page_that_grows():
    fig = show_grid([np.zeros((4, 4, 3))] * 3, figsize=(3, 2))
    add_caption(fig, "a short one\n" + "many words " * 12 + "\n$5 and a_b")
    lines = fig._supxlabel.get_text().split("\n")
    assert lines[0] == "a short one" and lines[-1] == "$5 and a_b" and max(map(len, lines)) <= 51
    assert " ".join(lines[1:-1]) == ("many words " * 12).strip()
    assert fig.get_figheight() == pytest.approx(2 + .14 * len(lines))
    fig.draw_without_rendering()
    low = fig._supxlabel.get_window_extent()
    assert low.y0 >= 0 and low.x0 >= 0 and low.x1 <= fig.bbox.x1, "nothing is cut off"
    assert all(low.y1 <= ax.get_tightbbox().y0 for ax in fig.axes)
    same = show_grid([np.zeros((4, 4, 3))], figsize=(3, 2))
    add_caption(same, "")
    assert same._supxlabel is None and same.get_figheight() == 2
