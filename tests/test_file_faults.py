"""What must not break it, the part about files: F4, F11, F17 and F30 for checkpoints, recipes and weights,
and that no code runs from any of them. And that every fault has its test."""
import ast
import json
import os
import pickle
import re
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save

from cifar_fastai import Recipe, policy
from cifar_fastai.checkpoints.store import CheckpointError, CheckpointStore, verified
from cifar_fastai.errors import InputError
from cifar_fastai.files import read_json
from cifar_fastai.runs.run_folder import begun, load_recipe
from cifar_fastai.weights import load_weights, read_tensors

pytestmark = pytest.mark.no_rounding
ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "cifar_fastai").rglob("*.py"))


# ---------------------------------------------------------------- every fault has its test

@cache
def faults_tested() -> dict[int, list[str]]:
    "Number → test functions of that number, in all files"
    found = {}
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (number := re.match(r"test_F(\d+)_", node.name)):
                found.setdefault(int(number[1]), []).append(f"{path.name}::{node.name}")
    return found


@pytest.mark.parametrize("number", range(1, 31))
def test_every_fault_has_a_test_under_its_number_and_a_row_in_the_page(number):
    assert faults_tested()[number]
    rows = re.findall(rf"^\| F{number} \|.*", (ROOT / "docs/reliability.md").read_text(), re.M)
    assert len(rows) == 1
    for name in re.findall(r"`(test_\w+\.py)", rows[0]):
        assert any(t.startswith(name) for t in faults_tested()[number]), name


# ---------------------------------------------------------------- nothing that runs code

@pytest.mark.parametrize("words", [
    "weights_only=False", "load_learner(", "pickle.load(", "pickle.loads(", "extractall(", "yaml.load(",
    "shell=True", "os.system(", "marshal", "joblib"])
def test_no_module_says(words):
    assert not [p.name for p in PACKAGE if words in p.read_text().replace(" ", "")]


def test_no_module_calls_eval_exec_or_an_unchecked_load():
    calls = []
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call): continue
            name = ast.unparse(node.func)
            if name in ("eval", "exec", "compile", "__import__"): calls.append((path.name, name))
            if name == "torch.load": assert "weights_only=True" in ast.unparse(node), path.name
    assert calls == []


def test_torch_is_a_version_without_the_known_holes():
    needs = (ROOT / "pyproject.toml").read_text()
    least = re.search(r'"torch>=(\d+)\.(\d+)', needs)
    assert tuple(map(int, least.groups())) >= (2, 10), "CVE-2025-32434 and CVE-2026-24747"


# ---------------------------------------------------------------- hostile weights and recipes

class Calls:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


ABOUT = {"model": "custom_resnet", "norm": "bn", "classes": ["a", "b"], "size": 32, "mean": [0, 0, 0],
         "std": [1, 1, 1]}


def weights_file(path, about=ABOUT, tensors=None):
    text = about if isinstance(about, str) else json.dumps(about)
    path.write_bytes(save(tensors or {"fc.weight": torch.zeros(2, 3)}, {"cifar_fastai": text}))
    return path


@pytest.mark.parametrize("about", [
    {}, [], 3, None, "not json", "[" * 50_000, ABOUT, {**ABOUT, "model": "../../etc/passwd"},
    {**ABOUT, "model": ["x"]}, {**ABOUT, "classes": 5}, {**ABOUT, "classes": None}, {**ABOUT, "norm": "evil"},
    {**ABOUT, "more": 1}], ids=lambda a: str(a)[:30])
def test_F30_weights_with_other_metadata_are_refused_in_one_line(tmp_path, about):
    with pytest.raises(InputError) as error: load_weights(weights_file(tmp_path / "w.safetensors", about))
    assert "\n" not in str(error.value) and "w.safetensors" in str(error.value)


def test_F11_a_pickle_in_place_of_weights_is_refused_not_run(tmp_path):
    for write in (lambda p: p.write_bytes(pickle.dumps(Calls(tmp_path / "ran"))),
                  lambda p: torch.save({"x": Calls(tmp_path / "ran")}, p)):
        write(tmp_path / "w.safetensors")
        with pytest.raises(InputError, match="holds no weights"): load_weights(tmp_path / "w.safetensors")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Calls(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "the control: it would have run"


def test_F4_a_checkpoint_that_unpacks_to_much_is_left_by_its_size(tmp_path):
    "A zip bomb with a manifest that vouches for what was saved"
    store = CheckpointStore(tmp_path)
    path = store.save({"a": 1}, 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb: bomb.writestr("a/data.pkl", bytes(1 << 26))
    with pytest.raises(CheckpointError, match="bytes instead of"): verified(path)


def test_a_recipe_comes_back_from_its_file(tmp_path):
    for recipe in (Recipe(name="a"), Recipe(name="b", aug=policy.pad_crop_flip(rotate=5), lr=0.1, limit=10),
                   Recipe(name="c", aug=None, schedule={"moms": (.95, .85, .95)}),
                   Recipe(name="d", aug="pad_crop")):
        (tmp_path / "recipe.json").write_text(json.dumps(recipe.as_dict()))
        found = load_recipe(tmp_path / "recipe.json")
        assert found == recipe and found.fingerprint() == recipe.fingerprint()


@pytest.mark.parametrize("fields", [
    {}, {"name": 5}, {"name": "x", "epochs": "many"}, {"name": "x", "evil": 1},
    {"name": "x", "aug": {"name": 1, "pad": -4}}, {"name": "x", "lr": float("nan")},
    {"name": "x", "aug": {"transform": {"__class_fullname__": "os.system"}}},
    {"name": "x", "moms": ["a", "b", "c"]}, {"name": "x", "aug": {"flip": []}}], ids=lambda f: str(f)[:40])
def test_F17_a_recipe_file_with_wrong_fields_is_refused_in_one_line(tmp_path, fields):
    (tmp_path / "recipe.json").write_text(json.dumps(fields))
    with pytest.raises(InputError) as error: load_recipe(tmp_path / "recipe.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


# ---------------------------------------------------------------- F30: anything at all

byte = st.integers(0, 255)
damage = st.tuples(st.integers(0, 2**20), st.lists(st.tuples(st.integers(0, 2**20), byte), max_size=6))
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
                      lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=9), v, max_size=3),
                      max_leaves=9)


