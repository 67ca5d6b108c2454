"What must not break it, the part about whole runs: F1, F3–F8, F12, F13, F16, F17, F22, F23, F27"
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from made import picture_folder
from process import at, hashes, leftovers, recipe, run, send, small_net, start, whole

from benchmarks import faults
from cifar_fastai import files as saving, models
from cifar_fastai.checkpoints.checkpoint import Checkpoint
from cifar_fastai.checkpoints.store import CheckpointStore
from cifar_fastai.runs import from_recipe, one_run as runs, report, run_writer
from cifar_fastai.runs.run_writer import RunWriter
from cifar_fastai.runs.verify import verify_run
from cifar_fastai.training import lr_finder as finder
from cifar_fastai.training.learner import ImageLearner

HELPERS = Path(__file__).parents[1] / "helpers"

pytestmark = pytest.mark.no_rounding
kill = send(signal.SIGKILL)


def slow(*values): return pytest.param(*values, marks=pytest.mark.slow)


def resumed(folder, *flags, **kwargs) -> str:
    "What going on with the run in `folder` prints; it must end like one that nobody disturbed"
    status, text = run("--resume", folder, *flags, **kwargs)
    assert status == 0, text
    assert hashes(folder) == hashes(whole()) and not leftovers(folder)
    assert verify_run(folder) == ([], [])
    return text


def refusal(*flags, status=2, **kwargs) -> str:
    "The one line that a run ends with that cannot be"
    found, text = run(*flags, **kwargs)
    *_, line = text.splitlines()
    assert found == status and line.startswith("cifar_fastai: ") and "Traceback" not in text, text
    return line


def epochs_saved(folder) -> list: return [p.stem for p in CheckpointStore(folder / "checkpoints").complete()]


# ---------------------------------------------------------------- F1: killed

def test_F1_killed_at_random_moments_and_lines_of_a_save_runs_end_with_the_same_bytes(tmp_path):
    outcome = faults.run(5, tmp_path, seed=(seed := int(time.time())), figures=99)
    assert outcome.wrong == [], f"moments of seed {seed}"
    assert outcome.control, "the control: another seed ends elsewhere"
    assert (outcome.killed, outcome.resumed, outcome.identical) == (5, 5, 5)
    assert outcome.of_lines > 50 and len(outcome.lines) == 3


@pytest.mark.slow
@pytest.mark.timeout(1200)                # 40 runs, all figures in some: a minute where nothing else runs
def test_F1_killed_twenty_times(tmp_path):
    outcome = faults.run(20, tmp_path, seed=(seed := int(time.time())))
    assert outcome.wrong == [], f"moments of seed {seed}"
    assert outcome.passes and outcome.killed == 20


@pytest.mark.slow
def test_F1_a_process_from_the_shell_is_killed_and_gone_on_with(tmp_path, learnable):
    from tiny import write_folder
    command = [sys.executable, "-W", "ignore", HELPERS / "tiny.py", "--epochs", "6"]
    command += ["--data", write_folder(learnable, tmp_path / "data")]
    subprocess.run([*command, "--out", tmp_path / "undisturbed", "--quiet"], check=True, timeout=280)
    process = subprocess.Popen([*command, "--out", tmp_path / "run"], stdout=subprocess.DEVNULL)
    while len(epochs_saved(tmp_path / "run")) < 2 and process.poll() is None: time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command[:-2], "--resume", tmp_path / "run", "--quiet"], check=True, timeout=280)
    assert hashes(tmp_path / "run") == hashes(tmp_path / "undisturbed")


STAGES = {"before the data is read": (runs, "learner_of"), "after recipe.json": (saving, "save_atomically"),
          "in the range test": (finder, "_judged"), "before the fit": (runs, "fit"),
          "before the figures": (runs, "write_training"), "before the results": (RunWriter, "_results"),
          "before the sums": (run_writer, "seal")}


SLOW = ("before the fit", "before the results", "after recipe.json")


@pytest.mark.parametrize("stage", [slow(stage) if stage in SLOW else stage for stage in STAGES])
def test_F1_killed_where_there_is_no_checkpoint_or_no_more_to_train(tmp_path, stage):
    folder, (owner, name) = tmp_path / "run", STAGES[stage]
    assert run("--out", folder, prepare=lambda: at(owner, name, kill))[0] == -signal.SIGKILL
    saved = epochs_saved(folder)
    text = resumed(folder)
    assert ("from the beginning" in text) == (not saved)


