"""Fonts for class names in any script: 犬, कुत्ता, כלב; and letters as small as a place asks for.

    words, families = drawable("犬")     # as it can be drawn, and with which fonts; None: with the usual ones

matplotlib's own font has Latin, Greek and Cyrillic. For other letters an installed font is looked for;
letters that no font has are written by their code, so that two names stay two, and one line says so."""
import logging
from functools import cache

from matplotlib import font_manager, rcParams
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

__all__ = ["drawable", "fit_text"]

log = logging.getLogger("cifar_fastai")
LEAST = 5         # points of a letter, which can still be read
_told = set()     # letters of which it has been said that no font has them


def drawable(
    words,          # a text, or a list of texts such as tick labels; anything else stays as it is
) -> tuple:         # (the same to be drawn, font families or None)
    "What can be drawn of `words`, and by which font families where the usual one does not do"
    letters = {c for w in _texts(words) for c in w if not c.isspace()}
    if all(c.isascii() for c in letters): return words, None
    lacking = frozenset(map(ord, letters)) - _glyphs(font_manager.findfont(font_manager.FontProperties()))
    if not lacking: return words, None
    families, absent = _families(lacking)
    if absent: words = _written_out(words, absent)
    return words, [*rcParams["font.family"], *families]


def _texts(words):
    if isinstance(words, str): return [words]
    return [w for w in words if isinstance(w, str)] if isinstance(words, list | tuple) else []


@cache
def _glyphs(path) -> frozenset:
    "The code points that a font has letters for"
    try: return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError): return frozenset()      # bitmaps, or damaged: cannot be drawn with


@cache
def _families(lacking: frozenset) -> tuple:
    "(font families that have the code points between them, code points that none has)"
    fonts = sorted({(f.style != "normal", f.name, f.fname) for f in font_manager.fontManager.ttflist
                    if not f.name.startswith("Last Resort")})      # that one has a box for everything
    found = []
    while lacking and fonts:
        best = max(fonts, key=lambda f: len(lacking & _glyphs(f[2])))      # of equals the first
        if not lacking & _glyphs(best[2]): break
        fonts.remove(best)
        chosen = font_manager.findfont(font_manager.FontProperties(family=best[1]))
        if not lacking & _glyphs(chosen): continue                 # of that family another file is drawn with
        found.append(best[1])
        lacking = lacking - _glyphs(chosen)
    return tuple(found), lacking


def _written_out(words, absent):
    new = {chr(c) for c in absent} - _told
    if new and not _told:
        some = " ".join(sorted(new)[:5])
        log.warning("no installed font has letters such as %s: figures show their codes, %s …. "
                    "Install a font that has them, such as Noto Sans CJK", some, ascii(sorted(new)[0])[1:-1])
    _told.update(new)
    codes = {c: ascii(chr(c))[1:-1] for c in absent}
    if isinstance(words, str): return words.translate(codes)
    return [w.translate(codes) if isinstance(w, str) else w for w in words]


def fit_text(
    label: Text,     # as `text` gives it
    inches: float,   # that there are
) -> None:
    "Smaller letters where a line is too wide, then fewer"
    width = .95 * 72 * inches - 4        # points, with a gap; drawn letters are a little wider than measured
    wide = lambda line: text_to_path.get_text_width_height_descent(line, label.get_fontproperties(), False)[0]
    lines = label.get_text().split("\n")
    if (most := max(map(wide, lines))) <= width: return
    label.set_fontsize(max(LEAST, label.get_fontsize() * width / most))
    for k, line in enumerate(lines):
        if wide(line) <= 1.001 * width: continue
        line = line[:int(len(line) * width / wide(line)) + 2]                # about as many as fit
        while len(line) > 1 and wide(line.rstrip() + "…") > width: line = line[:-1]
        lines[k] = line.rstrip() + "…"
    label.set_text("\n".join(lines))
