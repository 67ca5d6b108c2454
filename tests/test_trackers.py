"""The lines of docs/trackers.md send what history.csv holds to each tracker, without a network."""
import csv
import re
import socket
import time
from pathlib import Path

import pytest
import tiny

TEXT = (Path(__file__).parents[1] / "docs" / "trackers.md").read_text()
CALLBACK, *LINES = re.findall(r"```python\n(.*?)```", TEXT, re.S)
OF = {name: next(b for b in LINES if f"import {name}\n" in b) for name in ("wandb", "mlflow", "trackio")}
pytestmark = pytest.mark.no_rounding


@pytest.fixture
def run_lines(tmp_path, monkeypatch):
    "The name of a tracker → the run that its lines of the page leave, with a small recipe and no network"
    monkeypatch.chdir(tmp_path)
    for key, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true",
                       "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
                       "TRACKIO_DIR": str(tmp_path / "trackio")}.items():
        monkeypatch.setenv(key, value)
    tiny.register()
    connect = socket.socket.connect

    def at_home(sock, address):
        assert sock.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), f"{address} was asked"
        return connect(sock, address)

    def run(name: str):
        pytest.importorskip(name)
        if name != "wandb": tiny.undrawn(monkeypatch.setattr, page=True)       # it is sent a figure
        monkeypatch.setattr(socket.socket, "connect", at_home)
        lines = re.sub(r"from recipes.*\n", "", OF[name])
        lines = lines.replace("train(recipe,", "train(recipe, quiet=True, data=")
        names = {"recipe": tiny.recipe.but(epochs=3, lr=.05, limit=200)}
        exec(CALLBACK + lines, names)
        with open(names["run"].folder / "history.csv", newline="") as file: rows = list(csv.DictReader(file))
        assert len(rows) == 3
        sent = "train_loss", "valid_loss", "accuracy", "lr"
        return names["run"], [{k: float(r[k]) for k in sent} for r in rows]
    return run


def test_mlflow_has_every_epoch_of_the_history(run_lines):
    run, rows = run_lines("mlflow")
    import mlflow
    found, = mlflow.search_runs(output_format="list")
    sent = {k: mlflow.MlflowClient().get_metric_history(found.info.run_id, k) for k in rows[0]}
    assert [{k: sent[k][i].value for k in sent} for i in range(3)] == rows
    assert [m.step for m in sent["lr"]] == [1, 2, 3] and found.data.metrics["test accuracy"] == run.accuracy


def test_trackio_has_every_epoch_of_the_history(run_lines):
    run, rows = run_lines("trackio")
    from trackio.sqlite_storage import SQLiteStorage
    name, = SQLiteStorage.get_runs("cifar")
    *sent, last = SQLiteStorage.get_logs("cifar", name)
    assert [{k: s[k] for k in rows[0]} for s in sent] == rows and last["test accuracy"] == run.accuracy
    assert [s["step"] for s in sent] == [1, 2, 3]


def test_wandb_has_every_epoch_of_the_history(run_lines):
    run, rows = run_lines("wandb")
    path, = Path("wandb").glob("offline-run-*/*.wandb")
    values, deadline = [*(v for row in rows for v in row.values()), run.accuracy], time.monotonic() + 30
    while True:                                  # a process of wandb's own writes it
        kept = path.read_bytes()                 # records of JSON, one after the other
        if all(repr(v).encode() in kept for v in values) or time.monotonic() > deadline: break
        time.sleep(.1)
    for value in values:
        assert repr(value).encode() in kept and repr(value + 1e-6).encode() not in kept, value
