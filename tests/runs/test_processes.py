"""A recipe by several processes leaves the folder that one leaves; killed, it goes on, with fewer too."""
import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fastai.callback.core import Callback
from safetensors.numpy import load_file
from tiny import learnable, recipe as tiny, write_folder

from cifar_fastai.errors import InputError
from cifar_fastai.files import read_json
from cifar_fastai.runs import from_recipe, one_run, train
from cifar_fastai.runs.from_recipe import lr_factor, shared_out
from cifar_fastai.runs.verify import verify_run
from cifar_fastai.tricks import Compiled

SCRIPT = Path(__file__).parents[1] / "helpers" / "tiny.py"
pytest.importorskip("accelerate", reason="accelerate is not installed")


# the rate

@pytest.mark.parametrize("rule, accumulate, processes, factor", [
    (None, 2, 4, 1), ("linear", 1, 4, 4), ("linear", 2, 4, 8), ("sqrt", 1, 4, 2), ("sqrt", 1, 1, 1)])
def test_a_given_rate_grows_with_the_batches_of_a_step(rule, accumulate, processes, factor, monkeypatch):
    monkeypatch.setattr(from_recipe, "world", lambda: processes)
    assert lr_factor(tiny.but(lr=.1, opt={"accumulate": accumulate}), rule) == factor


def test_a_rate_that_is_found_is_not_scaled_and_an_unknown_rule_refused():
    with pytest.raises(InputError, match="a rate that is given"): lr_factor(tiny, "linear")
    with pytest.raises(InputError, match="Choose from: linear, sqrt"): lr_factor(tiny.but(lr=.1), "cubic")


def test_a_run_goes_on_with_batches_as_large_in_all(monkeypatch):
    monkeypatch.setattr(from_recipe, "world", lambda: 4)
    gone_on = shared_out(tiny.but(bs=32, min_steps=4), 2)
    assert (gone_on.bs, gone_on.min_steps) == (16, 4) and shared_out(tiny, 4) is tiny
    with pytest.raises(InputError, match="batches of 6 in all, which 4 processes cannot share"):
        shared_out(tiny.but(bs=3), 2)


def test_a_scaled_rate_is_said_recorded_and_kept_when_the_run_goes_on(learnable, tmp_path, tiny_registered):
    wide, folder = tiny.but(lr=.02, opt={"accumulate": 2}, epochs=1), tmp_path / "run"
    class Stops(Callback):
        def after_step(self): raise KeyboardInterrupt
    for kwargs in ({"scale_lr": "linear"}, {"resume": True}):     # the second takes it from the folder
        with pytest.raises(KeyboardInterrupt):
            train(wide, learnable, folder, cbs=Stops(), device="cpu", **kwargs)
    assert read_json(folder / "checkpoints" / "begun.json")["lr_factor"] == 2
    assert (folder / "log.txt").read_text().count("0.04 (given, 0.02 × 2)") == 2
    with pytest.raises(InputError, match='scale_lr was "linear", is now "sqrt"'):
        train(wide, learnable, folder, device="cpu", scale_lr="sqrt", resume=True)


def test_a_run_that_began_compiled_goes_on_compiled(learnable, tmp_path, tiny_registered, monkeypatch):
    seen = []
    class Noted(Compiled):
        def before_train(self): seen.append(self)
    class Stops(Callback):
        def after_step(self): raise KeyboardInterrupt
    monkeypatch.setattr(one_run, "Compiled", Noted)
    for k, kwargs in enumerate(({"compiled": True}, {"resume": True})):
        with pytest.raises(KeyboardInterrupt):
            train(tiny.but(lr=.02), learnable, tmp_path / "run", cbs=Stops(), device="cpu", **kwargs)
        assert len(seen) == k + 1


# whole runs

@pytest.fixture(scope="module")
def pictures(tmp_path_factory): return write_folder(learnable(400, 45), tmp_path_factory.mktemp("pictures"))


def begin(processes: int, *flags, launcher="torch.distributed.run") -> subprocess.Popen:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    if launcher == "accelerate":
        start = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command = [sys.executable, *(start if processes > 1 else ()), str(SCRIPT), *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def begin_host(rank: int, port: int, root: Path, *flags) -> subprocess.Popen:
    "A launcher of one process, as on a host of its own: its own pictures, cache and working folder"
    host = root / str(rank)
    start = ["--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1", "--master-addr", "localhost",
             "--master-port", str(port), str(SCRIPT)]
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *start, *map(str, flags)],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=host,
                            env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(host / "cache")})


def two_hosts(pictures: Path, root: Path) -> tuple[int, Path, Path]:
    "A free port, and a folder with the pictures for each host"
    hosts = [root / str(rank) for rank in (0, 1)]
    for host in hosts: shutil.copytree(pictures, host / "pictures")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1], *hosts


def second_of(process: subprocess.Popen, folder: Path, out: Path | None = None) -> int:
    "The pid of the last process (of those told `out`) of a run that has saved its first checkpoint"
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/epoch-*.json")) and time.monotonic() < deadline: time.sleep(.05)
    found = subprocess.run(["pgrep", "-f", f"tiny.py.*--out {out or folder}"], capture_output=True, text=True)
    return max(int(pid) for pid in found.stdout.split() if int(pid) != process.pid)


def end(process: subprocess.Popen) -> str:
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 0, text
    return text


def common(pictures, bs: int, epochs: int = 3):
    return "--data", pictures, "--norm", "gn", "--lr", ".05", "--epochs", epochs, "--bs", bs


