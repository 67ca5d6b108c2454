"""Where the time of an epoch goes: loader, batch transforms, forward, backward, optimiser, callbacks.

    python -m benchmarks.profile_epoch [--device cpu] [--arch resnet18] [--bs 128] [--batches 8] [--clock cpu]

Prints a table of milliseconds a batch and shares. On CUDA every part is waited for, so that parts which
overlap in a run add up to more here.
"""
import argparse
import warnings
from collections import defaultdict
from contextlib import contextmanager

from .harness import now


class Clock:
    "Seconds by part; a part inside another is taken off the outer one"
    def __init__(self, device): self.device, self.spent, self.stack = device, defaultdict(float), []

    def _now(self) -> float:
        import torch
        if self.device.type == "cuda": torch.cuda.synchronize()
        return now()

    @contextmanager
    def part(self, name: str):
        now = self._now()
        if self.stack: self.spent[self.stack[-1][0]] += now - self.stack[-1][1]
        self.stack.append([name, now])
        try: yield
        finally:
            now = self._now()
            name, since = self.stack.pop()
            self.spent[name] += now - since
            if self.stack: self.stack[-1][1] = now

    def around(self, function, name: str):
        "`function`, timed as `name`"
        def timed(*args, **kwargs):
            with self.part(name): return function(*args, **kwargs)
        return timed


def profile(device: str, arch: str, bs: int, batches: int) -> tuple[dict, int]:
    "Seconds by part of one epoch of `batches` batches and as many of validation, after a warm one"
    import torch

    from cifar_fastai import cifar_dataloaders, cifar_learner

    from .pictures import coloured
    data = coloured(bs * batches, bs * batches)
    dls = cifar_dataloaders(data, bs, device=device, val_bs=bs, num_workers=0)
    learn = cifar_learner(dls, arch)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.01)
        clock = Clock(torch.device(device))
        learn.opt.step = clock.around(learn.opt.step, "optimiser step")
        learn.opt.zero_grad = clock.around(learn.opt.zero_grad, "optimiser step")
        learn._backward = clock.around(learn._backward, "backward")
        learn.loss_func = clock.around(learn.loss_func, "loss")
        learn.model.forward = clock.around(learn.model.forward, "forward")
        for dl in dls.loaders:
            dl.make_batch = clock.around(dl.make_batch, "loader: augment and copy")
            dl.after_batch = _Timed(dl.after_batch, clock)
        with clock.part("Learner and callbacks"): learn.fit(1, 0.01)
    return dict(clock.spent), 2 * batches


class _Timed:
    def __init__(self, pipeline, clock): self.pipeline, self.clock = pipeline, clock
    def __getattr__(self, name): return getattr(self.pipeline, name)
    def __call__(self, batch):
        with self.clock.part("batch transforms"): return self.pipeline(batch)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--bs", type=int, default=128)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a busy machine")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    import torch

    from cifar_fastai.errors import report_errors

    from .harness import machine, timed_by
    with report_errors(), timed_by(args.clock):
        spent, n = profile(args.device, args.arch, args.bs, args.batches)
    total = sum(spent.values())
    print(f"{'part':28} {'ms a batch':>10} {'share':>7}")
    for name, seconds in sorted(spent.items(), key=lambda kv: -kv[1]):
        print(f"{name:28} {1e3 * seconds / n:>10.2f} {seconds / total:>7.1%}")
    about = machine()
    where = about["gpu"] if args.device != "cpu" else about["cpu"]
    print(f"{args.arch}, batches of {args.bs}, training and validation, {where}, "
          f"{torch.get_num_threads()} threads, {args.clock} time, torch {about['versions']['torch']}")


if __name__ == "__main__": main()
