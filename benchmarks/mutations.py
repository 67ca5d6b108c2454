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
TESTS = [f"gradcam/test_{name}.py" for name in ("cam_reference", "cam", "faithfulness", "evidence")]
CAM, METHODS, CHECKS = "gradcam/cam.py", "gradcam/methods.py", "gradcam/checks.py"
AREAS, EVIDENCE = "gradcam/faithfulness.py", "gradcam/evidence.py"
MEAN, SUM = "return g.mean(HW, keepdim=True)", "* A).sum(1)"
GATHER = "return target, logits.gather(1, target[:, None])"
TOP = "m / top.clamp_min(torch.finfo(m.dtype).tiny)"

MUTATIONS = [    # what goes wrong, in which file, the text there, what stands there instead
    ("sum over pixels for mean", METHODS, MEAN, MEAN.replace("mean", "sum")),
    ("ReLU on the gradient", METHODS, MEAN, MEAN.replace("g.", "g.relu().")),
    ("softmax for logits", CHECKS, GATHER, GATHER.replace("logits.", "logits.softmax(1).")),
    ("log-softmax for logits", CHECKS, GATHER, GATHER.replace("logits.", "logits.log_softmax(1).")),
    ("no eval mode", CAM, "m.training = False ", "pass "),
    ("no clone handed on", CAM, "return kept[name].clone()", "return kept[name]"),
    ("no clone kept", CAM, "out.detach().clone().requires_grad_()", "out.detach().requires_grad_()"),
    ("target off by one", CHECKS, GATHER, GATHER.replace("[:, None]", "[:, None].add(1) % logits.shape[1]")),
    ("align_corners", METHODS, "align_corners=False)[:, 0]", "align_corners=True)[:, 0]"),
    ("min-max for max", METHODS, "    top = torch",
     "    maps = [m - m.amin((1, 2), keepdim=True) for m in maps]; top = torch"),
    ("the batch's maximum for its own", METHODS, "m.abs().amax((1, 2), keepdim=True)", "m.abs().amax()"),
    ("no guard for an empty map", METHODS, TOP, "m / top"),
    ("a fixed epsilon for a faint map", METHODS, TOP, "m / top.add(1e-7)"),
    ("each class on its own scale", METHODS, "    return [m / top",
     "    return [m / m.abs().amax((1, 2), keepdim=True)"),
    ("against a class cut off though asked for", METHODS, "raw if signed else raw.relu()", "raw.relu()"),
    ("detail at its own height", METHODS, "DETAIL * top * ", "DETAIL * "),
    ("no detail", METHODS, "DETAIL * top * ", "0 * top * "),
    ("detail against the class, too", METHODS, "heatmap(m, size)", "heatmaps([m], size, True)[0]"),
    ("detail where nothing speaks for the class", METHODS, "keepdim=True).relu()", "keepdim=True).abs()"),
    ("detail by the method, not by LayerCAM", CAM, 'raw(k, "layercam")', "raw(k, methods[name])"),
    ("the first method for all maps", CAM, "raw(first, methods[name])", "raw(first, methods[self.names[0]])"),
    ("predicted class not on the scale", CAM, "beside = [] if there else", "beside = [] if True else"),
    ("swapped axes", METHODS, "F.interpolate(raw[:, None]", "F.interpolate(raw.mT[:, None]"),
    ("swapped size", METHODS, "size=tuple(size)", "size=tuple(size)[::-1]"),
    ("mirrored map", CAM, SUM, SUM + ".flip(2)"),
    ("bicubic for bilinear", METHODS, 'mode="bilinear"', 'mode="bicubic"'),
    ("no ReLU for display", METHODS, "raw if signed else raw.relu()", "raw"),
    ("ReLU before the channel sum", CAM, SUM, "* A).relu().sum(1)"),
    ("raw without its sign", CAM, SUM, SUM + ".relu()"),
    ("absolute value for ReLU", METHODS, "raw if signed else raw.relu()", "raw if signed else raw.abs()"),
    ("mean over the batch for sum", CAM, "chosen.sum()", "chosen.mean()"),
    ("LayerCAM without ReLU", METHODS, "return g.relu()\n", "return g\n"),
    ("++ with 1 for 2", METHODS, "below = 2 + g", "below = 1 + g"),
    ("++ without ReLU", METHODS, "torch.where((g > 0) & (below", "torch.where((g != 0) & (below"),
    ("++ as its squares", METHODS, "below = 2 + g * A.sum(HW, keepdim=True)",
     "below = (2 * g**2 + g**3 * A.sum(HW, keepdim=True)) / g**2"),
    ("XGradCAM without its guard", METHODS,
     "torch.where(total == 0, 0, (g * A).sum(HW, keepdim=True) / total)",
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
    ("insertion for deletion", AREAS, "hot ^ (curve == 1)", "hot ^ (curve == 0)"),
    ("areas over one step too many", AREAS, "* width / self.steps", "* width / (self.steps + 1)"),
    ("a curve taken for straight between its ends", AREAS, "4 * width <= self.steps", "width <= self.steps"),
    ("no step taken for straight", AREAS, ".abs() < tol", ".abs() < 0"),
    ("either interval will do", EVIDENCE, "self.insertion_gain[1] > 0 > self.deletion_gain[2]",
     "self.insertion_gain[1] > 0 or 0 > self.deletion_gain[2]"),
    ("others are not looked at", EVIDENCE, "(*shown, *others)", "shown"),
    ("difference the wrong way round", AREAS, "d = (a - b)", "d = (b - a)"),
]


def copy(where: Path):
    "The package and its Grad-CAM tests, without compiled files: a change may keep a file's size and second"
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cifar_fastai", where / "cifar_fastai", ignore=no_cache)
    (where / "tests" / "gradcam").mkdir(parents=True)
    for name in TESTS: shutil.copy(ROOT / "tests" / name, where / "tests" / name)
    shutil.copytree(ROOT / "tests" / "helpers", where / "tests" / "helpers", ignore=no_cache)


def red_tests(
    where: Path,         # a copy
    most: int = 3,       # stop after this many
) -> list[str]:
    "Names of the tests that fail there. Raises `SystemExit` where they do not run or run on another copy"
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
           "PYTHONPATH": os.pathsep.join(map(str, (where, where / "tests" / "helpers")))}
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
