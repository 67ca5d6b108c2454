"""Worker processes stay as long as they are wanted, end at once, and are missed where they die."""
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import albumentations as A
import pytest
import torch
from test_batch_dl import epoch, loaders

from cifar_fastai.errors import InputError
from cifar_fastai.loaders import workers
from cifar_fastai.loaders.block import cifar_dataloaders
from cifar_fastai.loaders.workers import LoaderError, Workers, worker_failed

HELPERS = Path(__file__).parents[1] / "helpers"


def make(key):
    "A batch that says where it was made; the seventh cannot be"
    if key == 7: raise InputError("seven is too many")
    return torch.tensor([key, os.getpid()])


def pids(workers: Workers) -> list[int]: return [w.pid for w in workers._processes]


def test_batches_come_in_order_from_the_same_processes_each_time():
    workers = Workers(make, 2)
    first, second = (torch.stack(list(workers.batches(keys, str))) for keys in ([3, 1, 2, 5], [4, 6]))
    assert first[:, 0].tolist() == [3, 1, 2, 5] and second[:, 0].tolist() == [4, 6]
    assert set(first[:, 1].tolist()) == set(second[:, 1].tolist()) == set(pids(workers))
    assert os.getpid() not in pids(workers)
    workers.close()


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_processes_that_are_gone_or_late_between_two_epochs_are_replaced(how, monkeypatch):
    "A batch is a function of its key: nothing is lost"
    monkeypatch.setattr(workers, "LOOK", .5)
    pool = Workers(make, 2)
    list(pool.batches([1, 2], str))
    before = pids(pool)
    os.kill(before[0], how)
    time.sleep(.1)
    assert [b[0] for b in pool.batches([3, 4], str)] == [3, 4] and not set(pids(pool)) & set(before)
    pool.close()


def test_an_error_comes_back_as_it_was_raised_and_the_next_epoch_goes_on():
    workers = Workers(make, 2)
    with pytest.raises(InputError, match="^seven is too many$"): list(workers.batches([1, 7, 2], str))
    assert [b[0] for b in workers.batches([1, 2], str)] == [1, 2]
    workers.close()


def test_workers_that_are_closed_in_the_middle_say_so():
    workers = Workers(make, 1)
    batches = workers.batches([1, 2, 3], lambda key: f"key {key}")
    next(batches)
    workers.close()
    with pytest.raises(LoaderError, match="at key 2: closed in the middle of an epoch"): next(batches)


def test_what_is_said_is_one_line():
    assert worker_failed("it died. \nand more", "batch 3") == (
        "a worker process failed at batch 3: it died. Try num_workers=0 (--workers 0) to see where.")


def test_workers_stay_from_epoch_to_epoch_and_go_when_they_are_closed(learnable):
    dl = loaders(learnable, 2).train
    epoch(dl)
    first = pids(dl.pool)
    epoch(dl)
    assert pids(dl.pool) == first and len(set(first)) == 2
    dl.close()
    assert not any(alive(pid) for pid in first)


def alive(pid, patience=10):
    "Whether process `pid` is still there after up to `patience` seconds"
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]: return False
        except ChildProcessError: return False
        time.sleep(.01)
    return True


def test_workers_of_a_forgotten_loader_end_by_themselves(learnable):
    dls = loaders(learnable, 2)
    epoch(dls.train)
    processes = dls.train.pool._processes
    del dls
    gc.collect()
    assert [p.exitcode for p in processes] == [0, 0], "not waited for in vain and terminated: that is -15"


