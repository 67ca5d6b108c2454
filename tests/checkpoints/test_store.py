"""What is on disk is the old file or the new one, whatever happens in between."""
import hashlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
from random import Random

import numpy as np
import pytest
import torch
from made import flip, names

from cifar_fastai.checkpoints.store import CheckpointError, CheckpointStore, plain_values
from cifar_fastai.errors import InputError

pytestmark = pytest.mark.no_rounding


def state_of(epoch):
    "A state in which everything tells the epoch, strided memory included"
    weight = torch.full((2, 3, 4, 4), float(epoch)).contiguous(memory_format=torch.channels_last)
    return {"weight": weight, "history": [[epoch, 0.1 + 0.2]], "done": epoch, "none": None, "pair": (1, "a")}


@pytest.fixture
def store(tmp_path):
    "Epochs 1 to 3 saved, the last two of them kept"
    store = CheckpointStore(tmp_path / "checkpoints")
    fingerprint = {"seed": 0, "classes": ["cat", "dog"]}
    for epoch in (1, 2, 3): store.save(state_of(epoch), epoch, fingerprint=fingerprint)
    return store


# plain

def test_plain_values_lose_their_types_but_no_bit():
    value = plain_values({"f": np.float64(0.1), "a": np.array([1, 2**32 - 1], np.uint32),
                          "t": (1, [np.int64(2)]),
                   "v": torch.arange(100)[3:5], "p": torch.nn.Parameter(torch.ones(1))})
    assert type(value["f"]) is float and value["f"] == 0.1 and value["a"].tolist() == [1, 4294967295]
    assert value["t"] == (1, [2]) and type(value["p"]) is torch.Tensor
    assert value["v"].tolist() == [3, 4]
    assert value["v"].untyped_storage().nbytes() == 16, "saved without the other 98"


def test_an_object_is_refused_by_its_place():
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\] is a Random"): plain_values({"a": [0, Random()]})


# CheckpointStore

def test_the_newest_state_comes_back_bit_for_bit(store):
    state, saved = store.load_newest(expect={"seed": 0}), state_of(3)
    weight, other = state.pop("weight"), saved.pop("weight")
    assert weight.equal(other) and weight.stride() == other.stride() and state == saved


def test_the_last_two_are_kept_and_nothing_else_lies_about(store):
    assert names(store.folder) == ["epoch-0002.json", "epoch-0002.pt", "epoch-0003.json", "epoch-0003.pt"]
    store.save(state_of(3), 3, batch=17)
    assert names(store.folder)[::2] == ["epoch-0003-batch-00017.json", "epoch-0003.json"]
    assert store.newest().name == "epoch-0003-batch-00017.pt"


def test_the_manifest_says_what_it_is(store):
    manifest = json.loads((store.folder / "epoch-0003.json").read_text())
    data = (store.folder / "epoch-0003.pt").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(data).hexdigest() and manifest["bytes"] == len(data)
    assert (manifest["epoch"], manifest["batch"]) == (3, 0)
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert manifest["fingerprint"] == {"seed": 0, "classes": ["cat", "dog"]}


def test_an_empty_or_missing_folder_has_nothing_to_resume(tmp_path):
    for folder in (tmp_path, tmp_path / "none"): assert CheckpointStore(folder).load_newest() is None


class Hostile:
    "Runs a command where it is unpickled"
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return (os.system, (f"touch '{self.marker}'",))


def truncate(path): path.write_bytes(path.read_bytes()[:-100])
def empty(path): path.write_bytes(b"")
def remove(path): path.unlink()
def hostile(path): path.write_bytes(pickle.dumps(Hostile(path.parent / "marker")))
def hostile_zip(path): torch.save({"model": Hostile(path.parent / "marker")}, path)


