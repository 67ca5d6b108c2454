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

def at_a_terminal(code: str, status: int = 0, **env) -> str:
    "All that a process writes to a terminal"
    ours, theirs = pty.openpty()
    here = {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "TERM": "xterm-256color"}
    env, shown = os.environ | here | env, b""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    with suppress(OSError):                                    # Linux says so at the end
        while data := os.read(ours, 4096): shown += data
    os.close(ours)
    assert process.wait() == status, shown.decode()
    return shown.decode()


LEARNER = TINY + """
from tiny import learnable, tiny_net
from cifar_fastai import cifar_dataloaders, cifar_learner
dls = cifar_dataloaders(learnable(), 32, device="cpu", num_workers=0)
learn = cifar_learner(dls, tiny_net, precision="fp32")
"""


def test_the_range_test_has_one_bar_with_its_name_over_all_its_passes():
    code = LEARNER + "learn.lr_find(num_it=40, show_plot=False)\nprint('then a fit')\nlearn.fit(1)"
    shown, plain = at_a_terminal(code).split("then a fit")
    bars = [line for line in shown.split("\r") if "|" in line]
    counts = [int(n) for n in re.findall(r"(\d+)/40", shown)]
    assert bars and all(b.startswith("lr_find |") for b in bars), bars
    assert shown.rstrip("\r").rsplit("\r", 1)[-1].strip() == "", "wiped at the end"
    assert counts == sorted(counts) and counts[-1] >= 39 and "/5" not in shown, "eight passes of five batches"
    assert "lr_find" not in plain and "5/5" in plain and "1/1" in plain, "the control: an epoch's bar and row"


RUN = TINY + """
import tiny
tiny.register()
from cifar_fastai import cli
cli.main(tiny.recipe, ["--data", "digits", "--limit", "200", "--out", %r, *%r])
"""
UNDRAWN = RUN.replace("tiny.register()", "tiny.register(); tiny.undrawn()")
COLOUR = re.compile(r"\x1b\[[\d;]*(?:3[0-7]|38;[\d;]+)m")


def test_a_run_has_one_display_over_all_its_stages_and_ends_in_a_table(tmp_path):
    shown = at_a_terminal(RUN % (str(tmp_path / "run"), []))
    for stage in ("range test", "epoch 1/2", "epoch 2/2", "validation", "test set", "maps", "page"):
        assert re.search(rf"{stage} +\S*━", shown), stage
    whole = [int(p) for p in re.findall(r"(\d+)%  \d+:\d\d gone", shown)]
    assert whole == sorted(whole) and whole[0] < 60 and whole[-1] == 100
    page = (tmp_path / "run/report.html").as_uri()
    assert f";{page}\x1b\\" in shown, "a link that a click opens"
    end = shown[shown.rindex("┌"):]
    assert "accuracy" in end and "of 360 pictures" in end and "mirror TTA" in end and "mistakes" in end
    assert "took  " not in shown and "took  " in (tmp_path / "run/log.txt").read_text(), "a table instead"
    assert "\x1b[?25h" in shown, "the cursor is back"
    assert COLOUR.search(shown)


def test_no_color_is_honoured_and_quiet_is_quiet(tmp_path):
    shown = at_a_terminal(UNDRAWN % (str(tmp_path / "a"), []), NO_COLOR="1")
    assert "whole run" in shown and not COLOUR.search(shown)
    assert at_a_terminal(UNDRAWN % (str(tmp_path / "b"), ["--quiet", "--lr", ".1"])) == ""


STOPPED = """
import os, signal, sys
from fastai.callback.core import Callback
from cifar_fastai import train
from cifar_fastai.errors import report_errors
def stop(cb):
    if cb.epoch == 1: os.kill(os.getpid(), signal.SIGINT)
recipe = tiny.recipe.but(lr=.1, limit=200, epochs=3)
with report_errors(): train(recipe, "digits", %r, cbs=Callback(after_step=stop))
"""


def test_ctrl_c_takes_the_display_away_and_says_how_to_go_on(tmp_path):
    folder = str(tmp_path / "run")
    shown = at_a_terminal(TINY + "import tiny\ntiny.register()\n" + STOPPED % folder, status=130)
    end = shown[shown.rindex("\x1b[?25h"):]                # the cursor is back
    assert "stopped by SIGINT at epoch 1" in end and f"Go on with --resume: {folder} is whole." in end
    assert "whole run" in shown and "whole run" not in end and "┌" not in end


def test_a_pipe_gets_lines_without_a_display(tmp_path):
    done = subprocess.run([sys.executable, "-c", UNDRAWN % (str(tmp_path / "run"), ["--lr", ".1"])],
                          capture_output=True, text=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    heads = [line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [h for h in heads if h != "Grad-CAM"] == [
        "recipe", "data", "device", "net", "rate", "test", "took", "page", "folder"]
    assert not set("\x1b\r━┌") & set(done.stdout) and done.stderr == ""


def test_the_time_left_is_by_what_was_worked_and_not_by_what_was_skipped(monkeypatch):
    from cifar_fastai.training import progress
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display = progress.RunDisplay({"range test": 0.0, "training": 900.0, "page": 100.0})
    display.started = 0.0
    display.begin("epoch 6/9", 10, 500.0)                  # five were done by the run that was killed
    now[0] = 20.0
    display.show(10, 10, 600.0)
    note = lambda: display.bars.tasks[display.whole].fields["note"]
    assert note() == "60%  00:20 gone, 01:20 left", "100 took 20 s, 400 are left"
    now[0] = 80.0
    display.show(10, 10, 900.0)
    with display.stage("page"): assert display.bars.tasks[display.at_hand].description == "page"
    assert note() == "100%  01:20 gone"


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
