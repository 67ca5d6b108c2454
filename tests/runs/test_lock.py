"""One process writes into a run's folder at a time; a dead one's lock is free."""
import os
import signal
import subprocess
import sys

import pytest
from made import names

from cifar_fastai.errors import InputError
from cifar_fastai.runs.run_folder import locked

pytestmark = pytest.mark.no_rounding

HOLD = """import os, sys
from cifar_fastai.runs.run_folder import locked
with locked(sys.argv[1]):
    if sys.argv[2:] and os.fork(): os._exit(0)
    print("held", flush=True)
    sys.stdin.read()"""


def holder_of(folder, *fork):
    "A process that holds the lock until its input ends; with `fork` its child does, itself gone"
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, *fork],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_F22_a_second_process_is_refused_at_once_and_the_first_is_unhurt(tmp_path):
    first = holder_of(tmp_path)
    with pytest.raises(InputError, match=f"in use by process {first.pid}"), locked(tmp_path): pass
    first.communicate("")
    assert first.returncode == 0 and names(tmp_path) == []
    with locked(tmp_path): assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_F22_the_lock_of_a_killed_process_is_free(tmp_path):
    first = holder_of(tmp_path)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    with locked(tmp_path): assert (tmp_path / ".lock").read_text() == str(os.getpid())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_F22_a_worker_that_outlives_its_parent_does_not_keep_the_lock(tmp_path):
    orphan = holder_of(tmp_path, "fork")
    orphan.wait(60)     # the parent; its child has said that it is there
    with locked(tmp_path): orphan.communicate("")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_in_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"cannot write in {tmp_path}/file"), locked(tmp_path / "file"): pass
