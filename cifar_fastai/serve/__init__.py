"""Use a trained net: predict pictures, explain them, export the net. No fastai in it.

In: a run's folder or its weights.safetensors, and pictures of any size and mode. Out: classes with their
probabilities, heat maps at the pictures' own size, an ONNX file.

Read classifier first, then pictures (files, folders and standard input), tables (what predict prints), heat
(what explain draws), export, and app (a page to try the net on).
"""
from .app import build_app, mistakes_of
from .classifier import Classifier, find_weights
from .export import export_onnx, export_torch
from .heat import explain_pictures
from .pictures import Named, find_pictures
from .tables import TABLES, prediction_rows

__all__ = ["Classifier", "Named", "TABLES", "build_app", "explain_pictures", "export_onnx", "export_torch",
           "find_pictures", "find_weights", "mistakes_of", "prediction_rows"]
