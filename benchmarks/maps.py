"""Which Grad-CAM map to believe: layers × methods, fused maps and other targets, on trained nets.

    python -m benchmarks maps WEIGHTS ... --data DATA [--choose 200] [--top 6] [--n 500] [--refs 0] [--json F]

All candidates are compared on pictures of the training set; the best, today's default and the defaults of
pytorch-grad-cam and torch-cam are then measured on the test set, against noise at the map's size, a centred
blob, and the candidate's own mean over all pictures, which knows where objects stand but not this one; and
against the other libraries' maps. Insertion and deletion AUC of the predicted class (RISE, 16 steps, blurred
baseline, stretches that move by less than .02 taken for straight), paired bootstrap intervals of 95 %. Also:
blank maps, peaks in the outer 6 pixels, and the pointing game: a picture pasted into a quarter of a canvas.
`--refs N` measures what costs hundreds of passes a picture, too: RISE, occlusion and integrated gradients.
"""
import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_fastai import GradCAM, load_data, load_weights
from cifar_fastai.errors import InputError, report_errors
from cifar_fastai.files import read_json, sha256_of, write_json
from cifar_fastai.gradcam import default_layer, stages_of
from cifar_fastai.gradcam.faithfulness import blob_map, insertion_deletion, paired_ci, random_maps
from cifar_fastai.gradcam.methods import DETAIL, METHODS, upsample, with_detail

from .harness import machine

__all__ = ["candidates", "canvases", "in_quarter", "measure", "run"]

RING = 6            # pixels


class Centred(nn.Module):
    "Each logit minus the mean of the others: a smoothed target"
    def __init__(self, model): super().__init__(); self.model = model

    def forward(self, x):
        z = self.model(x)
        return z - (z.sum(1, keepdim=True) - z) / (z.shape[1] - 1)


class Odds(Centred):
    "The logarithm of each class's odds: its logit minus the others' log-sum-exp"
    def forward(self, x):
        z = self.model(x)
        own = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
        return z - z[:, None].expand(-1, z.shape[1], -1).masked_fill(own, -torch.inf).logsumexp(2)


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
    stages, size = stages_of(model), xb.shape[-2:]
    fused = [tuple(stages[-3:]), tuple(stages[-2:]), (stages[-3], stages[-1])]
    for method in METHODS:
        raws = _raws(model, stages, xb, target, method)
        for name, raw in raws.items(): yield f"{method} {name}", upsample(raw, size), raw.shape[-1]
        for names in fused: yield from _fused(method, {n: raws[n] for n in names}, size)
    last, before, detail = stages[-1], stages[-2], stages[-3]
    specs = [f"{last}+{detail}", f"{last}+{before}", f"{last}+{detail}+{before}", last]
    for name, net, prefix in (("", model, ""), (", centred", Centred(model), "model."),
                              (", log-odds", Odds(model), "model.")):
        inside = ["+".join(prefix + part for part in spec.split("+")) for spec in specs]
        plain, mirrored = (_raws(net, inside, x, target, "gradcam") for x in (xb, xb.flip(3)))
        for spec, raw, other in zip(specs, plain.values(), mirrored.values()):
            if name or spec != last: yield f"gradcam {spec}{name}", upsample(raw, size), raw.shape[-1]
            both = (raw + other.flip(2)) / 2
            yield f"gradcam {spec}{name}, with its mirror", upsample(both, size), raw.shape[-1]


def _raws(model, layers, xb, target, method) -> dict[str, Tensor]:
    return GradCAM(model, layers)(xb, target, method=method, bs=64).raw_by_layer


def _fused(method: str, raws: dict[str, Tensor], size) -> Iterator[tuple[str, Tensor, int]]:
    "Product, mean and (of methods with a sign) sum of several layers' maps"
    maps = [upsample(raw, size).relu() for raw in raws.values()]
    maps = torch.stack([m / m.amax((1, 2), keepdim=True).clamp_min(1e-12) for m in maps])
    side = min(raw.shape[-1] for raw in raws.values())
    yield f"{method} {' × '.join(raws)}", maps.prod(0), side
    yield f"{method} mean of {', '.join(raws)}", maps.mean(0), side
    if method != "hirescam": return
    total = sum(upsample(raw, size) * raw[0].numel() for raw in raws.values())  # each sums to about the logit
    yield f"{method} signed sum of {', '.join(raws)}", total, side


