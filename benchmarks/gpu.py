"""P11 and the CUDA side of P3, P4 and P7: one run under 8 minutes on any GPU.

    python -m benchmarks.gpu [--data FOLDER] [--seeds 3] [--json FILE]

Without `--data` the pictures are coloured digits, so speed is measured and accuracy is not. With a folder of pictures it also trains
`recipes.resnet18_20ep` for each seed.
"""
import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F

from cifar_fastai import cifar_dataloaders, cifar_learner, policy, resnet18
from cifar_fastai.precision import PRECISIONS, choose_precision

from .harness import Row, alternate, machine, ratio, table
from .pictures import coloured

BS, N = 512, 50_000
NO_CUDA = "P11 and the CUDA figures were left out: torch finds no CUDA device here. Run `python -m benchmarks.gpu` where there is one."


def run(rounds: int = 5, data=None, epochs: int = 3) -> list[Row] | str:
    "The rows of the table, or why there are none"
    if not torch.cuda.is_available(): return NO_CUDA
    from . import gradcam, step
    device, data = torch.device("cuda"), data or coloured(N, 1000)
    precision = choose_precision("auto", device)
    rows = [*step.run(rounds, "cuda", n=20), *gradcam.run(rounds, "cuda")]
    for row in rows: row.work += ", CUDA"
    dls = cifar_dataloaders(data, BS, policy.pad_crop_flip_cutout(), device=device)
    learn = cifar_learner(dls, resnet18, precision=precision)
    with learn.no_bar(), learn.no_logging():
        times = alternate({"ours": lambda: _train(learn, epochs), "on the GPU": lambda: resident(data, epochs, precision, device)},
                          max(3, rounds - 2))
    speed = len(dls.train) * BS * epochs / median(times["ours"])
    loader = len(dls.train) * BS / median(alternate({"loader": lambda: _drain(dls.train)}, 3)["loader"])
    dls.train.close()
    rows.append(Row("P11", f"{epochs} epochs of ResNet-18, bs {BS}, Albumentations loader", "pictures that lie on the GPU", 1.1,
                    ratio(times, "ours", "on the GPU"), at_most=True,
                    note=f"{speed:,.0f} pictures/s; the loader alone {loader:,.0f} with {dls.train.fake_l.num_workers} workers"))
    return rows


def _train(learn, epochs: int) -> float:
    wait(learn.dls.device)
    start = time.perf_counter()
    learn.fit_one_cycle(epochs, 0.1)
    wait(learn.dls.device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    "Until a GPU has done what it was asked for"
    if device.type == "cuda": torch.cuda.synchronize()


def _drain(dl):
    for _ in dl: pass


def resident(data, epochs: int, precision: str, dev: torch.device, arch=resnet18) -> float:
    "The same training by hand with every picture and its augmentation on the device, test set included; seconds"
    dtype = PRECISIONS[precision]
    x, y = torch.tensor(data.x_train).permute(0, 3, 1, 2).to(dev), torch.tensor(data.y_train).to(dev)
    xt, yt = torch.tensor(data.x_test).permute(0, 3, 1, 2).to(dev), torch.tensor(data.y_test).to(dev)
    mean, std = (255 * torch.tensor(v, device=dev).view(1, 3, 1, 1) for v in (data.mean, data.std))
    padded, steps, ar = F.pad(x.float(), (4,) * 4, "reflect").to(torch.uint8), len(x) // BS, torch.arange(32, device=dev)
    net = arch().to(dev, memory_format=torch.channels_last)
    opt = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9, weight_decay=5e-4, nesterov=True, foreach=True)
    wait(dev)
    start = time.perf_counter()
    for _ in range(epochs):
        net.train()
        order = torch.randperm(len(x), device=dev)
        for idx in order[:steps * BS].view(steps, BS):
            xb = ((_augmented(padded, idx, ar).float() - mean) / std).contiguous(memory_format=torch.channels_last)
            with torch.autocast(dev.type, dtype, enabled=dtype is not None): loss = F.cross_entropy(net(xb).float(), y[idx])
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
        net.eval()
        with torch.no_grad(), torch.autocast(dev.type, dtype, enabled=dtype is not None):
            right = sum((net((a.float() - mean) / std).argmax(1) == b).sum() for a, b in zip(xt.split(2 * BS), yt.split(2 * BS)))
        right.item()
    wait(dev)
    return time.perf_counter() - start


def _augmented(padded, idx, ar):
    "Crop, flip and an 8×8 hole for each picture of a batch, on the GPU"
    n, dev = len(idx), padded.device
    oy, ox = torch.randint(9, (2, n), device=dev)
    x = padded[idx[:, None, None], :, (oy[:, None] + ar)[:, :, None], (ox[:, None] + ar)[:, None, :]].permute(0, 3, 1, 2)
    x = torch.where((torch.rand(n, device=dev) < .5).view(-1, 1, 1, 1), x.flip(3), x)
    cy, cx = torch.randint(25, (2, n), device=dev)
    hole = ((ar >= cy[:, None]) & (ar < cy[:, None] + 8))[:, :, None] & ((ar >= cx[:, None]) & (ar < cx[:, None] + 8))[:, None, :]
    return x.masked_fill(hole[:, None], 120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder train/<class>/*, test/<class>/* or archive: also trains the recipe on it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from cifar_fastai import load_data
    data = load_data(args.data) if args.data else None
    rows = run(5, data)
    if isinstance(rows, str): raise SystemExit(rows)
    print(table(rows), flush=True)
    found = {"machine": machine(), "rows": [r.as_dict() for r in rows]}
    if args.data: found["resnet18_20ep"] = _seeds(data, args.seeds)
    if args.json: args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _seeds(data, n: int) -> dict:
    from cifar_fastai import train_seeds
    from recipes.resnet18_20ep import recipe
    with tempfile.TemporaryDirectory() as tmp: return train_seeds(recipe, data, list(range(n)), Path(tmp) / "runs")


if __name__ == "__main__": main()
