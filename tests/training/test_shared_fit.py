"""Several processes train one net as one process would: the same losses, weights, metrics and predictions."""
import json
import os
import subprocess
import sys

import pytest
import torch
from together import TOTAL, UNEVEN
from torch import tensor

from cifar_fastai.errors import InputError
from cifar_fastai.loaders.batch_dl import BatchDL
from cifar_fastai.processes import agreed, gathered, join, rank, summed, world

pytest.importorskip("accelerate", reason="accelerate is not installed")
SCRIPT = f"{__file__.rsplit('/', 2)[0]}/helpers/together.py"
NAMES = ("fitted", "predicted", "found", "read", "normed", "dropped", "accumulated", "stopped", "refused")


def run(processes: int, names, folder) -> dict:
    "What together.py gives by so many processes"
    out = folder / f"{processes}.json"
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command = [sys.executable, *(start if processes > 1 else ()), SCRIPT, str(out), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory): return run(1, NAMES, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def two(tmp_path_factory): return run(2, NAMES, tmp_path_factory.mktemp("two"))


def as_alone(several: dict, alone: dict) -> None:
    "A fit and a range test by several processes, beside those of one"
    fit, own = several["fitted"], alone["fitted"]
    for name in ("losses", "weights", "validate"): assert fit[name] == pytest.approx(own[name], abs=1e-5)
    assert tensor(fit["rows"]) == pytest.approx(tensor(own["rows"]), abs=1e-5)
    assert fit["plain"] == own["plain"] == "Sequential" and len(fit["losses"]) == 3 * (400 // TOTAL)
    assert len({round(v, 3) for v in fit["losses"]}) > 10, "they learn"
    assert several["found"]["rates"] == pytest.approx(alone["found"]["rates"], rel=1e-5)
    assert several["found"]["losses"] == pytest.approx(alone["found"]["losses"], abs=1e-5)
    assert several["found"]["untouched"]
    items = several["read"]["items"]
    assert items[0] != items[1]
    for epoch, own in zip(items, alone["read"]["items"]):
        assert sorted(epoch) == sorted(own) and len(set(epoch)) == 400 // TOTAL * TOTAL
    assert several["read"]["validated"] == UNEVEN


def test_two_processes_train_as_one_with_batches_twice_as_large(two, alone): as_alone(two, alone)


def test_a_signal_to_one_process_stops_all_after_the_same_batch(two, alone):
    first, second = two["stopped"]["at"]
    assert alone["stopped"]["at"] == [[1, 1]], "in the second of three epochs"
    assert first == second == [1, 2], "they ask one another before each step: a batch later"


@pytest.mark.slow
def test_four_processes_train_as_one_with_batches_four_times_as_large(alone, tmp_path):
    as_alone(run(4, ("fitted", "found", "read"), tmp_path), alone)


def test_predictions_of_an_uneven_set_are_those_of_one_process_in_its_order(two, alone):
    for name, values in alone["predicted"].items():
        assert tensor(two["predicted"][name]) == pytest.approx(tensor(values), abs=1e-6), name
        assert len(values) == UNEVEN


def test_two_processes_take_the_steps_of_one_that_accumulates(two, alone):
    assert two["accumulated"]["weights"] == pytest.approx(alone["accumulated"]["weights"], abs=1e-5)
    halves = alone["accumulated"]["losses"]
    assert len(halves) == 2 * len(two["accumulated"]["losses"]) == 36


def test_on_cpus_the_averages_of_batch_norm_are_those_of_the_first_process(two, alone):
    first, second = two["normed"]["averages"]
    (own,) = alone["normed"]["averages"]
    assert first == second != own
    assert first == pytest.approx(own, abs=.3), "of a part of each batch"


def test_processes_drop_different_things(two):
    first, second = two["dropped"]["kept"]
    assert first != second and set(first) == set(second) == {0.0, 2.0}


def test_what_cannot_be_shared_is_refused(two, alone):
    stock, few = two["refused"]["said"]
    assert "TfmdDL cannot be shared by processes. Take cifar_dataloaders" in stock
    assert few.startswith("2 processes have 1 pictures to share")
    assert alone["refused"]["said"] == ["nothing", "nothing"], "the control"


# one process alone: nothing is asked of the others

def test_alone_nothing_is_asked_of_others():
    x = torch.arange(3)
    assert (rank(), world(), join("cpu"), agreed(lambda: 7)) == (0, 1, "cpu", 7)
    assert gathered(x) is x and summed(x).tolist() == [0, 1, 2]


def test_alone_no_accelerate_is_needed(learner, monkeypatch):
    for name in ("accelerate", "fastai.distributed", "cifar_fastai.training.shared_fit"):
        monkeypatch.setitem(sys.modules, name, None)
    learn = learner()
    with learn.distrib_ctx() as same: learn.fit(1, .05)
    assert same is learn and len(learn.recorder.losses) == 5


def test_several_processes_without_accelerate_are_told_what_to_install(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match="pip install accelerate"): join("cpu")


@pytest.mark.parametrize("n, bs, processes", [(45, 8, 2), (45, 8, 4), (47, 1, 4), (5, 64, 4), (64, 8, 2)])
def test_parts_of_validation_batches_are_of_nearly_equal_size_and_leave_nothing_out(n, bs, processes):
    read, lengths = [], set()
    for k in range(processes):
        dl = BatchDL(list(range(n)), bs=bs)
        dl.share(k, processes)
        parts = [dl.places(b) for b in range(len(dl))]
        sizes = [end - start for start, end in parts]
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
        read += [i for start, end in parts for i in range(start, end)]
        lengths.add(len(dl))
    assert sorted(read) == list(range(n)) and len(lengths) == 1, "all processes make as many steps"


@pytest.mark.parametrize("n", [63, 7])
def test_too_few_training_pictures_for_a_batch_of_all_are_refused(n):
    dl = BatchDL(list(range(n)), bs=32, shuffle=True, drop_last=True)
    with pytest.raises(InputError, match=f"2 processes have {n} pictures to share"): dl.share(0, 2)
    assert (dl.rank, dl.processes) == (0, 1)
