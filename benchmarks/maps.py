"""Which Grad-CAM map to believe: layers × methods, fused maps and smoothed targets, on trained nets.

    python -m benchmarks maps WEIGHTS ... --data DATA [--choose 200] [--top 8] [--n 500] [--json FILE]

All candidates are compared on pictures of the training set; the best are then measured on the test set,
against noise at the layer's size, a centred blob, and the candidate's own mean over all pictures, which knows
where objects stand but not this one. Insertion and deletion AUC of the predicted class (RISE, 16 steps,
blurred baseline), paired bootstrap intervals of 95 %. Also: blank maps, and peaks in the outer 6 pixels.
"""
import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cifar_fastai import GradCAM, load_data, load_weights
from cifar_fastai.errors import report_errors
from cifar_fastai.files import write_json
from cifar_fastai.gradcam.cam import METHODS, upsample
from cifar_fastai.gradcam.faithfulness import blob_map, insertion_deletion, paired_ci, random_maps

from .harness import machine

__all__ = ["candidates", "measure", "run"]

RING = 6            # pixels
PAIRS = (("layer2", "layer3", "layer4"), ("layer3", "layer4"), ("layer2", "layer4"), ("layer2", "layer3"))


class Centred(nn.Module):
    "Each logit minus the mean of the others: a smoothed target"
    def __init__(self, model): super().__init__(); self.model = model

    def forward(self, x):
        z = self.model(x)
        return z - (z.sum(1, keepdim=True) - z) / (z.shape[1] - 1)


class Fast(nn.Module):
    "The same net under bf16, for the many passes of insertion and deletion"
    def __init__(self, model): super().__init__(); self.model = model

    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16): return self.model(x).float()


def candidates(
    model: nn.Module,
    xb: Tensor,          # (N,3,H,W) normalised
    target: Tensor,      # (N,)
) -> Iterator[tuple[str, Tensor, int]]:
    "Name, signed maps (N,H,W), and the side of the layer's map, of every candidate"
    layers = [n for n in ("layer1", "layer2", "layer3", "layer4") if hasattr(model, n)]
    for method in METHODS:
        raws = _raws(model, layers, xb, target, method)
        for name, raw in raws.items(): yield f"{method} {name}", upsample(raw, xb.shape[-2:]), raw.shape[-1]
        for pair in PAIRS:
            if set(pair) <= set(layers): yield from _fused(method, {n: raws[n] for n in pair}, xb.shape[-2:])
    centred = _raws(Centred(model), [f"model.{n}" for n in layers], xb, target, "gradcam")
    for name, raw in centred.items():
        yield f"gradcam {name[6:]}, centred target", upsample(raw, xb.shape[-2:]), raw.shape[-1]
    for method in ("gradcam", "layercam"):
        plain, mirrored = (_raws(model, layers, x, target, method) for x in (xb, xb.flip(3)))
        for name, raw in plain.items():
            both = (raw + mirrored[name].flip(2)) / 2
            yield f"{method} {name}, with its mirror", upsample(both, xb.shape[-2:]), raw.shape[-1]


def _raws(model, layers, xb, target, method) -> dict[str, Tensor]:
    return GradCAM(model, layers)(xb, target, method=method, bs=64).raw


def _fused(method: str, raws: dict[str, Tensor], size) -> Iterator[tuple[str, Tensor, int]]:
    "Product and mean of several layers' maps, each without its negative part and divided by its maximum"
    maps = [upsample(raw, size).relu() for raw in raws.values()]
    maps = torch.stack([m / m.amax((1, 2), keepdim=True).clamp_min(1e-12) for m in maps])
    side = min(raw.shape[-1] for raw in raws.values())
    yield f"{method} {' × '.join(raws)}", maps.prod(0), side
    yield f"{method} mean of {', '.join(raws)}", maps.mean(0), side


