"""A reader sees the old file or the new one, whatever happens in between."""
import errno
import hashlib
import json
import os

import pytest
from made import names

from cifar_fastai import files as saving
from cifar_fastai.files import SaveError, save_atomically, write_json


def test_a_file_is_replaced_and_its_sha256_returned(tmp_path):
    path = tmp_path / "new folder" / "a ü.bin"
    assert save_atomically(path, b"old") == hashlib.sha256(b"old").hexdigest()
    assert save_atomically(path, b"new") == hashlib.sha256(b"new").hexdigest()
    assert path.read_bytes() == b"new" and names(path.parent) == ["a ü.bin"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call, code):
    path = tmp_path / "a.bin"
    save_atomically(path, b"old")
    def fail(*_): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(saving.os, call, fail)
    found = rf"cannot write {path} \(1,234 bytes\): {os.strerror(code)}"
    with pytest.raises(SaveError, match=found) as error: save_atomically(path, bytes(1234))
    assert error.value.exit_status == 1 and "\n" not in str(error.value)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_an_interrupted_save_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*_): raise KeyboardInterrupt
    monkeypatch.setattr(saving.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt): save_atomically(tmp_path / "a.bin", b"new")
    assert names(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_disk_that_is_really_full_is_reported(tmp_path, monkeypatch):
    def full(path, mode): return open("/dev/full", "wb") if str(path).endswith(".tmp") else open(path, mode)
    monkeypatch.setattr(saving, "open", full, raising=False)
    with pytest.raises(SaveError, match="No space left on device"): save_atomically(tmp_path / "a.bin", b"a")


def test_the_rights_of_a_file_follow_the_umask(tmp_path):
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(umask)
        try: save_atomically(tmp_path / f"{umask}.bin", b"x")
        finally: os.umask(before)
        assert (tmp_path / f"{umask}.bin").stat().st_mode & 0o777 == mode


def test_json_is_written_for_people_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Müsli", "n": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "name": "Müsli",\n  "n": 1\n}\n'
    with pytest.raises(ValueError, match="Out of range float"): write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text())["n"] == 1
