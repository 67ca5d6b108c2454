"""The notebooks run from top to bottom, say what they should, and are committed without outputs."""
import json
import os
import re
from pathlib import Path

import pytest
from tiny import own_cores

FOLDER = Path(__file__).parents[1] / "notebooks"
pytestmark = pytest.mark.no_rounding
ALL = sorted(FOLDER.glob("*.ipynb"))


def cells(path: Path) -> list[dict]: return json.loads(path.read_text())["cells"]


def test_there_are_the_four(): assert [p.name[:2] for p in ALL] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_they_are_committed_without_outputs_and_are_valid(path):
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(path, 4))
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code) and len(code) >= 5


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_every_cell_is_python(path):
    for c in cells(path):
        source = re.sub(r"(?m)^%.*$", "", "".join(c["source"]))
        if c["cell_type"] == "code": compile(source, path.name, "exec")


@pytest.fixture(scope="module")
def executed():
    "The name of a notebook → its cells after a run with two epochs of 16×16, in a kernel of its own"
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")

    def run(name: str, folder: Path) -> list[dict]:
        path = next(p for p in ALL if p.name.startswith(name))
        book = nbformat.read(path, 4)
        for c in book.cells:
            c.source = re.sub(r"(?m)^EPOCHS = \d+", "EPOCHS = 2", c.source).replace("size=24", "size=16")
        assert any("size=16" in c.source for c in book.cells)
        plain = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}     # inline
        plain["OMP_NUM_THREADS"] = str(own_cores())
        nbclient.NotebookClient(book, timeout=280, kernel_name="python3",
                                resources={"metadata": {"path": str(folder)}}).execute(env=plain)
        return book.cells
    return run


def printed(found: list[dict]) -> str:
    "Text on standard output and values"
    outputs = [o for c in found for o in c.get("outputs", [])]
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)


def transferred(found: list[dict]) -> float:
    "The accuracy in the last row of the table below the cell that loads weights"
    cell = next(c for c in found if "load_weights" in c["source"])
    tables = [o["data"]["text/html"] for o in cell["outputs"] if "text/html" in o.get("data", {})]
    return float(re.findall(r"<td>([\d.]+)</td>", tables[-1])[-1])


def complaints(found: list[dict]) -> list[str]:
    return [o["text"] for c in found for o in c.get("outputs", []) if o.get("name") == "stderr"]


def pictures(found: list[dict]) -> int:
    return sum("image/png" in o.get("data", {}) for c in found for o in c.get("outputs", []))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_train(executed, tmp_path):
    found = executed("01", tmp_path)
    text = printed(found)
    accuracy, mistakes = re.search(r"accuracy ([\d.]+)%.* (\d+) mistakes of 360", text).groups()
    assert float(accuracy) > 60 and float(accuracy) == pytest.approx(100 - int(mistakes) / 3.6, abs=.01)
    assert all(name in text for name in ("valley", "slide", "minimum", "steep", "peak"))
    assert pictures(found) >= 5 and complaints(found) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_explain(executed, tmp_path):
    found = executed("02", tmp_path)
    text = printed(found)
    assert float(re.search(r"accuracy ([\d.]+)%", text)[1]) > 50
    assert len(re.findall(r"insertion [\d.]+, deletion [\d.]+ \(noise", text)) == 2
    assert pictures(found) >= 5 and complaints(found) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_your_own_pictures(executed, tmp_path):
    found = executed("03", tmp_path)
    text = printed(found)
    assert "['four', 'one', 'three', 'two', 'zero']" in text and "5 classes" in text
    assert float(re.search(r"([\d.]+)% of \d+ test pictures", text)[1]) > 40
    assert "'report.html'" in text and "'weights.safetensors'" in text
    assert len(re.findall(r"\('\d{4}\.png', '\w+', '\d+%'\)", text)) == 4
    told = complaints(found)       # log lines, no warnings: what was split off, what was left out
    assert all("left out of" in line or "split off to test" in line for line in told)
    assert any("fc.weight" in line for line in told)
    assert transferred(found) > .6, "another net with other classes, after three epochs on 200 pictures"


def test_a_page_of_a_notebook_has_its_text_code_values_and_pictures_but_no_bars():
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbconvert")
    from benchmarks.notebooks import page_of
    v4, png = nbformat.v4, "iVBORw0KGgo="
    bar = {"text/html": "<progress>", "text/markdown": "```html\n<div></div>\n\n```",
           "text/plain": "<IPython.core.display.HTML object>"}
    out = [v4.new_output("display_data", bar),
           v4.new_output("stream", text="accuracy 97.22%\n"),
           *2 * [v4.new_output("display_data", {"image/png": png, "text/plain": "<Figure size 640x480>"})]]
    book = v4.new_notebook(cells=[v4.new_markdown_cell("# Train\n\nSee [explain](02_explain.ipynb)."),
                                  v4.new_code_cell("print(1)", outputs=out)])
    text, found = page_of(book, "01_train")
    name, = found
    assert text.startswith("# Train\n\n*`notebooks/01_train.ipynb`")
    assert "[explain](02_explain.md)" in text and name.startswith("01_train_")
    assert "```python\nprint(1)\n```" in text and "    accuracy 97.22%" in text
    assert f"(figures/{name})" in text
    assert not re.search("<div>|progress|IPython|Figure size", text)


@pytest.mark.parametrize("stem", ["01_train", "02_explain", "03_your_own_pictures"])
def test_the_rendered_page_has_every_cell_of_the_notebook_as_it_is_now(stem):
    page = (FOLDER.parent / "docs" / f"{stem}.md").read_text()
    for c in cells(FOLDER / f"{stem}.ipynb"):
        source = "".join(c["source"])
        if c["cell_type"] == "code": assert f"```python\n{source}\n```" in page, source
        else: assert all(line in page for line in source.splitlines() if ".ipynb" not in line), source
    for name in re.findall(r"\((figures/[^)]+)\)", page): assert (FOLDER.parent / "docs" / name).exists()
    assert page.count("(figures/") >= 2 and re.search(r"\d\d\.\d\d ?%", page)
