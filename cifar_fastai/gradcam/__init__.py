"""Grad-CAM on any torch model: where the evidence for a class lies. torch only.

In: a model, the name of a layer, a batch and a target class. Out: `CamOutput`: maps in 0…1 at the pictures'
size, the signed raw maps at the layer's, targets and logits; `Evidence`: can such maps be believed?

Read methods first (the maths), then cam (`GradCAM`), checks (what is refused), faithfulness (insertion and
deletion: whether a map shows what the net uses) and evidence (that, in one line, for the maps of one net).
"""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "cam": ["CamOutput", "GradCAM", "cam_of", "default_layer", "find_layers", "stages_of", "undisturbed"],
    "checks": ["NotFinite"],
    "evidence": ["Evidence", "affordable", "measure_maps", "usual_pairs", "warnings_of"], "faithfulness":
    ["compare_maps"], "methods": ["METHODS", "heatmap", "heatmaps", "refuse_unsigned"]})