def test_F1_a_job_script_may_always_say_resume(tmp_path):
    for _ in range(2):
        status, text = run("--out", tmp_path / "run", "--resume", "--seed", "0")
        assert status == 0 and hashes(tmp_path / "run") == hashes(whole()), text


def test_F1_resume_alone_takes_the_newest_run_with_the_flags_it_was_begun_with(tmp_path):
    at_epoch_2 = lambda: at(Checkpoint, "after_epoch", kill, 1)
    assert run("--epochs", 2, "--seed", 5, cwd=tmp_path)[0] == 0
    assert run("--seed", 3, "--lr", 0.1, cwd=tmp_path, prepare=at_epoch_2)[0] == -signal.SIGKILL
    status, text = run("--resume", cwd=tmp_path, data=None)
    assert status == 0 and "0.1 (given)" in text and "-seed3" in text, text
    found, = tmp_path.glob("runs/small/*-seed3")
    said = json.loads((found / "recipe.json").read_text())
    assert (said["seed"], said["lr"], said["epochs"]) == (3, 0.1, 3)
    run("--seed", 3, "--lr", 0.1, "--out", tmp_path / "undisturbed")
    assert hashes(found) == hashes(tmp_path / "undisturbed") != hashes(whole())


def test_F1_resume_of_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(b"")
    assert "photos is no run's folder" in refusal("--resume", tmp_path / "photos")
    assert "nowhere does not exist" in refusal("--resume", tmp_path / "nowhere")
    assert "no run to resume in runs/small" in refusal("--resume", cwd=tmp_path)
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_F1_tensorboard_shows_a_resumed_run_like_an_undisturbed_one(tmp_path):
    folder = tmp_path / "run"
    flags = "--out", folder, "--checkpoint-minutes", 0
    assert run(*flags, prepare=lambda: at(ImageLearner, "_do_epoch_validate", kill, 1))[0] == -signal.SIGKILL
    assert run("--resume", folder, prepare=lambda: at(run_writer, "seal", kill))[0] == -signal.SIGKILL
    resumed(folder)
    assert scalars(folder / "tensorboard") == scalars(whole() / "tensorboard")


@pytest.mark.slow
def test_F1_every_figure_of_a_resumed_run_is_that_of_an_undisturbed_one(tmp_path):
    half = lambda: at(Checkpoint, "after_epoch", kill, 1)
    assert run("--out", tmp_path / "undisturbed", drawn=True)[0] == 0
    assert run("--out", tmp_path / "run", drawn=True, prepare=half)[0] == -signal.SIGKILL
    assert run("--resume", tmp_path / "run", drawn=True)[0] == 0
    figures = [f"figures/{p.name}" for p in (tmp_path / "undisturbed/figures").glob("*.png")]
    assert hashes(tmp_path / "run", figures) == hashes(tmp_path / "undisturbed", figures)
    assert len(figures) >= 12


def scalars(folder) -> dict:
    "(step, value) of each tag, as TensorBoard shows them; pictures by step"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    shown = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert len(shown["train/loss"]) == 24 and len(shown["epoch/accuracy"]) == 3
    return shown | {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]}


def test_F1_several_seeds_go_on_where_they_were_killed(tmp_path):
    flags = "--out", tmp_path / "seeds", "--seeds", 0, 1
    in_the_second = lambda: at(runs, "fit", kill, 1)
    assert run(*flags, prepare=in_the_second)[0] == -signal.SIGKILL
    status, text = run(*flags, "--resume")
    assert status == 0 and (tmp_path / "seeds/seeds.json").exists(), text
    assert hashes(tmp_path / "seeds/seed0") == hashes(whole())
    assert verify_run(tmp_path / "seeds/seed1") == ([], [])


# ---------------------------------------------------------------- F3: signals

PLACES = {"in the range test": (ImageLearner, "one_batch", 5), "in the fit": (ImageLearner, "one_batch", 46),
          "while the data is read": (from_recipe, "load_data", 0), "among the figures": (report, "_write", 1),
          "in the Grad-CAM pass of the fit": (runs.GradCAMCallback, "after_epoch", 2),
          "while predicting": (ImageLearner, "_do_epoch_validate", 3)}


@pytest.mark.parametrize("place, signum, status", [
    *((place, signal.SIGTERM, 143) for place in PLACES), ("in the fit", signal.SIGINT, 130)])
def test_F3_a_signal_stops_the_run_and_resuming_ends_like_an_undisturbed_one(tmp_path, place, signum, status):
    folder, (owner, name, times) = tmp_path / "run", PLACES[place]
    found, text = run("--out", folder, prepare=lambda: at(owner, name, send(signum), times))
    assert found == status and f"stopped by {signal.Signals(signum).name}" in text.splitlines()[-1], text
    assert "Traceback" not in text and not leftovers(folder)
    resumed(folder)


