"""P11 and the CUDA side of P3, P4 and P7: one run under 8 minutes on any GPU.

    python -m benchmarks.gpu [--data FOLDER] [--seeds 3] [--minutes 8] [--json FILE]

Without `--data` the pictures are coloured digits, so speed is measured and accuracy is not. With a folder of
pictures it also trains `recipes.resnet18_20ep` for each seed, which is not counted in the minutes.
"""
import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F

from cifar_fastai import cifar_dataloaders, cifar_learner, policy, resnet18
from cifar_fastai.training.precision import PRECISIONS, choose_precision

from .harness import Row, alternate, clock, machine, ratio, table, until
from .pictures import coloured

BS, N, EPOCHS = 512, 50_000, 20
NO_CUDA = ("P11 and the CUDA figures were left out: torch finds no CUDA device here. "
           "Run `python -m benchmarks.gpu` where there is one.")


def run(rounds: int = 5, data=None, minutes: float = 8) -> list[Row] | str:
    "The rows of the table, or why there are none"
    if not torch.cuda.is_available(): return NO_CUDA
    from . import gradcam, step
    end = time.monotonic() + 60 * minutes - 30    # what is left at the end is the 20 epochs'
    device = torch.device("cuda")
    rows = [*step.run(rounds, "cuda", n=20), *gradcam.run(rounds, "cuda")]
    precision = choose_precision("auto", device)
    return [*rows, *training(data or coloured(N, 1000), device, precision, rounds, end)]


def training(data, device: torch.device, precision: str, rounds: int, end: float, arch=resnet18):
    "P11: epochs by turns, and 20 in one go where they end before `end` (seconds of `time.monotonic`)"
    dls = cifar_dataloaders(data, BS, policy.pad_crop_flip_cutout(), device=device)
    learn = cifar_learner(dls, arch, precision=precision, smoothing=0.0)
    with learn.no_bar(), learn.no_logging():
        contenders = {"ours": partial(train, learn, 1),
                      "resident": partial(resident, data, 1, precision, device, arch)}
        times = alternate(contenders, rounds, over=until(end, share=.5))
        epoch, fetch = median(times["ours"]), median(clock(partial(drain, dls.train)) for _ in range(3))
        fits = time.monotonic() + EPOCHS * epoch < end
        whole = f"{train(learn, EPOCHS):.1f} s" if fits else "left out, no time"
    seen, workers = len(dls.train) * BS, dls.train.fake_l.num_workers
    dls.train.close()
    note = (f"{seen / epoch:,.0f} pictures/s, resident {seen / median(times['resident']):,.0f}; the loader "
            f"alone {seen / fetch:,.0f} with {workers} workers; {EPOCHS} epochs: {whole}")
    return [Row("P11", f"epochs of ResNet-18, bs {BS}, Albumentations loader", "pictures on the device", 1.1,
                ratio(times, "ours", "resident"), at_most=True, note=note)]


def train(learn, epochs: int) -> float:
    "Seconds"
    wait(learn.dls.device)
    start = time.perf_counter()
    learn.fit_one_cycle(epochs, 0.1)
    wait(learn.dls.device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    "Until a GPU has done what it was asked for"
    if device.type == "cuda": torch.cuda.synchronize()


def drain(dl):
    for _ in dl: pass


def resident(data, epochs: int, precision: str, dev: torch.device, arch=resnet18) -> float:
    "The same training by hand, every picture and its augmentation on the device, test set too; seconds"
    x, y, xt, yt = (torch.tensor(v).to(dev) for v in (data.x_train, data.y_train, data.x_test, data.y_test))
    x, xt = x.permute(0, 3, 1, 2), xt.permute(0, 3, 1, 2)
    mean, std = (255 * torch.tensor(v, device=dev).view(1, 3, 1, 1) for v in (data.mean, data.std))
    padded, steps = F.pad(x.float(), (4,) * 4, "reflect").to(torch.uint8), len(x) // BS
    net = arch().to(dev, memory_format=torch.channels_last)
    opt = torch.optim.SGD(net.parameters(), .1, .9, weight_decay=5e-4, nesterov=True, foreach=True)
    dtype, last = PRECISIONS[precision], torch.channels_last
    cast = partial(torch.autocast, dev.type, dtype, enabled=dtype is not None)
    wait(dev)
    start = time.perf_counter()
    for _ in range(epochs):
        net.train()
        for idx in torch.randperm(len(x), device=dev)[:steps * BS].view(steps, BS):
            xb = ((augmented(padded, idx).float() - mean) / std).contiguous(memory_format=last)
            with cast(): loss = F.cross_entropy(net(xb).float(), y[idx])
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
        net.eval()
        pairs = zip(xt.split(2 * BS), yt.split(2 * BS))
        with torch.no_grad(), cast():
            right = sum((net((a - mean) / std).argmax(1) == b).sum() for a, b in pairs)
        right.item()
    wait(dev)
    return time.perf_counter() - start


def augmented(padded, idx):
    "Crop, flip and an 8×8 hole for each picture `idx` of a batch, on the device"
    n, dev, ar = len(idx), padded.device, torch.arange(32, device=padded.device)
    oy, ox = torch.randint(9, (2, n, 1), device=dev)
    x = padded[idx[:, None, None], :, (oy + ar)[:, :, None], (ox + ar)[:, None, :]].permute(0, 3, 1, 2)
    x = torch.where((torch.rand(n, device=dev) < .5).view(-1, 1, 1, 1), x.flip(3), x)
    cy, cx = torch.randint(25, (2, n, 1), device=dev)
    hole = _between(ar, cy)[:, :, None] & _between(ar, cx)[:, None, :]
    return x.masked_fill(hole[:, None], 120)


def _between(ar, start): return (ar >= start) & (ar < start + 8)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", help="folder of pictures, or archive: trains the recipe too")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from cifar_fastai import load_data
    from cifar_fastai.errors import report_errors
    from cifar_fastai.files import write_json
    with report_errors(): data = load_data(args.data) if args.data else None
    rows = run(5, data, args.minutes)
    if isinstance(rows, str): raise SystemExit(rows)
    print(table(rows), flush=True)
    found = {"machine": machine(), "rows": [r.as_dict() for r in rows]}
    if args.json: write_json(args.json, found)           # before the seeds, which take long
    if args.data: found["resnet18_20ep"] = _seeds(data, args.seeds)
    if args.json: write_json(args.json, found)


def _seeds(data, n: int) -> dict:
    from cifar_fastai import train_seeds
    from recipes.resnet18_20ep import recipe
    with tempfile.TemporaryDirectory() as tmp:
        return train_seeds(recipe, data, list(range(n)), Path(tmp) / "runs")


if __name__ == "__main__": main()
