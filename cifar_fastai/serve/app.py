"""A page to try a net on: give a picture, see its classes and the heat map; look through the run's mistakes.

    build_app(Classifier.load("runs/demo"), mistakes_of("runs/demo")).launch()      # on 127.0.0.1

Needs Gradio: pip install -e ".[app]".
"""
import csv
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..data import read_picture
from ..errors import InputError
from ..gradcam import METHODS, cam_of, default_layer, stages_of
from .classifier import Classifier
from .heat import lay_over, maps_of
from .pictures import tested_pictures

__all__ = ["build_app", "explain_one", "mistakes_of"]

PREDICTED = "the predicted class"


def explain_one(
    net: Classifier,
    picture: np.ndarray,      # (H,W,3) uint8
    layer: str,
    method: str,
    target: str,              # a class, or `PREDICTED`
    opacity: float,           # of the heat, 0…1
) -> tuple[dict[str, float], np.ndarray]:      # class → probability; (H,W,3) uint8
    "Probabilities of all classes, and the map over the picture at its own size"
    xb = net.inputs([read_picture(picture, net.size)])
    wanted = None if target == PREDICTED else net.class_number(target)
    out, raws = maps_of(cam_of(net.net, layer), xb, wanted, method)
    probs = out.logits.float().softmax(1)[0].tolist()
    return dict(zip(net.classes, probs)), lay_over(picture, raws[out.names[0]], opacity)


def mistakes_of(folder: str | Path, n: int = 60) -> list[tuple[np.ndarray, str]]:
    "The mistakes of a run with the largest loss: picture and label; none where its pictures are not at hand"
    pictures = tested_pictures(folder)
    if pictures is None: return []
    with open(Path(folder) / "predictions.csv", newline="") as file: rows = list(csv.DictReader(file))
    wrong = sorted((r for r in rows if r["true"] != r["predicted"]), key=lambda r: -float(r["loss"]))[:n]
    return [(np.array(pictures[int(r["index"])]), f"{r['predicted']} (true {r['true']})") for r in wrong]


def build_app(
    net: Classifier,
    mistakes: list[tuple[np.ndarray, str]] = (),     # picture and label, for the gallery and as examples
):                                                   # a `gradio.Blocks`: `.launch()` shows it
    "The page. Raises: InputError where Gradio is missing"
    if find_spec("gradio") is None:
        raise InputError('the app needs Gradio. Install it: pip install -e ".[app]".')
    import gradio as gr

    def show(picture, layer, method, target, opacity):
        if picture is None: return None, None
        try: return explain_one(net, read_picture(picture, None), layer, method, target, opacity)
        except InputError as error: raise gr.Error(str(error)) from error

    first = default_layer(net.net)
    layers = [first, *(name for name in stages_of(net.net) if name != first)]
    with gr.Blocks(title=f"{net.about.model}: {len(net.classes)} classes", analytics_enabled=False) as app:
        gr.Markdown(f"# {net.about.model}\nGive a picture: which of {len(net.classes)} classes, and why?")
        with gr.Tab("Predict"), gr.Row():
            with gr.Column():
                picture = gr.Image(type="numpy", image_mode="RGB", label="picture", height=280)
                layer = gr.Dropdown(layers, value=first, label="layer")
                method = gr.Dropdown(list(METHODS), value="gradcam", label="method")
                target = gr.Dropdown([PREDICTED, *net.classes], value=PREDICTED, label="map of")
                opacity = gr.Slider(0, 1, .5, step=.05, label="opacity")
            with gr.Column():
                label = gr.Label(num_top_classes=5, label="classes")
                heat = gr.Image(label="why", height=280)
            given = [picture, layer, method, target, opacity]
            for part in given: part.change(show, given, [label, heat], show_progress="hidden")
        with gr.Tab("Mistakes"):
            gallery = gr.Gallery(list(mistakes), columns=10, height=480, label="largest loss first",
                                 object_fit="contain")

            def choose(chosen: gr.SelectData): return mistakes[chosen.index][0]
            gallery.select(choose, None, picture)
            if not len(mistakes): gr.Markdown("This run has no mistakes, or its pictures are not at hand.")
    return app
