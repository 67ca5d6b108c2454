"""Interpret a trained Learner: predictions, metrics, misclassified pictures, Grad-CAM.

In: a trained fastai `Learner`. Out: `ImageInterpretation`, a `ClassificationInterpretation` that predicts
once, with figures, tables and Grad-CAM maps; `gradcam_of` for any picture.

Read predict first (one pass over the pictures), then interpretation (numbers), gallery and
any_picture (pictures), and gradcam_callback (maps while training).
"""
from .any_picture import gradcam_of
from .gradcam_callback import GradCAMCallback
from .interpretation import ClassificationInterpretation, ImageInterpretation
from .predict import VIEWS, clean_dl, decode_pictures, inputs_of

__all__ = ["ClassificationInterpretation", "GradCAMCallback", "ImageInterpretation", "VIEWS",
           "clean_dl", "decode_pictures", "gradcam_of", "inputs_of"]
