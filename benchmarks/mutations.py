"""Does the Grad-CAM suite notice a wrong Grad-CAM? Break one place of the source and see it turn red.

    python -m benchmarks.mutations                # all of them, less than a minute each
    python -m benchmarks.mutations relu clone     # those whose name has one of these words

Each change is made to a copy of the package in a temporary folder. Ends with status 1 where a change
survives, where its text is no longer in the source, or where the unchanged copy is not green.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["gradcam/test_cam_reference.py", "gradcam/test_cam.py", "gradcam/test_faithfulness.py"]
CAM, CHECKS, AREAS = "gradcam/cam.py", "gradcam/checks.py", "gradcam/faithfulness.py"
MEAN, SUM = "return g.mean(HW, keepdim=True)", "* A).sum(1)"
GATHER = "return target, logits.gather(1, target[:, None])"
OWN_MAX = "return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)"

MUTATIONS = [    # what goes wrong, in which file, the text there, what stands there instead
    ("sum over pixels for mean", CAM, MEAN, MEAN.replace("mean", "sum")),
    ("ReLU on the gradient", CAM, MEAN, MEAN.replace("g.", "g.relu().")),
    ("softmax for logits", CHECKS, GATHER, GATHER.replace("logits.", "logits.softmax(1).")),
    ("log-softmax for logits", CHECKS, GATHER, GATHER.replace("logits.", "logits.log_softmax(1).")),
    ("no eval mode", CAM, "m.training = False ", "pass "),
    ("no clone handed on", CAM, "return kept[name].clone()", "return kept[name]"),
    ("no clone kept", CAM, "out.detach().clone().requires_grad_()", "out.detach().requires_grad_()"),
    ("target off by one", CHECKS, GATHER, GATHER.replace("[:, None]", "[:, None].add(1) % logits.shape[1]")),
    ("align_corners", CAM, "align_corners=False)[:, 0]", "align_corners=True)[:, 0]"),
    ("min-max for max", CAM, OWN_MAX, "maps = maps - maps.amin((1, 2), keepdim=True); " + OWN_MAX),
    ("the batch's maximum for its own", CAM, "maps.amax((1, 2), keepdim=True)", "maps.amax()"),
    ("no guard for an empty map", CAM, ".clamp_min(torch.finfo(maps.dtype).tiny)", ""),
    ("a fixed epsilon for a faint map", CAM, ".clamp_min(torch.finfo(maps.dtype).tiny)", ".add(1e-7)"),
    ("swapped axes", CAM, "F.interpolate(raw[:, None]", "F.interpolate(raw.mT[:, None]"),
    ("swapped size", CAM, "size=tuple(size)", "size=tuple(size)[::-1]"),
    ("mirrored map", CAM, SUM, SUM + ".flip(2)"),
    ("bicubic for bilinear", CAM, 'mode="bilinear"', 'mode="bicubic"'),
    ("no ReLU for display", CAM, "upsample(raw.relu(), size)", "upsample(raw, size)"),
    ("ReLU before the channel sum", CAM, SUM, "* A).relu().sum(1)"),
    ("raw without its sign", CAM, SUM, SUM + ".relu()"),
    ("absolute value for ReLU", CAM, "upsample(raw.relu(), size)", "upsample(raw.abs(), size)"),
    ("mean over the batch for sum", CAM, "chosen.sum()", "chosen.mean()"),
    ("LayerCAM without ReLU", CAM, "return g.relu()\n", "return g\n"),
    ("++ with 1 for 2", CAM, "below = 2 + g", "below = 1 + g"),
    ("++ without ReLU", CAM, "torch.where((g > 0) & (below", "torch.where((g != 0) & (below"),
    ("++ as its squares", CAM, "below = 2 + g * A.sum(HW, keepdim=True)",
     "below = (2 * g**2 + g**3 * A.sum(HW, keepdim=True)) / g**2"),
    ("XGradCAM without its guard", CAM, "torch.where(total == 0, 0, (g * A).sum(HW, keepdim=True) / total)",
     "(g * A).sum(HW, keepdim=True) / total"),
    ("graph not cut", CAM, "p.requires_grad_(False)", "pass"),
    ("eval mode left on", CAM, "m.training = True", "pass"),
    ("weights left frozen", CAM, "p.requires_grad_(True)", "pass"),
    ("hooks left behind", CAM, "stack.callback(m.register_forward_hook(hook(name)).remove)",
     "m.register_forward_hook(hook(name))"),
    ("generator not put back", CAM, "with fork, cast, torch.enable_grad()", "with cast, torch.enable_grad()"),
    ("autocast left on", CAM, "torch.autocast(device.type, enabled=False)", "nullcontext()"),
    ("gradients off under no_grad", CAM, "with fork, cast, torch.enable_grad()", "with fork, cast"),
    ("a body under no_grad", CAM, "        @torch.enable_grad() ", "        #"),
    ("targets of the first chunk for all", CAM, "else target[i:i + bs]", "else target[:len(xb[i:i + bs])]"),
    ("least likely class for the most", CHECKS, "logits.detach().argmax(1)", "logits.detach().argmin(1)"),
    ("y not used", CHECKS, 'name, target = "y", y', "return None"),
    ("negative classes let through", CHECKS, "(target < 0) | (target > last)", "target > last"),
    ("infinite logits let through", CAM, "if not chosen.isfinite().all()", "if False"),
    ("a second run let through", CAM, "if name in kept: raise", "if False: raise"),
    ("areas in the wrong order", AREAS, "descending=True", "descending=False"),
    ("insertion for deletion", AREAS, "for ps in (inserted, deleted)", "for ps in (deleted, inserted)"),
    ("areas over one step too many", AREAS, "dim=0) / steps", "dim=0) / (steps + 1)"),
    ("difference the wrong way round", AREAS, "d = (a - b)", "d = (b - a)"),
]


def copy(where: Path):
    "The package and its Grad-CAM tests, without compiled files: a change may keep a file's size and second"
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cifar_fastai", where / "cifar_fastai", ignore=no_cache)
    (where / "tests" / "gradcam").mkdir(parents=True)
    for name in TESTS: shutil.copy(ROOT / "tests" / name, where / "tests" / name)


def red_tests(
    where: Path,         # a copy
    most: int = 3,       # stop after this many
) -> list[str]:
    "Names of the tests that fail there. Raises `SystemExit` where they do not run or run on another copy"
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(where)}
    def python(*args):
        return subprocess.run([sys.executable, *args], cwd=where, env=env, capture_output=True, text=True)
    found = python("-c", "import cifar_fastai; print(cifar_fastai.__file__)")
    if not found.stdout.startswith(str(where)): raise SystemExit(f"not the copy: {found}")
    run = python("-m", "pytest", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", f"--maxfail={most}",
                 *(f"tests/{t}" for t in TESTS))
    red = re.findall(r"^FAILED [^:]+::(.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
    if run.returncode not in (0, 1) or bool(red) != bool(run.returncode):
        raise SystemExit(f"the tests do not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return red


def mutate(where: Path, file: str, old: str, new: str) -> list[str]:
    "The tests that turn red with `old` replaced by `new`; the file is put back"
    path = where / "cifar_fastai" / file
    text = path.read_text()
    if text.count(old) != 1: raise SystemExit(f"{file} has {old!r} {text.count(old)} times. Mend the list.")
    path.write_text(text.replace(old, new))
    try: return red_tests(where)
    finally: path.write_text(text)


def main(words: list[str]) -> int:
    "Print a table of changes and the tests that saw them; 1 where one survived"
    chosen = [m for m in MUTATIONS if not words or any(w.lower() in m[0].lower() for w in words)]
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder).resolve()
        copy(where)
        if red := red_tests(where): raise SystemExit(f"the unchanged copy is red: {', '.join(red)}")
        print(f"| change | turned red (first 3) |\n|---|---|\n| none | none: {len(chosen)} changes follow |")
        alive = 0
        for name, *change in chosen:
            red = mutate(where, *change)
            alive += not red
            print(f"| {name} | {', '.join(red) or '**SURVIVED**'} |", flush=True)
    print(f"\n{len(chosen) - alive} of {len(chosen)} changes were seen")
    return int(bool(alive))


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
