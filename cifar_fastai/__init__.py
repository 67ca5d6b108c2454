"""A fastai recipe book for CIFAR-sized pictures: train, explain, and keep every run.

    from cifar_fastai import *
    learn = cifar_learner(cifar_dataloaders("digits", bs=64), resnet18)

Names are imported when they are first used: `import cifar_fastai` alone does not import fastai.
"""
import os
import warnings

import lazy_loader

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)   # of torchvision, while it is imported
warnings.filterwarnings("ignore", "IProgress not found")         # of tqdm in a notebook without ipywidgets
__version__ = "0.1.0"
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)   # the names: __init__.pyi
for _name in ("Precision", "cli"): __all__.remove(_name)   # fastai's star has a `Precision`, a metric


def __getattr__(name: str):
    "A public name, imported when it is first asked for"
    if name == "cifar_learner": _public("gradcam_of")   # whose module gives every Learner its `gradcam`
    return _public(name)
