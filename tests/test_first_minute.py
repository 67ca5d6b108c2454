"""What a newcomer sees first: a notebook's first cell, a terminal's bars, a resumed table."""
import inspect
import logging
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
from fastai.callback.core import Callback

from cifar_fastai import cli
from cifar_fastai.checkpoints.checkpoint import Checkpoint
from cifar_fastai.explain import any_picture as explain
from cifar_fastai.runs.console import show_log

pytestmark = pytest.mark.no_rounding

ROOT = Path(__file__).parent.parent
TINY = (f"import sys; sys.path.insert(0, {str(ROOT / 'tests/helpers')!r})\n"
        "import torch; torch.set_num_threads(1)\n")


def said(code: str, **env) -> str:
    "stderr of a process that runs `code`"
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return done.stderr


# a notebook

FIRST_CELL = "from cifar_fastai import *\ncifar_learner, cifar_dataloaders, ImageInterpretation, train\n"


def test_a_first_cell_prints_no_warning_even_without_ipywidgets():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    hidden = "import sys; sys.modules['ipywidgets'] = None\n"
    theirs = "import warnings; warnings.warn('mine'); warnings.warn('old', FutureWarning)"
    cells = [nbformat.v4.new_code_cell(code) for code in (hidden + FIRST_CELL, theirs)]
    book = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(book, timeout=200, kernel_name="python3").execute()
    first, second = ("".join(o.get("text", "") for o in c.outputs if o.get("name") == "stderr")
                     for c in book.cells)
    assert first == "", first
    assert "mine" in second and "old" in second, "the control: a person's own warnings are shown"


def test_the_package_hides_two_messages_and_no_other():
    code = ("import warnings, cifar_fastai\n"
            "for text, kind in (('`torch.jit.script` is deprecated', FutureWarning), ('IProgress not found', "
            "UserWarning), ('mine', UserWarning), ('mine too', FutureWarning)): warnings.warn(text, kind)")
    shown = re.findall(r"Warning: (.*)", said(code))
    assert shown == ["mine", "mine too"]


# a terminal

def at_a_terminal(code: str) -> str:
    "All that a process writes to a terminal"
    ours, theirs = pty.openpty()
    env, shown = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}, b""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    with suppress(OSError):                                    # Linux says so at the end
        while data := os.read(ours, 4096): shown += data
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


LEARNER = TINY + """
from tiny import learnable, tiny_net
from cifar_fastai import cifar_dataloaders, cifar_learner
dls = cifar_dataloaders(learnable(), 32, device="cpu", num_workers=0)
learn = cifar_learner(dls, tiny_net, precision="fp32")
"""


def test_the_range_test_has_one_bar_with_its_name_over_all_its_passes():
    shown = at_a_terminal(LEARNER + "learn.lr_find(num_it=40, show_plot=False)")
    bars = [line for line in shown.split("\r") if "|" in line]
    counts = [int(n) for n in re.findall(r"(\d+)/40", shown)]
    assert bars and all(b.startswith("lr_find |") for b in bars), bars
    assert shown.rstrip("\r").rsplit("\r", 1)[-1].strip() == "", "wiped at the end"
    assert counts == sorted(counts) and counts[-1] >= 39 and "/5" not in shown, "eight passes of five batches"
    plain = at_a_terminal(LEARNER + "learn.fit(1)")
    assert "lr_find" not in plain and "5/5" in plain and "1/1" in plain, "the control: an epoch's bar and row"


def test_the_head_of_a_resumed_table_stands_above_its_first_row(learner, tmp_path, caplog):
    lines = []
    def told(learn, *cbs):
        learn.logger, learn.epoch_table.write = print, logging.getLogger("cifar_fastai").info
        with caplog.at_level(logging.INFO): learn.fit(3, .05, cbs=[Checkpoint(tmp_path / "c", **cbs[0])])
        lines[:] = [r.message.split()[0] for r in caplog.records if r.message.strip()]
        caplog.clear()

    def stop(self):
        if self.epoch == 1: raise KeyboardInterrupt
    first = learner()
    first.add_cb(Callback(before_train=stop))
    with pytest.raises(KeyboardInterrupt): told(first, {})
    caplog.clear()
    told(learner(), {"resume": True})
    assert lines == ["going", "epoch", "2/3", "3/3"]
    told(learner(), {"resume": True})
    assert "epoch" not in lines, "no head above no row"


# captions

def test_a_class_that_is_a_number_stands_apart_from_its_probability(learner):
    from cifar_fastai.explain.interpretation import ImageInterpretation
    interp = ImageInterpretation.from_learner(learner())
    interp.vocab = [str(k) for k in range(4)]
    for label in (interp.predicted_label(0), interp.true_label(0)):
        assert re.fullmatch(r"\w+ \(\d+(\.\d)? %\)", label), label
    fig, _ = explain.gradcam_of(learner(), [0, 1])
    shown = [t for ax in fig.axes for t in (ax.get_title(), ax.get_xlabel()) if "%" in t]
    assert shown and all(re.search(r"\(\d+(\.\d)? %\)", t) for t in shown), shown


# the lines of a run

@pytest.mark.parametrize("handler, sees", [
    (None, ["told", "warned"]), (logging.NullHandler(), ["told", "warned"]), ("warning", ["told"]),
    ("file", ["told", "warned"]), ("info", [])], ids=str)
def test_a_run_is_told_unless_somebody_else_tells_it(tmp_path, capsys, monkeypatch, handler, sees):
    root, log = logging.getLogger(), logging.getLogger("cifar_fastai")
    made = {"file": lambda: logging.FileHandler(tmp_path / "log"), "info": logging.StreamHandler,
            "warning": logging.StreamHandler}.get(handler, lambda: handler)()
    if handler == "warning": made.setLevel(logging.WARNING)
    monkeypatch.setattr(root, "handlers", [made] if made else [])
    with show_log(), show_log():
        log.info("told")
        log.warning("warned")
    assert capsys.readouterr().out.split() == sees
    with show_log(quiet=True): log.info("told")
    assert capsys.readouterr().out == ""


def test_help_of_train_names_every_flag(capsys):
    from recipes.__main__ import main
    main(["train", "--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m recipes train FILE")
    for name in inspect.signature(cli.flags).parameters: assert f"--{name.replace('_', '-')} " in out


def test_a_wrong_value_in_a_recipe_file_names_the_file(tmp_path):
    from cifar_fastai.errors import InputError
    from cifar_fastai.runs.run_folder import load_recipe
    path = tmp_path / "mine.json"
    for text, wrong in (('{"epoch": 3}', "unknown recipe field 'epoch'"), ('{"epochs": 0}', "epochs=0"),
                        ('{"aug": {"padd": 4}}', "unknown policy field 'padd'"), ('{"aug": 7}', "aug=7")):
        path.write_text(text)
        with pytest.raises(InputError, match=re.escape(str(path)) + f": .*{wrong}"):
            load_recipe(path, name=tiny.recipe.name)