def test_F3_a_second_ctrl_c_stops_at_once(tmp_path):
    folder, twice = tmp_path / "run", send(signal.SIGINT, signal.SIGINT)
    found, text = run("--out", folder, prepare=lambda: at(ImageLearner, "one_batch", twice, 46))
    assert found == 130 and text.splitlines()[-1] == "cifar_fastai: stopped by Ctrl-C"
    assert not leftovers(folder) and epochs_saved(folder) == ["epoch-0001"]
    resumed(folder)


# ---------------------------------------------------------------- F4 to F6: what there is to resume

@pytest.fixture
def half(tmp_path):
    "A run that was killed after its second epoch"
    assert run("--out", tmp_path / "run", prepare=lambda: at(Checkpoint, "after_epoch", kill, 2))[0] == -9
    assert epochs_saved(tmp_path / "run") == ["epoch-0001", "epoch-0002"]
    return tmp_path / "run"


def test_F4_a_bad_newest_checkpoint_costs_an_epoch_and_one_line(half):
    (half / "checkpoints/epoch-0002.pt").write_bytes(b"x")
    text = resumed(half)
    assert len([line for line in text.splitlines() if "epoch-0002.pt has 1 bytes" in line]) == 1


def test_F5_where_every_checkpoint_is_bad_they_are_listed_and_nothing_starts_over(half):
    for k in (1, 2): (half / f"checkpoints/epoch-000{k}.pt").write_bytes(b"x")
    before = hashes(half)
    line = refusal("--resume", half, status=1)
    assert "epoch-0001.pt" in line and "epoch-0002.pt" in line and hashes(half) == before


def net_with_a_bias(n_out=10, n_in=3, norm="bn"):
    net = small_net(n_out, n_in, norm)
    net.layer3[0] = torch.nn.Conv2d(8, 16, 5, 2, 2)
    return net


@pytest.mark.parametrize("field, flags, kwargs", [
    ("seed was 0, is now 1", ["--seed", 1], {}), ("lr was \"find\", is now 0.2", ["--lr", 0.2], {}),
    ("epochs was 3, is now 4", ["--epochs", 4], {}), ("limit was 256", ["--limit", 200], {}),
    ("opt.name was \"sgd\", is now \"adam\"", [], {"recipe": recipe.but(opt="adam")}),
    ("architecture was", [], {"prepare": lambda: models.MODELS.update(small=net_with_a_bias)}),
    ("data was", [], {"prepare": lambda: at_data()})])
def test_F6_another_run_is_refused_by_the_name_of_the_field(half, field, flags, kwargs):
    before = {p: p.read_bytes() for p in (half / "checkpoints").iterdir()}
    line = refusal("--resume", half, *flags, **kwargs)
    assert "cannot resume" in line and field in line, line
    assert {p: p.read_bytes() for p in (half / "checkpoints").iterdir()} == before
    assert json.loads((half / "recipe.json").read_text())["seed"] == 0


def at_data():
    "Each pixel is another, by a little"
    from dataclasses import replace
    data = from_recipe.load_data("digits")
    other = replace(data, x_train=data.x_train ^ 1, fingerprint="another")
    from_recipe.load_data = lambda *args, **kwargs: other


def test_F6_a_whole_run_stays_whole_where_another_is_refused(tmp_path):
    shutil.copytree(whole(), tmp_path / "run")
    refusal("--resume", tmp_path / "run", "--seed", 1)
    assert verify_run(tmp_path / "run") == ([], [])


def test_F6_before_the_first_checkpoint_too(tmp_path):
    run("--out", tmp_path / "run", prepare=lambda: at(runs, "fit", kill))
    assert "seed was 0, is now 1" in refusal("--resume", tmp_path / "run", "--seed", 1)


def test_F6_names_and_maps_may_change(half):
    status, text = run("--resume", half, "--cam-layer", "layer1", "--gallery", 7)
    assert status == 0, text
    explain = json.loads((half / "recipe.json").read_text())["explain"]
    assert explain == recipe.explain.but(layer="layer1", gallery=7).as_dict()
    same = [n for n in hashes(half) if n.endswith(("csv", "safetensors"))]
    assert hashes(half, same) == hashes(whole(), same)


# ---------------------------------------------------------------- F7, F8: the disk