def vouch(path):
    "Make the manifest agree with what is now in the file"
    data, manifest = path.read_bytes(), path.with_suffix(".json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {
        "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}))


def forged(path): hostile_zip(path), vouch(path)
def list_instead(path): torch.save([1, 2], path), vouch(path)


def manifest_cut(path): path.with_suffix(".json").write_text('{"sha256": "ab')
def manifest_deep(path): path.with_suffix(".json").write_text("[" * 100_000)
def manifest_types(path): path.with_suffix(".json").write_text('{"sha256": 1, "bytes": "x"}')


DAMAGE = [truncate, empty, remove, flip, hostile, hostile_zip, forged, list_instead,
          manifest_cut, manifest_deep, manifest_types]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_F4_a_bad_newest_checkpoint_falls_back_with_one_line(store, damage, caplog):
    damage(store.folder / "epoch-0003.pt")
    assert store.load_newest(expect={"seed": 0})["done"] == 2
    line, = caplog.messages
    assert "epoch-0003.pt" in line and "going back to" in line and "\n" not in line
    assert not (store.folder / "marker").exists()


def test_F4_control_the_hostile_file_would_run_if_it_were_unpickled(tmp_path):
    hostile(tmp_path / "x.pt")
    pickle.loads((tmp_path / "x.pt").read_bytes())
    assert (tmp_path / "marker").exists()


def test_F4_a_run_goes_on_over_a_bad_checkpoint_without_losing_the_good_one(store):
    flip(store.folder / "epoch-0003.pt")
    assert store.load_newest()["done"] == 2
    store.save(state_of(2), 2, batch=5)
    assert [p.name for p in store.complete()] == ["epoch-0002.pt", "epoch-0002-batch-00005.pt"]
    assert store.load_newest()["done"] == 2


@pytest.mark.parametrize("damage", [flip, forged, manifest_cut], ids=lambda f: f.__name__)
def test_F5_where_all_are_bad_each_is_listed(store, damage):
    for epoch in (2, 3): damage(store.folder / f"epoch-000{epoch}.pt")
    with pytest.raises(CheckpointError, match="epoch-0003.* epoch-0002.pt ") as error: store.load_newest()
    assert error.value.exit_status == 1 and "\n" not in str(error.value)
    assert len(names(store.folder)) >= 4, "the evidence stays"


def test_F6_another_runs_checkpoint_is_refused_by_the_name_of_the_field(store):
    with pytest.raises(InputError, match="seed was 0, is now 1; limit was null, is now 5"):
        store.load_newest(expect={"seed": 1, "classes": ("cat", "dog"), "limit": 5})
    assert store.load_newest(expect={"classes": ("cat", "dog")})["done"] == 3, "JSON makes lists of tuples"


def test_an_unfinished_save_is_swept_away_and_a_living_ones_file_is_not(store):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    temp = ".epoch-0004.pt.{}-0123abcd.tmp"
    for pid in (dead.pid, os.getppid()): (store.folder / temp.format(pid)).write_bytes(b"part")
    (store.folder / "epoch-0004.pt").write_bytes(b"without a manifest")
    (store.folder / "notes.txt").write_text("mine")
    assert store.load_newest()["done"] == 3
    store.save(state_of(5), 5)
    assert names(store.folder) == [temp.format(os.getppid()), "epoch-0003.json", "epoch-0003.pt",
                                   "epoch-0005.json", "epoch-0005.pt", "notes.txt"]


KILL_AT_EACH_LINE = textwrap.dedent("""
    import os, signal, sys, torch
    from cifar_fastai import files as saving
    from cifar_fastai.checkpoints import store as checkpoint
    from cifar_fastai.checkpoints.store import CheckpointStore
    torch.set_num_threads(1)
    state = lambda epoch: {"weight": torch.full((64,), float(epoch)), "done": epoch}

    def save_until_line(store, epoch, n):
        "Save in a child that kills itself at the n-th line of the module that it comes to; whether it lived"
        seen = 0
        def trace(frame, event, arg):
            nonlocal seen
            if frame.f_code.co_filename not in (checkpoint.__file__, saving.__file__): return None
            seen += event == "line"
            if seen > n: os.kill(os.getpid(), signal.SIGKILL)
            return trace
        child = os.fork()
        if not child:
            try: sys.settrace(trace), store.save(state(epoch), epoch)
            except BaseException: os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        return status == 0

    os.fsync = lambda fd: None                                # slow, and against power cuts only
    store, n, epoch, old, new, lived = CheckpointStore(sys.argv[1]), 0, 0, 0, 0, False
    store.save(state(0), 0)
    while not lived:
        store.save(state(epoch + 1), epoch + 1)               # a rerun takes the leftovers away
        assert len(os.listdir(store.folder)) == 4, os.listdir(store.folder)
        lived = save_until_line(store, epoch + 2, n)
        found = store.load_newest()
        assert found["done"] in (epoch + 1, epoch + 2), n
        assert found["weight"].equal(state(found["done"])["weight"]), n
        assert len(store.complete()) >= 2, n
        old, new = old + (found["done"] == epoch + 1), new + (found["done"] == epoch + 2)
        epoch, n = epoch + 2, n + 1
    print(n, old, new)
""")


def test_F1_killed_at_each_line_of_the_save_routine_one_complete_checkpoint_is_the_newest(tmp_path):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", KILL_AT_EACH_LINE, tmp_path / "c"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines, old, new = map(int, done.stdout.split())
    assert lines > 80 and old > 40 and new > 5, "killed before and after the new one counts"
