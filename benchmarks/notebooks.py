"""Run the notebooks: as pages of docs/, with outputs, or only to see how long they take.

    python -m benchmarks notebooks [01 02 …]
    python -m benchmarks notebooks [01 02 …] --times [--epochs 2]      # writes no page

The notebooks themselves stay without outputs. Progress bars are left out; pictures are PNGs of 128 colours.
"""
import argparse
import io
import os
import re
import tempfile
from pathlib import Path

from PIL import Image

from .harness import now

__all__ = ["main", "page_of"]

ROOT = Path(__file__).parents[1]
WITHOUT_GPU = ("01", "02", "03")
OWN = r"(?m)^EPOCHS = \d+"


def main(argv: list[str]) -> int:
    import nbformat
    from nbclient import NotebookClient
    parser = argparse.ArgumentParser(prog="python -m benchmarks notebooks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", default=WITHOUT_GPU, help="01, 02 …; none: those without a GPU")
    parser.add_argument("--times", action="store_true", help="print seconds, write no page")
    parser.add_argument("--epochs", type=int, help="with --times: in place of the notebook's own EPOCHS")
    args = parser.parse_args(argv)
    if args.epochs and not args.times: parser.error("--epochs is for --times: pages show the notebook's own.")
    inline = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if path.name[:2] not in args.numbers: continue
        book = nbformat.read(path, 4)
        line = f"EPOCHS = {args.epochs}"
        for cell in book.cells if args.epochs else (): cell.source = re.sub(OWN, line, cell.source)
        with tempfile.TemporaryDirectory() as folder:
            start, where = now(), {"metadata": {"path": folder}}
            NotebookClient(book, timeout=900, kernel_name="python3", resources=where).execute(env=inline)
        print(f"{path.stem}{f', {line}' if args.epochs else ''}: {now() - start:.0f} s", flush=True)
        if args.times: continue
        text, pictures = page_of(book, path.stem)
        for name, png in pictures.items(): (ROOT / "docs" / "figures" / name).write_bytes(_small(png))
        (ROOT / "docs" / f"{path.stem}.md").write_text(text)
    return 0


def page_of(book, stem: str) -> tuple[str, dict[str, bytes]]:
    "The Markdown of a notebook that has run, and its pictures by the name of their file"
    from nbconvert import MarkdownExporter
    book.metadata.setdefault("language_info", {"name": "python"})
    for cell in book.cells:
        kept = []
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("text/html", None)                      # of the bars
            if not _empty(output) and output not in kept: kept.append(output)   # a live graph is there twice
        if "outputs" in cell: cell["outputs"] = kept
    where = {"unique_key": stem, "output_files_dir": "figures"}
    body, resources = MarkdownExporter().from_notebook_node(book, resources=where)
    body = re.sub(r"!\[png\]", "![output of the cell above]", body)
    body = re.sub(r"\]\((\d\d_\w+)\.ipynb\)", r"](\1.md)", body)
    body = re.sub(r"(?s)```html\n<div>\s*(<table.*?</table>)\s*</div>\s*```", _table, body)
    body = re.sub(r"```html\n<div></div>\s*```", "", body)                     # what is left of a bar
    body = re.sub(r"\n\s*\n\s*\n", "\n\n", body).strip()
    note = f"*`notebooks/{stem}.ipynb`, as it ran: `python -m benchmarks notebooks` wrote this page.*"
    title, _, rest = body.partition("\n")
    found = {Path(k).name: v for k, v in resources.get("outputs", {}).items()}
    return f"{title}\n\n{note}\n{rest}\n", found


def _table(found: re.Match) -> str:
    "fastai's table of epochs without its indent, which Markdown takes for code"
    return re.sub(r"(?m)^\s+", "", found[1])


def _empty(output) -> bool:
    "What stands for a bar or a figure in text alone"
    data = output.get("data", {})
    text, has = output.get("text") or data.get("text/plain", "x" if data else ""), set(data) - {"text/plain"}
    bare = re.fullmatch(r"<[\w.]*(Figure|HTML|Axes)[^\n]*>", text.strip())
    return not text.strip() or (not has and bare is not None)


def _small(png: bytes) -> bytes:
    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()
