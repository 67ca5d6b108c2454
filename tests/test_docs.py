"""The pages of docs/: in the site's menu, with links that lead somewhere and code that can be run."""
import ast
import re
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
pytestmark = pytest.mark.no_rounding
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def test_every_page_is_in_the_menu_and_every_entry_is_a_page():
    found = [page for entry in SITE["nav"] for page in entry.values()]
    nested = [name for entry in found if isinstance(entry, list) for part in entry for name in part.values()]
    assert sorted([name for name in found if isinstance(name, str)] + nested) == [p.name for p in PAGES]


def links(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|mailto:", link)]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_links_lead_to_files_and_headings(page):
    for link in links(page.read_text()):
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        slugs = {re.sub(r"[^\w]+", "-", h.lower()).strip("-") for h in
                 re.findall(r"(?m)^#+ (.*)$", target.read_text())} if heading else set()
        assert not heading or heading in slugs, link


def test_the_control_a_link_to_nowhere_is_noticed():
    assert links("[a](b.md) [c](https://d) [e](f.md#g)") == ["b.md", "f.md#g"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_compile_and_import_what_there_is(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("cifar_fastai", "recipes"):
                for a in node.names:
                    if a.name != "*": assert resolve_name(f"{node.module}:{a.name}") is not None


def test_the_api_page_names_what_there_is():
    names = re.findall(r"(?m)^::: (\S+)$", (ROOT / "docs" / "api.md").read_text())
    assert len(names) > 20
    for name in names: assert resolve_name(name) is not None


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e '.[docs]'")
def test_the_site_is_built_without_a_warning(tmp_path):
    import os
    import subprocess
    import sys
    command = [sys.executable, "-m", "mkdocs", "build", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "cifar_dataloaders" in api and "fastai DataLoaders for small pictures" in api
