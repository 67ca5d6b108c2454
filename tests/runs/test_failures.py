"""What a machine runs out of, and a signal, become one line that says what to do."""
import errno
import os
import signal

import pytest
import torch

from cifar_fastai.checkpoints.stop_on_signal import Stopped
from cifar_fastai.checkpoints.store import CheckpointStore
from cifar_fastai.errors import InputError
from cifar_fastai.files import SaveError
from cifar_fastai.runs.console import OutOfMemory, one_line_errors


def said(folder, error):
    "What becomes of `error`"
    with pytest.raises(BaseException) as found, one_line_errors(folder, bs=512): raise error
    return found.value


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_memory_that_runs_out_names_a_smaller_batch(tmp_path, error):
    found = said(tmp_path, error)
    assert type(found) is OutOfMemory and found.exit_status == 1 and "\n" not in str(found)
    assert "--bs 256" in str(found) and "checkpoint" not in str(found)
    CheckpointStore(tmp_path / "checkpoints").save({"n": 1}, 1)
    assert "epoch-0001.pt; with more memory go on by --resume" in str(said(tmp_path, error))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_no_more_is_named(tmp_path, code):
    found = said(tmp_path, OSError(code, os.strerror(code)))
    assert type(found) is SaveError and f"cannot write in {tmp_path}: {os.strerror(code)}" in str(found)


def test_a_stopped_run_is_told_to_be_resumed_once_there_is_something_to_resume(tmp_path):
    stop = Stopped("stopped by SIGTERM.", signal.SIGTERM)
    assert said(tmp_path, stop) is stop
    (tmp_path / "checkpoints").mkdir()
    found = said(tmp_path, stop)
    assert str(found) == f"stopped by SIGTERM. Go on with --resume: {tmp_path} is whole."
    assert type(found) is Stopped and found.exit_status == 143


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("x"),
                                   InputError("no"), OSError(errno.ENOENT, "No file"), KeyboardInterrupt()])
def test_everything_else_goes_through_as_it_is(tmp_path, error): assert said(tmp_path, error) is error


def test_the_batch_that_ran_out_of_memory_is_the_one_that_the_data_allowed(tmp_path):
    (tmp_path / "recipe.json").write_text('{"bs": 32}')
    found = str(said(tmp_path, MemoryError()))
    assert "batches of up to 32" in found and "--bs 16" in found
