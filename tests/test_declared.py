"""What the package imports is declared, and what is installed is the package: not the benchmarks."""
import ast
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from pkgutil import resolve_name

import pytest
from packaging.requirements import Requirement
from test_package import ROOT, _key, declared

PACKAGES = ("cifar_fastai", "recipes")
OPTIONAL = {"ipython": "notebook", "gradio": "app", "accelerate": "distributed", "onnx": "export",
            "onnxruntime": "export", "onnxscript": "export"}      # imported where they are there: extras


def imported(*folders: Path) -> set[str]:
    "The first names of what the files in `folders` import, also within functions"
    names = set()
    for node in (n for f in folders for p in f.rglob("*.py") for n in ast.walk(ast.parse(p.read_text()))):
        if isinstance(node, ast.Import): names |= {a.name.split(".")[0] for a in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level: names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - set(PACKAGES)


def undeclared(names: set[str], needs: list[str]) -> set[str]:
    "Those of `names` that no requirement in `needs` brings itself; what is not installed goes by its name"
    known, brings = {_key(Requirement(n).name) for n in needs}, packages_distributions()
    return {n for n in names if not known & {_key(d) for d in brings.get(n, [n])}}


def test_every_import_is_declared():
    project, names = declared(), imported(*(ROOT / p for p in PACKAGES))
    missing = undeclared(names, project["dependencies"])
    assert {_key(n) for n in missing} == set(OPTIONAL), missing
    for name in missing: assert not undeclared({name}, project["optional-dependencies"][OPTIONAL[_key(name)]])
    assert {"cv2", "PIL", "pandas", "fastai"} <= names


def test_control_what_is_left_out_is_named(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    import cv2, os\n    from PIL.Image import open")
    needs = [d for d in declared()["dependencies"] if not d.startswith("pillow")]
    assert imported(tmp_path) == {"cv2", "PIL"} and undeclared(imported(tmp_path), needs) == {"PIL"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "The wheel's files, in a folder of their own"
    import shutil
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in (*PACKAGES, "benchmarks"): shutil.copytree(ROOT / name, source / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"): shutil.copy(ROOT / name, source)
    code = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(root)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=source, timeout=120)
    (wheel,) = root.glob("*.whl")
    with zipfile.ZipFile(wheel) as z: z.extractall(root / "site")
    return root / "site"


def test_a_wheel_holds_the_package_and_the_recipes_alone(installed):
    tops = {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")}
    assert tops == set(PACKAGES)
    for name in PACKAGES:
        here = {p.relative_to(ROOT) for p in (ROOT / name).rglob("*.py")}
        assert {p.relative_to(installed) for p in (installed / name).rglob("*.py")} == here
    assert (installed / "cifar_fastai" / "py.typed").exists()
    assert (installed / "cifar_fastai" / "__init__.pyi").exists(), "the public names"


def test_the_list_of_recipes_works_without_the_benchmarks(installed, tmp_path):
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-m", "recipes"], capture_output=True, text=True, env=env,
                          cwd=tmp_path, timeout=60)
    assert done.returncode == 0 and done.stderr == "" and "resnet18_20ep" in done.stdout
    assert "test accuracy: see benchmarks/results of the repository" in done.stdout


IMPORT = re.compile(r"from ((?:cifar_fastai|recipes|benchmarks)[\w.]*) import ([\w, ]+)")


def names_nothing(text: str) -> list[str]:
    "Imports of ours in `text`, code that is run in another process included, that cannot be made"
    found = []
    for module, names in IMPORT.findall(text):
        for name in (n.split(" as ")[0].strip() for n in names.split(",")):
            try: resolve_name(f"{module}.{name}")
            except (ImportError, AttributeError): found.append(f"{module}.{name}")
    return found


def test_imports_name_what_exists_also_in_texts_of_code():
    folders = (ROOT / d for d in ("tests", "benchmarks", "docs"))
    files = [ROOT / "README.md", *(p for d in folders for p in d.rglob("*") if p.suffix in (".py", ".md"))]
    wrong = {p.name: found for p in files if (found := names_nothing(p.read_text()))}
    assert wrong == {"test_house.py": ["cifar_fastai.gradcam.cam.A"]}, "the control"