def details(model: nn.Module, xb: Tensor, target: Tensor) -> Iterator[tuple[str, Tensor, int]]:
    "The default with other weights of its detail"
    first, *finer = default_layer(model).split("+")
    raws = _raws(model, [first, *finer], xb, target, "gradcam")
    fine = _raws(model, finer, xb, target, "layercam")
    for weight in (0, .1, .2, .3, .5, .7, 1.):
        scaled = raws[first] + 0
        both = with_detail(scaled, *fine.values())
        coarse = upsample(scaled, both.shape[1:])
        both = coarse + weight / DETAIL * (both - coarse)
        yield f"weight {weight}", upsample(both, xb.shape[-2:]), both.shape[-1]


def rivals(model: nn.Module, xb: Tensor, target: Tensor) -> dict[str, Tensor]:
    "What the other libraries show by default: (N,H,W) in 0…1"
    from pytorch_grad_cam import GradCAM as TheirGradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchcam.methods import LayerCAM
    last = stages_of(model)[-1]
    with TheirGradCAM(model, [getattr(model, last)]) as cam:
        found = [cam(part, [ClassifierOutputTarget(int(t)) for t in of])
                 for part, of in zip(xb.split(64), target.split(64))]
    maps = {"pytorch-grad-cam: GradCAM": torch.from_numpy(np.concatenate(found))}
    with LayerCAM(model, input_shape=tuple(xb.shape[1:])) as cam:        # finds its layer itself
        found = []
        for part, of in zip(xb.split(64), target.split(64)):
            scores = model(part.clone().requires_grad_())
            found.append(cam(of.tolist(), scores)[0].detach())
    maps["torch-cam: LayerCAM"] = upsample(torch.cat(found), xb.shape[-2:])
    model.zero_grad()
    return maps


def references(model: nn.Module, xb: Tensor, target: Tensor) -> Iterator[tuple[str, Tensor, int]]:
    "What costs many passes a picture: captum's occlusion and integrated gradients, and RISE"
    from captum.attr import IntegratedGradients, Occlusion
    net, size = Fast(model), xb.shape[-2:]
    parts = list(zip(xb.split(50), target.split(50)))
    with torch.no_grad():
        found = [Occlusion(net).attribute(x, (3, 8, 8), (3, 4, 4), 0, t, perturbations_per_eval=4).sum(1)
                 for x, t in parts]
    yield "occlusion, 8×8 by 4 (captum)", torch.cat(found), 8
    found = [IntegratedGradients(model).attribute(x, target=t, n_steps=32, internal_batch_size=64).sum(1)
             for x, t in parts]
    yield "integrated gradients, 32 steps (captum)", torch.cat(found).detach().float(), 32
    rng, total = torch.Generator().manual_seed(0), torch.zeros(len(xb), *size)
    with torch.no_grad():
        for _ in range(300):              # Petsiuk et al. 2018: masks of 7×7, half of it open
            grid = (torch.rand(1, 1, 8, 8, generator=rng) < .5).float()
            shift = torch.randint(0, 5, (2,), generator=rng).tolist()
            mask = F.interpolate(grid, size=(size[0] + 4, size[1] + 4), mode="bilinear")
            mask = mask[..., shift[0]:shift[0] + size[0], shift[1]:shift[1] + size[1]]
            p = torch.cat([net(x * mask).softmax(1).gather(1, t[:, None]) for x, t in parts])
            total += p[:, :, None] * mask[0]
    yield "RISE, 300 masks", total, 8