def measure(
    model: nn.Module,
    xb: Tensor,
    target: Tensor,
    maps: dict[str, tuple[Tensor, int]],   # as `candidates` gives them
    mean_map: bool = True,                 # against each one's own mean, too: as much work again
) -> list[dict]:
    "A row a candidate: AUCs, and differences from each control with their intervals"
    n, size, net = len(xb), tuple(xb.shape[-2:]), Fast(model)
    area = lambda m: insertion_deletion(net, xb, m, target)
    noise = {s: area(random_maps(n, size, (s, s))) for s in {side for _, side in maps.values()}}
    blob, rows = area(blob_map(n, size)), []
    for name, (m, side) in maps.items():
        controls = {"noise": noise[side], "blob": blob}
        if mean_map:
            shown = m.relu() / m.amax((1, 2), keepdim=True).clamp_min(1e-12)
            controls["mean map"] = area(shown.mean(0).expand(n, *size))
        found, peak = area(m), m.flatten(1).argmax(1)
        y, x = peak // size[1], peak % size[1]
        inside = (y >= RING) & (y < size[0] - RING) & (x >= RING) & (x < size[1] - RING)
        row = {"map": name, "n": n, "insertion": found[0].mean().item(), "deletion": found[1].mean().item(),
               "blank": (m.amax((1, 2)) <= 0).float().mean().item(),
               "peak in the ring": 1 - inside.float().mean().item()}
        for control, areas in controls.items():
            for k, name_of in enumerate(("insertion", "deletion")):
                row[f"{name_of} - {control}"] = paired_ci(found[k], areas[k])
        rows.append(row)
    return rows


def wins(row: dict) -> int:
    "How many of its differences lie on the good side with their whole interval"
    return sum(v[1] > 0 if k.startswith("insertion") else v[2] < 0 for k, v in row.items() if " - " in k)


def score(row: dict) -> float: return row["insertion"] - row["deletion"]


def pictures(data, split: str, n: int, about, seed: int = 0) -> Tensor:
    "n pictures of a split, drawn by `seed`, normalised as the net was trained"
    x = data.x_train if split == "train" else data.x_test
    x = np.array(x[np.sort(np.random.default_rng(seed).permutation(len(x))[:n])])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (about.mean, about.std))
    xb = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return xb.contiguous(memory_format=torch.channels_last)


def predicted(model, xb: Tensor) -> Tensor:
    with torch.no_grad(): return torch.cat([model(part).argmax(1) for part in xb.split(250)])


def run(weights: str, data, choose: int, top: int, n: int) -> dict:
    "Choose on training pictures, report on the test set"
    model, about = load_weights(weights)
    model = model.float().to(memory_format=torch.channels_last)
    xb = pictures(data, "train", choose, about)
    target = predicted(model, xb)
    first = measure(model, xb, target, {k: v for k, *v in candidates(model, xb, target)}, mean_map=False)
    first.sort(key=score, reverse=True)
    names = [r["map"] for r in first[:top]]
    names += [k for k in ("gradcam layer3", "gradcam layer4") if k not in names]   # of before, and the usual
    xb = pictures(data, "test", n, about)
    target = predicted(model, xb)
    second = measure(model, xb, target, {k: v for k, *v in candidates(model, xb, target) if k in names})
    second.sort(key=score, reverse=True)
    return {"weights": Path(weights).name, "model": about.model, "training pictures": first, "test": second}


def table(found: dict) -> str:
    lines = [f"{found['weights']}: chosen on training pictures, n={found['training pictures'][0]['n']}"]
    for r in found["training pictures"][:20]: lines.append(f"    {r['map']:44}{_line(r)}")
    lines.append(f"test pictures, n={found['test'][0]['n']}")
    for r in found["test"]: lines.append(f"    {r['map']:44}{_line(r)}   {wins(r)} of 6 beyond chance")
    return "\n".join(lines)


def _line(r: dict) -> str:
    cells = [f"{r[k][0]:+.3f} ({r[k][1]:+.3f} … {r[k][2]:+.3f})" for k in r if " - " in k]
    return f"{r['blank']:6.1%}{r['peak in the ring']:5.0%}  " + "  ".join(cells)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks maps", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="weights.safetensors of a run")
    parser.add_argument("--data", required=True, help="see --data of a recipe")
    parser.add_argument("--choose", type=int, default=200, help="training pictures (200)")
    parser.add_argument("--top", type=int, default=8, help="candidates that are measured on the test set (8)")
    parser.add_argument("--n", type=int, default=500, help="test pictures (500)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    with report_errors():
        data, found = load_data(args.data), []
        for path in args.weights:
            found.append(run(path, data, args.choose, args.top, args.n))
            print(table(found[-1]), flush=True)
            if args.json:
                about = machine() | {"data": Path(data.source).name, "data_fingerprint": data.fingerprint}
                write_json(args.json, about | {"nets": found})
