"""Use a trained net: predict pictures, explain them, export the net. No fastai in it.

In: a run's folder or its weights.safetensors, and pictures of any size and mode. Out: classes with their
probabilities, heat maps at the pictures' own size, an ONNX file.

Read classifier first, then pictures (files, folders and standard input), tables (what predict prints), heat
(what explain draws), export, and app (a page to try the net on).
"""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={   # pictures need no torch
    "app": ["build_app", "mistakes_of"], "classifier": ["Classifier"],
    "export": ["export_onnx", "export_torch"], "heat": ["explain_pictures"],
    "pictures": ["find_pictures", "tested_pictures"], "tables": ["TABLES", "prediction_rows"]})