def measure(
    model: nn.Module,
    xb: Tensor,
    target: Tensor,
    maps: dict[str, tuple[Tensor, int]],   # as `candidates` gives them
    mean_map: bool = True,                 # against each one's own mean, too: as much work again
    others: dict[str, Tensor] | None = None,      # further controls: (N,H,W)
) -> list[dict]:
    "A row a candidate: AUCs, and differences from each control with their intervals"
    n, size, net = len(xb), tuple(xb.shape[-2:]), Fast(model)
    area = lambda m: insertion_deletion(net, xb, m, target, tol=.02)
    noise = {s: area(random_maps(n, size, (s, s))) for s in {side for _, side in maps.values()}}
    blob, rows = area(blob_map(n, size)), []
    known = {name: area(m) for name, m in (others or {}).items()}
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
        for control, areas in (controls | {k: v for k, v in known.items() if k != name}).items():
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
    return normalised(x, about)


def normalised(x: np.ndarray, about) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (about.mean, about.std))
    xb = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return xb.contiguous(memory_format=torch.channels_last)


def canvases(
    x: np.ndarray,       # (N,H,W,3) uint8 pictures; H and W are multiples of 8
    y: np.ndarray,       # (N,) their classes
    n: int,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the pointing game (Zhang et al. 2018): n canvases twice as large, each the texture of a picture
    (its pieces of 8×8, shuffled) with a picture of another class in one quarter; its class; its quarter"""
    rng, (h, w) = np.random.default_rng(seed), x.shape[1:3]
    made, classes = np.empty((n, 2 * h, 2 * w, 3), np.uint8), np.empty(n, int)
    quarters = rng.integers(0, 4, n)
    for k in range(n):
        i = rng.integers(len(x))
        j = rng.choice(np.flatnonzero(y != y[i]))
        pieces = x[j].reshape(h // 8, 8, w // 8, 8, 3).swapaxes(1, 2).reshape(-1, 8, 8, 3)
        grid = pieces[rng.integers(0, len(pieces), (h // 4, w // 4))]
        made[k] = grid.swapaxes(1, 2).reshape(2 * h, 2 * w, 3)
        top, left = quarters[k] // 2 * h, quarters[k] % 2 * w
        made[k, top:top + h, left:left + w] = x[i]
        classes[k] = y[i]
    return made, classes, quarters


def in_quarter(
    maps: Tensor,        # (N,2h,2w) of canvases
    quarters: Tensor,    # (N,) of the pasted pictures, 0…3
) -> tuple[float, float]:
    "How often the hottest place lies in the right quarter, and the share of the heat there: by chance .25"
    maps, (high, wide) = maps.relu(), maps.shape[1:]
    heat = maps.view(-1, 2, high // 2, 2, wide // 2).sum((2, 4)).flatten(1)
    peak = maps.flatten(1).argmax(1)
    at = peak // wide // (high // 2) * 2 + peak % wide // (wide // 2)
    share = heat.gather(1, quarters[:, None])[:, 0] / heat.sum(1).clamp_min(1e-12)
    return (at == quarters).float().mean().item(), share.mean().item()


def pointing(model: nn.Module, data, about, n: int) -> list[dict]:
    "How often the hottest place lies in the quarter of the pasted picture, and the share of the heat there"
    made, classes, quarters = canvases(data.x_test, np.asarray(data.y_test), n)
    xb = normalised(made, about)
    target, true = torch.from_numpy(classes), torch.from_numpy(quarters)
    found = []
    for method in METHODS:
        layers = [*stages_of(model), *([default_layer(model)] if method == "gradcam" else [])]
        for name, raw in _raws(model, layers, xb, target, method).items():
            hit, share = in_quarter(upsample(raw, xb.shape[-2:]), true)
            found.append({"map": f"{method} {name}", "n": n, "share": share, "hit": hit})
    return sorted(found, key=lambda r: -r["hit"])


def predicted(model, xb: Tensor) -> Tensor:
    with torch.no_grad(): return torch.cat([model(part).argmax(1) for part in xb.split(250)])


def run(weights: str, data, choose: int, top: int, n: int, refs: int = 0) -> dict:
    "Choose on training pictures, report on the test set"
    model, about = load_weights(weights)
    model = model.float().to(memory_format=torch.channels_last)
    xb = pictures(data, "train", choose, about)
    target = predicted(model, xb)
    first = measure(model, xb, target, {k: v for k, *v in candidates(model, xb, target)}, mean_map=False)
    first.sort(key=score, reverse=True)
    weighted = measure(model, xb, target, {k: v for k, *v in details(model, xb, target)}, mean_map=False)
    stages = stages_of(model)
    names = [r["map"] for r in first[:top]]
    names += [f"gradcam {k}" for k in (default_layer(model), *stages[-2:])]
    xb = pictures(data, "test", n, about)
    target = predicted(model, xb)
    theirs = rivals(model, xb, target)
    chosen = {k: v for k, *v in candidates(model, xb, target) if k in names}
    last = _raws(model, stages[-1], xb[:1], target[:1], "gradcam")[stages[-1]]
    chosen |= {k: (m, last.shape[-1]) for k, m in theirs.items()}
    second = measure(model, xb, target, chosen, others=theirs)
    second.sort(key=score, reverse=True)
    found = {"weights": "/".join(Path(weights).parts[-2:]), "sha256": sha256_of(Path(weights)),
             "model": about.model, "training pictures": first,
             "weights of the detail": weighted, "test": second,
             "pointing": pointing(model, data, about, min(n, 300))}
    if refs:
        xb, target = xb[:refs], target[:refs]
        maps = {k: v for k, *v in references(model, xb, target)}
        maps |= {k: (m[:refs], side) for k, (m, side) in chosen.items() if k in names[-3:]}
        found["references"] = measure(model, xb, target, maps)
    return found


def table(found: dict) -> str:
    lines, n = [f"{found['weights']} ({found['model']})"], found["training pictures"][0]["n"]
    parts = {f"training pictures, n={n}": found["training pictures"][:20],
             f"the detail's weight, n={n}": found["weights of the detail"],
             f"test, n={found['test'][0]['n']}": found["test"],
             "costly references": found.get("references", [])}
    for part, rows in parts.items():
        if not rows: continue
        lines += ["", part, f"    {'':52}  ins.  del. blank ring  insertion and deletion minus "
                  + ", ".join(k[12:] for k in rows[0] if k.startswith("insertion - "))]
        lines += [f"    {r['map']:52}{_line(r)}" for r in rows]
    lines += ["", f"pointing game, n={found['pointing'][0]['n']}: hits and share of the heat (chance: 25 %)"]
    lines += [f"    {r['map']:52}{r['hit']:6.1%} {r['share']:6.1%}" for r in found["pointing"]]
    return "\n".join(lines)


def _line(r: dict) -> str:
    cells = [f"{r[k][0]:+.3f} ({r[k][1]:+.3f} … {r[k][2]:+.3f})" for k in r if " - " in k]
    won = f"   {wins(r)} of {len(cells)} beyond chance"
    return (f" {r['insertion']:.3f} {r['deletion']:.3f}{r['blank']:6.1%}{r['peak in the ring']:5.0%}  "
            + "  ".join(cells) + won)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks maps", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="weights.safetensors of a run")
    parser.add_argument("--data", required=True, help="see --data of a recipe")
    parser.add_argument("--choose", type=int, default=200, help="training pictures (200)")
    parser.add_argument("--top", type=int, default=6, help="candidates that are measured on the test set (6)")
    parser.add_argument("--n", type=int, default=500, help="test pictures (500)")
    parser.add_argument("--refs", type=int, default=0, help="test pictures for the references (0: none)")
    parser.add_argument("--json", type=Path, help="keeps the nets that are not measured this time")
    args = parser.parse_args(argv)
    with report_errors():
        data = load_data(args.data)
        about = {"data": Path(data.source).name, "data_fingerprint": data.fingerprint}
        for path in args.weights:
            found = run(path, data, args.choose, args.top, args.n, args.refs) | {"machine": machine()}
            print(table(found), flush=True)
            if not args.json: continue
            write_json(args.json, about | {"nets": [*others_in(args.json, about, found), found]})


def others_in(path: Path, about: dict, found: dict) -> list[dict]:
    "The nets that a file has beside `found`. Raises: InputError where it tells of other data"
    if not path.exists(): return []
    kept = read_json(path)
    if {k: kept.get(k) for k in about} != about:
        raise InputError(f"{path} was measured on other data. Name another file, or remove it.")
    same = found["sha256"], found["weights"]              # files of before have the name alone
    return [net for net in kept["nets"] if net.get("sha256", net["weights"]) not in same]
