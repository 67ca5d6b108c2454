"""Grad-CAM on any torch model: where the evidence for a class lies. torch only.

In: a model, the name of a layer, a batch and a target class. Out: `CamOutput`: maps in 0…1 at the pictures'
size, the signed raw maps at the layer's, targets and logits.

Read cam first (`GradCAM` and its methods), then checks (what is refused, and how the model stays as it was),
then faithfulness (whether a map shows what the net uses).
"""
from .cam import METHODS, CamOutput, GradCAM, default_layer, find_layers, heatmap
from .checks import NotFinite
from .faithfulness import compare_maps

__all__ = ["CamOutput", "GradCAM", "METHODS", "NotFinite", "compare_maps", "default_layer", "find_layers",
           "heatmap"]
