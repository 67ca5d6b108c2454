"""The public names: few, lazy, and the same for people, editors and Python."""
import ast
import inspect
import os
import re
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest
import torch

import cifar_fastai
from cifar_fastai.errors import InputError

pytestmark = pytest.mark.no_rounding

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


@pytest.mark.parametrize("way_in", ["from cifar_fastai import cifar_learner", "from cifar_fastai import *",
                                    "from cifar_fastai import gradcam_of", "import cifar_fastai.explain"])
def test_every_learner_has_gradcam_whatever_is_imported(way_in):
    has = "from fastai.learner import Learner\nprint(hasattr(Learner, 'gradcam'))"
    assert said(f"{way_in}\n{has}") == ["True"]
    if way_in.endswith("explain"): assert said(f"import cifar_fastai\n{has}") == ["False"], "the control"


def test_nor_does_a_recipe():
    code = "import sys, recipes.resnet18_20ep as r; print(r.recipe.name, *{*sys.modules} & %r)"
    assert said(code % HEAVY) == ["resnet18_20ep"]


def test_star_binds_every_public_name_and_no_other():
    names = {}
    exec("from cifar_fastai import *", names)
    assert {n for n in names if n != "__builtins__"} == set(cifar_fastai.__all__)


OURS, FASTAIS = "from cifar_fastai import *", "from fastai.vision.all import *"


@pytest.fixture(scope="module", params=[(OURS, FASTAIS), (FASTAIS, OURS)], ids=["ours first", "ours last"])
def both(request):
    "The names after both stars"
    names = {}
    for line in request.param: exec(line, names)
    return names


def test_names_in_both_stars_mean_the_same_but_for_the_nets():
    ours, theirs = {}, {}
    exec(OURS, ours), exec(FASTAIS, theirs)
    common = {n for n in ours if n in theirs} - {"__builtins__"}
    assert {n for n in common if ours[n] is not theirs[n]} == {f"resnet{n}" for n in (18, 34, 50, 101)}


def test_our_learner_takes_the_resnet_of_either_star(both, learnable):
    dls = both["cifar_dataloaders"](learnable, 16, None, num_workers=0, device="cpu")
    learn = both["cifar_learner"](dls, both["resnet18"], precision="fp32")
    assert learn.model.conv1.stride == (1, 1) and learn.model.fc.out_features == 4
    by_name = both["cifar_learner"](dls, "resnet18", precision="fp32")
    assert torch.equal(learn.model.conv1.weight, by_name.model.conv1.weight)


@pytest.mark.parametrize("name", ["resnet18", "custom_resnet"])
@pytest.mark.filterwarnings("ignore")
def test_vision_learner_takes_the_nets_of_either_star(both, learnable, name):
    dls = both["cifar_dataloaders"](learnable, 16, None, num_workers=0, device="cpu")
    learn = both["vision_learner"](dls, both[name], pretrained=False)
    assert learn.model.eval()(dls.one_batch()[0]).shape == (16, 4)
    learn.freeze()
    assert len(learn.opt.param_lists) >= 2 and not next(learn.model.parameters()).requires_grad


@pytest.mark.filterwarnings("ignore")
def test_vision_learner_gets_imagenets_weights_from_our_name_too(learnable, monkeypatch):
    from fastai.vision.all import vision_learner
    from torchvision.models import ResNet18_Weights, resnet18 as torchvisions
    weights = torchvisions().state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, *args, **kwargs: weights)
    dls = cifar_fastai.cifar_dataloaders(learnable, 16, None, num_workers=0, device="cpu")
    learn = vision_learner(dls, cifar_fastai.resnet18)
    assert torch.equal(learn.model[0][0].weight, weights["conv1.weight"])
    assert cifar_fastai.resnet18(n_out=3, pretrained=True).fc.out_features == 3
    with pytest.raises(InputError, match="custom_resnet has no pretrained weights"):
        vision_learner(dls, cifar_fastai.custom_resnet)
    with pytest.raises(InputError, match="n_in=3 and norm='bn', not 1 and 'gn'"):
        cifar_fastai.resnet18(n_in=1, norm="gn", pretrained=True)


def test_every_public_name_is_there_and_documented():
    for name in cifar_fastai.__all__:
        assert getattr(getattr(cifar_fastai, name), "__doc__", None), f"{name} has no docstring"


def test_names_can_be_completed_before_they_are_imported():
    assert set(cifar_fastai.__all__) | {"cli", "policy"} <= set(dir(cifar_fastai))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(cifar_fastai, "resnet81")


def test_editors_are_told_the_same_names_as_python():
    tree, told = ast.parse(Path(cifar_fastai.__file__).with_suffix(".pyi").read_text()), set()
    for node in tree.body:
        assert node.level == 1
        for name in node.names:
            assert name.asname == name.name, f"{name.name} is not re-exported"
            told.add(name.name)
    assert told == {*cifar_fastai.__all__, "Precision", "cli"}


def test_the_version_is_the_packages(): assert metadata.version("cifar_fastai") == cifar_fastai.__version__


def test_every_room_lists_what_it_offers_and_every_name_of_it_is_documented():
    top = Path(cifar_fastai.__file__).parent
    for path in top.rglob("*.py"):
        if path.stem == "__init__": continue
        name = ".".join(("cifar_fastai", *path.relative_to(top).with_suffix("").parts))
        module = import_module(name)
        assert module.__doc__ and module.__all__, name
        for offered in module.__all__:
            value = getattr(module, offered)
            ours = getattr(value, "__module__", None) == module.__name__
            assert not ours or value.__doc__, f"{name}.{offered}"


def test_every_argument_of_a_public_function_is_given_a_value_by_some_test():
    "The names that are left were looked at: fastai's own, or given by flag or by position"
    looked_at = {("ImageData", "files_test"), ("train", "checkpoint_minutes"),
                 ("slide", "lr_diff"), ("slide", "thresh"), ("slide", "adjust_value")}
    tests = "".join(p.read_text() for p in Path(__file__).parent.rglob("*.py"))
    never = set()
    for name in cifar_fastai.__all__:
        made = getattr(cifar_fastai, name)
        if not callable(made): continue
        for p in inspect.signature(made.__init__ if inspect.isclass(made) else made).parameters.values():
            given = re.search(rf"\b{p.name}\s*=(?!=)|[\"']{p.name}[\"']\s*:", tests)
            if p.default is not p.empty and not given: never.add((name, p.name))
    assert never <= looked_at
