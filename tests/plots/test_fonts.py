"""Class names in any script can be told apart in figures, by an installed font or by their codes."""
import logging
import warnings
from types import SimpleNamespace

import pytest
from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure

from cifar_fastai.plots import figures, fonts
from cifar_fastai.plots.fonts import drawable

TWO = ["犬", "猫"]


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch):
    monkeypatch.setattr(fonts, "_told", set())
    fonts._families.cache_clear()
    yield
    fonts._families.cache_clear()


def only(monkeypatch, *installed):
    "A machine with matplotlib's own font and `installed`: (family, its letters)"
    own = font_manager.findfont("DejaVu Sans")
    files = {name: frozenset(map(ord, letters)) for name, letters in installed}
    files[own] = frozenset(range(0x500))
    listed = [SimpleNamespace(style="normal", name=name, fname=name) for name, _ in installed]
    listed += [SimpleNamespace(style="normal", name="Last Resort", fname="last"),
               SimpleNamespace(style="normal", name="DejaVu Sans", fname=own)]
    files["last"] = frozenset(range(0x20000))
    monkeypatch.setattr(fonts, "_glyphs", files.__getitem__)
    manager = SimpleNamespace(
        FontProperties=lambda family=None: family, findfont=lambda family: own if family is None else family,
        fontManager=SimpleNamespace(ttflist=listed))
    monkeypatch.setattr(fonts, "font_manager", manager)


def test_the_usual_letters_need_no_other_font(monkeypatch):
    only(monkeypatch, ("Kanji", "犬猫"))
    for words in ("cat", "größe", "кот", "γάτα", ["a", "b"], [1, 2], 7):
        assert drawable(words) == (words, None)


def test_an_installed_font_that_has_the_letters_is_taken(monkeypatch, caplog):
    only(monkeypatch, ("Few", "犬"), ("Kanji", "犬猫"), ("Thai", "แมว"))
    words, families = drawable(TWO)
    assert words == TWO and families[-1] == "Kanji" and "Few" not in families
    words, families = drawable("犬 แมว")
    assert words == "犬 แมว" and families[-2:] == ["Thai", "Few"] and not caplog.records


def test_without_one_the_codes_are_shown_and_one_line_says_so(monkeypatch, caplog):
    only(monkeypatch)
    assert drawable(TWO)[0] == ["\\u72ac", "\\u732b"] and drawable("a 犬")[0] == "a \\u72ac"
    assert drawable("鳥")[0] == "\\u9ce5"
    (line,) = caplog.messages
    assert line.startswith("no installed font has letters such as 犬 猫: figures show their codes, \\u72ac")


def test_figures_draw_such_names_without_a_warning(tmp_path, caplog):
    "With the fonts of this machine, whichever they are"
    caplog.set_level(logging.WARNING)
    with warnings.catch_warnings(), figures.offscreen():
        warnings.simplefilter("error")
        for k in range(2):
            fig = figures.show_grid([[[0.0, 1.0], [1.0, 0.0]]] * 2, TWO, title="犬 or 猫")
            figures.save_figure(fig, tmp_path / f"{k}.png", dpi=40)
    assert (tmp_path / "1.png").stat().st_size > 500 and len(caplog.records) <= 1


def test_a_glyph_that_is_missing_would_warn(tmp_path):
    "The control of the test above: matplotlib alone prints a warning for each figure"
    with figures.offscreen(): fig, axs = figures.new_figure()
    axs[0, 0].set_title("\ufdd0")                          # a code point that no font may have
    with pytest.warns(UserWarning, match="missing"): figures.save_figure(fig, tmp_path / "a.png", dpi=40)


def test_of_the_fonts_that_are_really_here_one_with_the_letters_is_drawn_with(tmp_path, caplog):
    "STIXSizeOneSym has no Cyrillic letters; matplotlib brings it, and DejaVu Sans, which has them"
    with rc_context({"font.family": ["STIXSizeOneSym"]}), warnings.catch_warnings(), figures.offscreen():
        warnings.simplefilter("error")
        words, families = drawable("кот")
        assert words == "кот" and families[0] == "STIXSizeOneSym" and len(families) == 2
        assert set(map(ord, "кот")) <= fonts._glyphs(font_manager.findfont(families[1]))
        fig = Figure()
        figures.text(fig.text, .5, .5, "кот")
        figures.save_figure(fig, tmp_path / "a.png", dpi=40)
    assert not caplog.records