def disk_full(name, times=0):
    "Let the disk be full when the file `name` is written"
    def prepare():
        real, left = os.replace, [times]
        def replace(a, b):
            left[0] -= Path(b).name == name
            if left[0] < 0 and Path(b).name == name: raise OSError(28, "No space left on device")
            real(a, b)
        saving.os.replace = replace
    return prepare


@pytest.mark.parametrize("name, times", [
    ("epoch-0002.pt", 0), ("history.csv", 1), ("gradcam_epochs.png", 0), ("weights.safetensors", 0),
    *(slow(name, 0) for name in ("epoch-0002.json", "confusion.png", "results.json"))])
def test_F7_a_full_disk_is_told_by_path_and_bytes_and_costs_nothing(tmp_path, name, times):
    line = refusal("--out", tmp_path / "run", prepare=disk_full(name, times), status=1)
    assert f"{name} (" in line and " bytes): No space left on device" in line
    assert len(epochs_saved(tmp_path / "run")) >= 1 and not leftovers(tmp_path / "run")
    resumed(tmp_path / "run")


def test_F7_a_disk_that_is_really_full(tmp_path):
    disk, mounted = tmp_path / "disk", False
    disk.mkdir()
    mounted = os.system(f"mount -t tmpfs -o size=120k tmpfs '{disk}' 2>/dev/null") == 0
    if not mounted: pytest.skip("mounting a small file system takes root")
    try:
        line = refusal("--out", disk / "run", status=1)
        assert "No space left on device" in line and str(disk) in line
        assert os.system(f"mount -o remount,size=40m '{disk}'") == 0
        resumed(disk / "run")
    finally: os.system(f"umount '{disk}'")


def test_F8_a_folder_that_cannot_be_written_in_ends_the_run_before_it_starts(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file/run", "/proc/run"):
        line = refusal("--out", out, prepare=lambda: at(runs, "learner_of", kill))
        assert f"cannot write in {out}" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write in a read-only folder")
def test_F8_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o555)
    assert "cannot write in" in refusal("--out", tmp_path / "run")


def test_F8_a_read_only_file_system(tmp_path):
    if os.system(f"mount -t tmpfs -o ro tmpfs '{tmp_path}' 2>/dev/null"): pytest.skip("mounting takes root")
    try: assert "Read-only file system" in refusal("--out", tmp_path / "run")
    finally: os.system(f"umount '{tmp_path}'")


# ---------------------------------------------------------------- F13: no number

def spoiled(batch):
    "A net that says nan from its `batch`-th training batch on"
    class Spoiled(torch.nn.Module):
        def __init__(self): super().__init__(); self.left = batch
        def forward(self, x):
            self.left -= self.training
            return x * float("nan") if self.left < 0 else x
    def make(*args, **kwargs):
        net = small_net(*args, **kwargs)
        net.spoiled = Spoiled()
        return net
    return lambda: models.MODELS.update(small=make)


def test_F13_a_run_stops_before_a_step_that_is_no_number(tmp_path):
    line = refusal("--out", tmp_path / "run", "--lr", 0.1, prepare=spoiled(19), status=1)
    assert "the loss is nan at epoch 2, batch 3: stopped before the step" in line
    assert "checkpoints/epoch-0002.pt" in line
    state = CheckpointStore(tmp_path / "run/checkpoints").load_newest()
    assert all(v.isfinite().all() for v in state["model"].values())


def test_F13_an_absurd_rate_stops_or_ends_with_numbers(tmp_path):
    status, text = run("--out", tmp_path / "run", "--lr", 999)
    assert status in (0, 1) and "Traceback" not in text
    state = CheckpointStore(tmp_path / "run/checkpoints").load_newest()
    assert state is None or all(v.isfinite().all() for v in state["model"].values())
    assert "lr=1e+38" in refusal("--out", tmp_path / "b", "--lr", "1e38")


# ---------------------------------------------------------------- F12, F16, F17: wrong inputs cost seconds

def offline():
    "A network name space with nothing in it, or else no socket that connects"
    import ctypes
    import socket
    if ctypes.CDLL(None).unshare(0x40000000) == 0: return
    def refuse(*_): raise OSError(101, "Network is unreachable")
    socket.socket.connect = refuse


def test_F12_without_a_network_digits_train_and_cifar_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CIFAR10_DIR", "TORCH_HOME", "FASTAI_HOME"): monkeypatch.delenv(name, raising=False)
    status, text = run("--out", tmp_path / "run", prepare=offline)
    assert status == 0 and hashes(tmp_path / "run") == hashes(whole()), text
    line = refusal("--out", tmp_path / "b", prepare=offline, data="cifar10")
    assert "cifar10 was not found in" in line and "Give --data" in line
    assert "name resolution" in line or "no network" in line
    assert not (tmp_path / "b/recipe.json").exists()


