"""comparison.html: its table, its curves, and the pictures on which two runs differ."""
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest

from cifar_fastai.page import disagreements, write_comparison

TRUE = ["cat", "dog", "cat", "dog", "cat"]
A = pd.DataFrame({"true": TRUE, "predicted": ["cat", "dog", "cat", "cat", "dog"]})
B = pd.DataFrame({"true": TRUE, "predicted": ["dog", "dog", "dog", "dog", "dog"]})


def test_disagreements_are_right_in_one_and_wrong_in_the_other():
    first, second = disagreements(("a", A), ("b", B))
    assert (first.index, first.total) == ([0, 2], 2) and second.index == [3]
    assert first.words == ["cat taken for dog"] * 2 and second.words == ["dog taken for cat"]
    assert first.title == "a right, b wrong" and second.title == "b right, a wrong"
    assert disagreements(("a", A), ("b", B), n=1)[0].index == [0]


def write(path, **kwargs):
    table = {"epoch": [1, 2], "train_loss": [2., 1.], "accuracy": [.5, .75]}
    write_comparison(path, ["recipe", "accuracy"], [["<a>", "80.00 ± 1.00"], ["b", "75.00"]],
                     [("<a>, seed 0", table), ("b, seed 0", table)], ["cat", "dog"],
                     [("<a>", [.667, .5]), ("b", [0., 1.])], disagreements(("<a>", A), ("b", B)), **kwargs)
    return path.read_text()


def test_the_page_has_table_curves_differences_and_pictures(tmp_path):
    text = write(tmp_path / "c.html", pictures=np.zeros((5, 8, 8, 3), np.uint8))
    assert "<td>80.00 ± 1.00</td>" in text and "<a>" not in text, "names are escaped"
    assert "&lt;a&gt;, seed 0, epoch 2: 75.00 %" in text
    cells = re.findall(r'<span class="(right|wrong)">([+-][\d.]+)</span>', text)
    assert cells == [("wrong", "-66.7"), ("right", "+50.0")]
    assert unescape(text).count("cat taken for dog") == 4
    assert text.count('role="img" aria-label="test picture') == 3
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)[^\"']", text)


def test_without_the_pictures_their_indices_are_told(tmp_path):
    assert "not at hand; their indices: 0, 2." in write(tmp_path / "c.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_request_and_axe_finds_no_violation(browser, axe, tmp_path, scheme):
    write(tmp_path / "c.html", pictures=np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8))
    page, asked, wrong = browser.new_page(color_scheme=scheme), [], []
    page.on("request", lambda r: asked.append(r.url) if not r.url.startswith("data:") else None)
    page.on("console", lambda m: wrong.append(m.text))
    page.goto(f"file://{tmp_path}/c.html")
    drawn = page.locator(".crop").evaluate_all("es => es.map(e => getComputedStyle(e).backgroundPosition)")
    assert len(asked) == 1 and wrong == [] and len(set(drawn)) == 3, "each tile shows a part of its own"
    assert axe(page) == []
    page.close()
