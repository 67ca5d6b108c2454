"""For people without a GPU: the net of airbench94, Muon, 10 epochs, on two cores with bf16.

After Keller Jordan's airbench94 in its form of 2025, which trains on a GPU in seconds: whitened 2×2 stem,
kernels that begin as identities, Muon on the kernels and SGD on the rest, with high rates for the biases;
each picture mirrored in every other epoch. All of it runs through the ordinary Learner and loader. Two epochs
more than there; the stem's bias trains to the end. A quarter of an hour is the aim where bf16 is fast.

CIFAR-10 as JPEG pictures, n=3: 90.05 % ± 0.13 points plain, 91.05 % ± 0.17 with six views. On two cores
without fast bf16 that takes 1,922 s where nothing else runs (seed 2; the others had company:
benchmarks/results/accuracy.jsonl, torch 2.15.0)."""
from cifar_fastai import Recipe, cli, policy
from cifar_fastai.parts import Build, Explain, Loss, OneCycle, Optimizer

recipe = Recipe(
    name     = "cpu_15min",
    model    = "airbench",
    build    = Build(whiten=5e-4),
    epochs   = 10,
    bs       = 2000,
    aug      = policy.pad_crop_flip(pad=2, flip="alternate"),
    loss     = Loss("ce", smoothing=0.2),
    opt      = Optimizer("muon", mom=0.6, wd=0.0167, bias_lr=440.0, head_lr=0.085),   # of a mean loss
    lr       = 0.24,
    schedule = OneCycle(pct_start=0.01, div=1.0, div_final=1e4),     # down to 0 from the first step
    tta      = "mirror+shift",
    explain  = Explain("layer3+layer1"),
)

if __name__ == "__main__": cli.main(recipe)