def test_F16_folders_that_do_not_fit_are_refused_before_training(tmp_path):
    picture_folder(tmp_path / "d", classes=("cat", "dog", "frog"))
    shutil.rmtree(tmp_path / "d/test/frog")
    line = refusal("--out", tmp_path / "run", data=str(tmp_path / "d"))
    assert "missing: frog" in line and not (tmp_path / "run/recipe.json").exists()


@pytest.mark.parametrize("flags, says", [
    (["--epoch", 3], "unknown flag '--epoch'. Did you mean --epochs"),
    (["--cam-layer", "layr3"], "unknown layer 'layr3'. Did you mean layer3"),
    (["--valid", "tset"], "'tset'. Did you mean test?"), (["--lr", "fnd"], "neither a number nor find"),
    (["--bs", 0], "bs=0. Give 1 or more"), (["--precision", "bf61"], "Did you mean bf16"),
    (["--device", "cdua"], "device 'cdua' cannot be used here")])
def test_F17_what_is_mistyped_is_refused_with_the_nearest_names(tmp_path, flags, says):
    assert says in refusal("--out", tmp_path / "run", *flags) and not (tmp_path / "run/recipe.json").exists()


# ---------------------------------------------------------------- F22, F23: others, and memory

def test_F22_a_second_process_is_refused_and_the_first_is_unhurt(tmp_path):
    stop = send(signal.SIGSTOP)
    first = start("--out", tmp_path / "run", prepare=lambda: at(ImageLearner, "one_batch", stop, 40))
    os.waitpid(first.pid, os.WUNTRACED)
    for flags in (["--out", tmp_path / "run", "--resume"], ["--resume", tmp_path / "run"]):
        assert f"in use by process {first.pid}" in refusal(*flags)
    assert "already holds a run" in refusal("--out", tmp_path / "run")
    os.kill(first.pid, signal.SIGCONT)
    assert first.end()[0] == 0 and hashes(tmp_path / "run") == hashes(whole())


def greedy(batch):
    "A net that asks for more memory than there is in its `batch`-th training batch"
    def prepare():
        real, left = ImageLearner.one_batch, [batch]
        def one_batch(self, *args):
            left[0] -= self.training
            if left[0] < 0: torch.empty(1 << 52)
            return real(self, *args)
        ImageLearner.one_batch = one_batch
    return prepare


def test_F23_out_of_memory_hints_at_the_batch_size_and_keeps_the_checkpoint(tmp_path):
    line = refusal("--out", tmp_path / "run", prepare=greedy(45), status=1)
    assert "out of memory with batches of up to 32" in line and "--bs 16" in line and "epoch-0002.pt" in line
    resumed(tmp_path / "run")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_F23_out_of_memory_on_a_gpu(tmp_path):
    from cifar_fastai.runs.console import OutOfMemory, one_line_errors
    with pytest.raises(OutOfMemory, match="--bs 256"), one_line_errors(tmp_path, 512):
        torch.empty(1 << 50, device="cuda")


# ---------------------------------------------------------------- F27: odd surroundings

def test_F27_a_umask_of_077_keeps_everything_to_its_owner(tmp_path):
    status, text = run("--out", tmp_path / "run", prepare=lambda: os.umask(0o077))
    assert status == 0 and hashes(tmp_path / "run") == hashes(whole()), text
    assert {stat.S_IMODE(p.stat().st_mode) & 0o077 for p in tmp_path.rglob("*")} == {0}


def test_F27_without_a_home_it_trains(tmp_path):
    def homeless():
        for name in ("HOME", "XDG_CACHE_HOME"): os.environ.pop(name, None)
    status, text = run("--out", tmp_path / "run", prepare=homeless)
    assert status == 0 and hashes(tmp_path / "run") == hashes(whole()), text


def test_F27_a_closed_pipe_on_stdout_does_not_end_the_run(tmp_path):
    def closed():
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
    status, text = run("--out", tmp_path / "run", prepare=closed)
    assert status == 0 and text == "" and hashes(tmp_path / "run") == hashes(whole()), text
    assert "test  " in (tmp_path / "run/log.txt").read_text(), "the log has what nobody read"


def test_F27_a_clock_that_goes_back_changes_nothing(tmp_path):
    def backwards():
        real, start = time.time, time.time()
        time.time = lambda: 2 * start - real()
    status, text = run("--out", tmp_path / "run", prepare=backwards)
    assert status == 0 and hashes(tmp_path / "run") == hashes(whole()), text


