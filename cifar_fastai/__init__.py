"""A fastai recipe book for CIFAR-sized pictures: train, explain, and keep every run.

    from cifar_fastai import *
    learn = cifar_learner(cifar_dataloaders("digits", bs=64), resnet18)

Names are imported when they are first used: `import cifar_fastai` alone does not import fastai.
"""
import os
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)   # of torchvision, while it is imported
warnings.filterwarnings("ignore", "IProgress not found")         # of tqdm in a notebook without ipywidgets
__version__ = "0.1.0"

_home = {
    "augment": ["AlbumentationsTransform", "Cutout"],
    "cam_callback": ["GradCAMCallback"],
    "data": ["ImageData", "load_data"],
    "errors": ["InputError"],
    "explain": ["gradcam_of"],
    "finder": ["minimum", "peak", "slide", "steep", "valley"],
    "gradcam": ["CamOutput", "GradCAM"],
    "interpret": ["ImageInterpretation"],
    "learner": ["cifar_learner"],
    "loaders": ["cifar_block", "cifar_dataloaders"],
    "models": ["custom_resnet", "resnet18", "resnet34", "resnet50", "resnet101"],
    "policy": ["Policy"],
    "precision": ["Precision"],
    "recipe": ["Recipe"],
    "regularisers": ["L1Loss"],
    "resume": ["Checkpoint"],
    "runs": ["Run", "train"],
    "safety": ["StopOnNonFinite", "StopOnSignal"],
    "seeds": ["train_seeds"],
    "weights": ["load_weights", "save_weights"],
}
_module_of = {name: f"{__name__}.{module}" for module, names in _home.items() for name in names}
_module_of["ClassificationInterpretation"] = "fastai.vision.learner"  # works on our Learners too
_modules = ("cli", "policy")

# fastai.vision.all has a `Precision` too, a metric: ours is imported by name, not by a star
__all__ = sorted({*_module_of, "policy"} - {"Precision"})  # noqa: PLE0605


def __getattr__(name: str):
    if name in _modules: return import_module(f"{__name__}.{name}")
    if name not in _module_of: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_module_of[name]), name)
    return value


def __dir__(): return sorted({*globals(), *__all__, *_modules})


if TYPE_CHECKING:   # for editors, which do not run `__getattr__`
    from fastai.vision.learner import ClassificationInterpretation as ClassificationInterpretation

    from . import cli as cli
    from . import policy as policy
    from .augment import AlbumentationsTransform as AlbumentationsTransform
    from .augment import Cutout as Cutout
    from .cam_callback import GradCAMCallback as GradCAMCallback
    from .data import ImageData as ImageData
    from .data import load_data as load_data
    from .errors import InputError as InputError
    from .explain import gradcam_of as gradcam_of
    from .finder import minimum as minimum
    from .finder import peak as peak
    from .finder import slide as slide
    from .finder import steep as steep
    from .finder import valley as valley
    from .gradcam import CamOutput as CamOutput
    from .gradcam import GradCAM as GradCAM
    from .interpret import ImageInterpretation as ImageInterpretation
    from .learner import cifar_learner as cifar_learner
    from .loaders import cifar_block as cifar_block
    from .loaders import cifar_dataloaders as cifar_dataloaders
    from .models import custom_resnet as custom_resnet
    from .models import resnet18 as resnet18
    from .models import resnet34 as resnet34
    from .models import resnet50 as resnet50
    from .models import resnet101 as resnet101
    from .policy import Policy as Policy
    from .precision import Precision as Precision
    from .recipe import Recipe as Recipe
    from .regularisers import L1Loss as L1Loss
    from .resume import Checkpoint as Checkpoint
    from .runs import Run as Run
    from .runs import train as train
    from .safety import StopOnNonFinite as StopOnNonFinite
    from .safety import StopOnSignal as StopOnSignal
    from .seeds import train_seeds as train_seeds
    from .weights import load_weights as load_weights
    from .weights import save_weights as save_weights