def damaged(base: bytes, how) -> bytes:
    "`base` with some bytes replaced, then perhaps cut"
    cut, bytes_at = how
    raw = bytearray(base)
    for at, value in bytes_at: raw[at % len(raw)] = value
    return bytes(raw[:cut % (2 * len(raw))])


def reads_or_refuses(read, valid):
    "Anything but a result that holds or an `InputError` of one line is a failure"
    try: got = read()
    except InputError as error: assert "\n" not in str(error)
    else: assert valid(got)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A checkpoint, a recipe and weights, each whole"
    folder = tmp_path_factory.mktemp("fuzz")
    state = {"model": {"w": torch.arange(4.)}, "epoch": 1}
    CheckpointStore(folder / "c").save(state, 1, fingerprint={"seed": 0})
    (folder / "recipe.json").write_text(json.dumps(Recipe(name="x").as_dict()))
    weights_file(folder / "w.safetensors")
    return folder


def checkpoint_case(folder, raw, how, value):
    whole = {p: p.read_bytes() for p in (folder / "c/epoch-0001.pt", folder / "c/epoch-0001.json")}
    sound = lambda state: state is None or isinstance(state, dict)
    try:
        for path, was in whole.items():
            for new in (raw, damaged(was, how), json.dumps(value).encode()):
                path.write_bytes(new)
                reads_or_refuses(lambda: CheckpointStore(folder / "c").load_newest({"seed": 0}), sound)
                vouch(folder / "c")
                reads_or_refuses(lambda: CheckpointStore(folder / "c").load_newest({"seed": 0}), sound)
                for p, b in whole.items(): p.write_bytes(b)
    finally:
        for p, b in whole.items(): p.write_bytes(b)


def vouch(folder):
    "A manifest that agrees with whatever is in the file now"
    import hashlib
    data = (folder / "epoch-0001.pt").read_bytes()
    (folder / "epoch-0001.json").write_text(json.dumps({
        "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "fingerprint": {"seed": 0}}))


def recipe_case(folder, raw, how, value):
    whole = (folder / "recipe.json").read_bytes()
    fields = json.loads(whole)
    some = value if isinstance(value, dict) else {"aug": value, list(fields)[how[0] % len(fields)]: value}
    (folder / "checkpoints").mkdir(exist_ok=True)
    for new in (raw, damaged(whole, how), json.dumps(value).encode(), json.dumps(fields | some).encode()):
        for name in ("try.json", "checkpoints/begun.json"): (folder / name).write_bytes(new)
        reads_or_refuses(lambda: load_recipe(folder / "try.json"), lambda got: isinstance(got, Recipe))
        reads_or_refuses(lambda: read_json(folder / "try.json"), lambda got: isinstance(got, dict))
        reads_or_refuses(lambda: begun(folder), lambda got: isinstance(got, dict))


def weights_case(folder, raw, how, value):
    whole = (folder / "w.safetensors").read_bytes()
    weights_file(folder / "t.safetensors", {**ABOUT, "classes": value})
    for new in (raw, damaged(whole, how), len(raw).to_bytes(8, "little") + raw, None):
        if new is not None: (folder / "t.safetensors").write_bytes(new)
        reads_or_refuses(lambda: read_tensors(folder / "t.safetensors"), lambda got: isinstance(got[0], dict))
        reads_or_refuses(lambda: load_weights(folder / "t.safetensors"), lambda got: got[0] is not None)


CASES = {"checkpoint": checkpoint_case, "recipe": recipe_case, "weights": weights_case}


def fuzz(case, folder, n):
    @settings(max_examples=n, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=500), damage, values)
    def test(raw, how, value): CASES[case](folder, raw, how, value)
    test()


@pytest.mark.parametrize("case", CASES)
def test_F30_any_bytes_in_a_file_of_a_run_are_read_or_refused(folder, case, caplog):
    caplog.set_level("ERROR")
    fuzz(case, folder, 100)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_F30_any_bytes_in_a_file_of_a_run_are_read_or_refused_a_thousand_times(folder, case, caplog):
    caplog.set_level("ERROR")
    fuzz(case, folder, 1000)