@pytest.fixture(scope="module")
def one(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    end(begin(1, *common(pictures, 64), "--out", folder))
    return folder


@pytest.fixture(scope="module")
def two(pictures, tmp_path_factory):
    "Started by accelerate; the runs that are killed below start by torchrun, and end in the same bytes"
    folder = tmp_path_factory.mktemp("two") / "run"
    return folder, end(begin(2, *common(pictures, 32), "--out", folder, launcher="accelerate"))


def predictions(folder: Path) -> list[list[str]]:
    with open(folder / "predictions.csv", newline="") as file: return list(csv.reader(file))


def alike(folder: Path, other: Path) -> None:
    "The same classes predicted; numbers agree to 1e-5"
    rows, others = predictions(folder), predictions(other)
    assert [r[:3] for r in rows] == [r[:3] for r in others] and len(rows) == 46
    for row, own in zip(rows[1:], others[1:]):
        assert [float(v) for v in row[3:]] == pytest.approx([float(v) for v in own[3:]], abs=1e-5)
    weights, own = (load_file(f / "weights.safetensors") for f in (folder, other))
    for name, value in own.items(): assert weights[name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.slow
def test_a_run_by_two_leaves_what_a_run_by_one_leaves(one, two):
    folder, said = two
    names = lambda run: {str(p.relative_to(run)) for p in run.rglob("*") if "tfevents" not in p.name}
    assert names(folder) == names(one) and verify_run(folder) == ([], [])
    alike(folder, one)
    assert said.count("recipe      tiny") == said.count("   epoch") == said.count("page        ") == 1, said
    assert ", 2 processes" in said
    assert read_json(folder / "results.json")["processes"] == 2


@pytest.mark.slow
def test_a_run_by_two_predicts_to_the_last_digit_what_one_does_that_accumulates_two_batches(pictures, two,
                                                                                           tmp_path):
    folder = tmp_path / "run"
    end(begin(1, *common(pictures, 32), "--accumulate", 2, "--out", folder))
    assert (folder / "predictions.csv").read_bytes() == (two[0] / "predictions.csv").read_bytes()
    own, weights = (load_file(f / "weights.safetensors") for f in (folder, two[0]))
    assert all((weights[name] == value).all() for name, value in own.items()), "gradients add up alike"


@pytest.mark.slow
def test_two_hosts_with_no_folder_in_common_end_in_the_bytes_of_two_processes_also_after_a_kill(
        two, pictures, tmp_path):
    port, first, second = two_hosts(pictures, tmp_path)
    hosts = [begin_host(rank, port, tmp_path, *common(host / "pictures", 32), "--out", host / "run")
             for rank, host in enumerate((first, second))]
    os.kill(second_of(hosts[1], first / "run", second / "run"), signal.SIGKILL)
    for host in hosts:
        text, _ = host.communicate(timeout=60)
        assert host.returncode != 0, text
    hosts = [begin_host(rank, port, tmp_path, "--resume", "run", "--data", "pictures") for rank in (0, 1)]
    said = [end(host) for host in hosts]
    assert re.search("going on at epoch [12] of 3", said[0]) and "epoch" not in said[1]
    assert verify_run(first / "run") == ([], []) and not (second / "run").exists()
    for name in ("weights.safetensors", "predictions.csv"):
        assert (first / "run" / name).read_bytes() == (two[0] / name).read_bytes()


@pytest.mark.slow
def test_hosts_with_different_pictures_are_refused(pictures, tmp_path):
    port, first, second = two_hosts(pictures, tmp_path)
    moved = next((second / "pictures/train/cat").iterdir())
    moved.rename(second / "pictures/train/dog" / moved.name)
    hosts = [begin_host(rank, port, tmp_path, *common(host / "pictures", 32), "--out", host / "run")
             for rank, host in enumerate((first, second))]
    for host in hosts:
        text, _ = host.communicate(timeout=120)
        assert host.returncode != 0 and text.count("the hosts have different pictures. Give all") == 1, text
    assert not (first / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("go_on", [1, 2])
def test_one_process_killed_ends_all_and_the_run_goes_on_with_as_many_or_one(go_on, two, pictures, tmp_path):
    folder = tmp_path / "run"
    process = begin(2, *common(pictures, 32), "--out", folder)
    os.kill(second_of(process, folder), signal.SIGKILL)
    killed = time.monotonic()
    text, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - killed < 60 and "SIGKILL" in text, text
    assert not (folder / "SHA256SUMS").exists()
    text = end(begin(go_on, "--resume", folder))
    assert re.search("going on at epoch [12] of 3", text) and verify_run(folder) == ([], [])
    if go_on == 1: alike(folder, two[0])
    else:
        assert (folder / "weights.safetensors").read_bytes() == (two[0] / "weights.safetensors").read_bytes()
        assert predictions(folder) == predictions(two[0])


@pytest.mark.slow
def test_a_process_that_hangs_is_waited_for_and_the_others_end_in_a_line(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR_FASTAI_WAIT", "5")
    folder = tmp_path / "run"
    process = begin(2, *common(pictures, 32, 2000), "--out", folder)
    hangs = second_of(process, folder)
    os.kill(hangs, signal.SIGSTOP)
    said = next(line for line in process.stdout if line.startswith("cifar_fastai: "))
    os.kill(hangs, signal.SIGKILL)         # the launcher would wait for it for half a minute
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert "another process ended or hangs" in said and said.endswith(f"--resume: {folder} is whole.\n")


@pytest.mark.slow
def test_a_wrong_input_is_said_once_and_nothing_is_left(pictures, tmp_path):
    process = begin(2, *common(pictures, 32), "--out", tmp_path / "run", "--cam-layer", "layer9")
    text, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and text.count("unknown layer 'layer9'") == 1, text
    assert not (tmp_path / "run").exists()