def test_a_killed_worker_is_an_error_that_names_the_batch_and_its_pictures(learnable):
    dl = loaders(learnable, 2).train
    batches = iter(dl)
    next(batches)
    dead = pids(dl.pool)
    os.kill(dead[0], signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(LoaderError, match=r"of epoch 0 \(training picture \d+ … .*num_workers=0") as error:
        for _ in batches: time.sleep(.01)
    assert time.monotonic() - started < 30 and "\n" not in str(error.value)
    assert not any(alive(pid) for pid in dead)
    assert len(list(dl)) == 5, "the next epoch starts new ones"


class Slow(A.ImageOnlyTransform):
    "Hangs on the picture it is told to"
    def __init__(self, victim): super().__init__(p=1); self.victim = victim
    def apply(self, img, **params):
        if img.tobytes() == self.victim: time.sleep(60)
        return img


def test_a_hanging_worker_is_an_error_within_the_time_limit(learnable):
    dl = loaders(learnable, 1, [Slow(learnable.x_train[5].tobytes())]).train
    assert dl.new().timeout == dl.timeout == 120, "also of a loader that had no workers before"
    dl.timeout = 1
    started = time.monotonic()
    with pytest.raises(LoaderError, match=r"batch \d of epoch 0 .*no batch within 1 seconds"): epoch(dl)
    assert time.monotonic() - started < 20


def test_ctrl_c_in_the_terminal_leaves_the_workers_to_finish_the_batch(learnable, monkeypatch):
    begin = workers._begin
    def late(i): time.sleep(.4 * i), begin(i)
    monkeypatch.setattr(workers, "_begin", late)
    dl = loaders(learnable, 3).train
    batches = iter(dl)
    next(batches)           # of the first one; the others are still starting
    for pid in pids(dl.pool): os.kill(pid, signal.SIGINT)
    assert len(list(batches)) == 4 and len(list(dl)) == 5


SPAWN = """
import multiprocessing, sys
import numpy as np, torch
sys.path[:0] = sys.argv[2:]

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    torch.set_num_threads(1)
    from dataclasses import replace
    from test_batch_dl import epoch, loaders
    from tiny import learnable
    data = learnable()
    np.save(sys.argv[1], data.x_train)
    data = replace(data, x_train=np.load(sys.argv[1], mmap_mode="r"))   # one set mapped, one to be shared
    expected, dls = [epoch(loaders(data).train)], loaders(data, 2)
    assert [epoch(dls.train)] == expected, "not the same pixels"
    store = dls.train.direct()[0]
    assert store.tickets[0]["filename"].endswith(".npy") and store.tickets[1].is_shared()
    print("equal")
"""


@pytest.mark.slow
def test_F26_spawned_workers_show_the_same_pixels_and_share_the_pictures(tmp_path):
    (tmp_path / "spawn ü.py").write_text(SPAWN)
    done = subprocess.run([sys.executable, "-W", "ignore", tmp_path / "spawn ü.py", tmp_path / "x.npy",
                           HELPERS, Path(__file__).parent], capture_output=True, text=True, timeout=250)
    assert done.stdout.splitlines()[-1:] == ["equal"], done.stderr


def slow(key):
    "A batch that takes longer than the look-out for dead processes"
    if key: time.sleep(3 * workers.LOOK)
    return torch.tensor([key, os.getpid()])


def test_an_epoch_that_is_left_with_slow_batches_under_way_does_not_spoil_the_next(monkeypatch):
    monkeypatch.setattr(workers, "LOOK", .3)
    pool = Workers(slow, 2)
    left = pool.batches([0, 1, 1, 1, 1], str)
    next(left)
    before = pids(pool)
    left.close()
    assert not any(alive(pid) for pid in before)
    assert [int(b[0]) for b in pool.batches([0, 1], str)] == [0, 1]
    pool.close()


def test_an_iteration_within_another_has_its_own_processes_and_both_come_to_their_end():
    pool = Workers(make, 2)
    outer = pool.batches([1, 2, 3, 4], str)
    first = next(outer)
    inner = list(pool.batches([5, 6], str))
    rest = list(outer)
    assert [int(b[0]) for b in (first, *inner, *rest)] == [1, 5, 6, 2, 3, 4]
    assert {int(b[1]) for b in inner}.isdisjoint({int(b[1]) for b in (first, *rest)})
    assert not any(alive(int(b[1])) for b in inner)
    pool.close()


def sleepy(x, **_):
    time.sleep(.02)
    return x


def test_a_range_test_with_slow_batches_is_followed_by_a_fit(learnable, learner, monkeypatch):
    monkeypatch.setattr(workers, "LOOK", .2)
    slow = A.Lambda(sleepy, name="sleepy")
    dls = cifar_dataloaders(learnable, 32, slow, num_workers=2, device="cpu")
    learn = learner(dls)
    learn.lr_find(num_it=17, show_plot=False, stop_div=False)
    learn.fit(1, .05)
    assert len(learn.recorder.losses) == len(dls.train)
    dls.train.close()
