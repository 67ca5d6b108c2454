"""The public names: few, lazy, and the same for people, editors and Python."""
import ast
import os
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import cifar_fastai

HEAVY = {"torch", "fastai", "albumentations", "numpy", "matplotlib"}


def said(code: str, **env) -> list[str]:
    "The words that `code` prints in a process of its own"
    env = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"} | env
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=True)
    return done.stdout.split()


def test_importing_the_package_imports_nothing_heavy_and_asks_no_network():
    code = "import cifar_fastai, os, sys; print('-', *{*sys.modules} & %r, os.environ[%r])"
    code = code % (HEAVY, "NO_ALBUMENTATIONS_UPDATE")
    assert said(code) == ["-", "1"]
    assert said(code, NO_ALBUMENTATIONS_UPDATE="0") == ["-", "0"], "what the user says goes"


def test_nor_does_a_recipe():
    code = "import sys, recipes.resnet18_20ep as r; print(r.recipe.name, *{*sys.modules} & %r)"
    assert said(code % HEAVY) == ["resnet18_20ep"]


def test_star_binds_every_public_name_and_no_other():
    names = {}
    exec("from cifar_fastai import *", names)
    assert {n for n in names if n != "__builtins__"} == set(cifar_fastai.__all__)


def test_every_public_name_is_there_and_from_the_module_that_lists_it():
    for name in cifar_fastai.__all__:
        value = getattr(cifar_fastai, name)
        assert name == "policy" or name in import_module(cifar_fastai._module_of[name]).__dict__, name
        assert value is not None and getattr(value, "__doc__", None), f"{name} has no docstring"
    for module, names in cifar_fastai._home.items():
        assert set(names) <= set(import_module(f"cifar_fastai.{module}").__all__), module


def test_names_can_be_completed_before_they_are_imported():
    assert set(cifar_fastai.__all__) | {"cli", "policy"} <= set(dir(cifar_fastai))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(cifar_fastai, "resnet81")


def test_editors_are_told_the_same_names_as_python():
    tree = ast.parse(Path(cifar_fastai.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and n.test.id == "TYPE_CHECKING")
    told = {}
    for node in block.body:
        module = f"cifar_fastai.{node.module or ''}".rstrip(".") if node.level else node.module
        for name in node.names:
            assert name.asname == name.name, f"{name.name} is not re-exported"
            told[name.name] = module
    assert told == cifar_fastai._module_of | dict.fromkeys(cifar_fastai._modules, "cifar_fastai")


def test_the_version_is_the_packages(): assert metadata.version("cifar_fastai") == cifar_fastai.__version__


def test_every_module_lists_what_it_offers_and_every_name_of_it_is_documented():
    for path in Path(cifar_fastai.__file__).parent.glob("*.py"):
        if path.stem == "__init__": continue
        module = import_module(f"cifar_fastai.{path.stem}")
        assert module.__doc__ and module.__all__, path.name
        for name in module.__all__:
            value = getattr(module, name)
            ours = getattr(value, "__module__", None) == module.__name__
            assert not ours or value.__doc__, f"{path.stem}.{name}"


ORDER = ("errors", "data", "models", "gradcam", "augment", "loaders", "callbacks", "learner", "interpret",
         "report", "recipe", "runs", "cli")     # each may import those before it, and modules beside them


def imports(name: str, everywhere: bool = False) -> set:
    "The modules that a module of ours imports (`everywhere`: within functions too), ours with a dot"
    tree = ast.parse((Path(cifar_fastai.__file__).parent / f"{name}.py").read_text())
    found = set()
    for n in ast.walk(tree) if everywhere else tree.body:
        if isinstance(n, ast.Import): found |= {name.name.split(".")[0] for name in n.names}
        if isinstance(n, ast.ImportFrom):
            found.add("." * n.level + (n.module or n.names[0].name).split(".")[0])
    return found


def test_no_module_imports_one_that_stands_above_it():
    for level, name in enumerate(ORDER):
        assert not imports(name) & {f".{above}" for above in ORDER[level + 1:]}, name
    assert ".runs" in imports("cli", everywhere=True), "the control"


def test_data_nets_and_maps_know_nothing_of_fastai():
    for name in ("data", "models", "gradcam"): assert "fastai" not in imports(name, everywhere=True)
    assert "fastai" in imports("learner")
