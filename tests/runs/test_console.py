"""Lines for people go where people look, once."""
import logging
import os
import sys
from contextlib import contextmanager

import pytest

from cifar_fastai.recipe import counted
from cifar_fastai.runs.console import show_log

log = logging.getLogger("cifar_fastai")


@contextmanager
def nobody_listens():
    "As outside of pytest"
    root, handlers = logging.getLogger(), logging.getLogger().handlers[:]
    root.handlers.clear()
    try: yield
    finally: root.handlers[:] = handlers


@pytest.mark.parametrize("n, said", [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (5000, "5,000 steps")])
def test_one_thing_is_no_plural(n, said): assert counted(n, "step") == said


def test_lines_go_to_stdout_and_with_the_time_to_a_file(tmp_path, capsys):
    with nobody_listens(), show_log(tmp_path / "log.txt"): log.info("data %d", 5), log.warning("careful")
    assert capsys.readouterr().out == "data 5\ncareful\n"
    first, second = (tmp_path / "log.txt").read_text().splitlines()
    assert first[4] == "-" and first[13] == ":" and first.endswith(" data 5") and second.endswith(" careful")
    assert not log.handlers and log.level == 0, "as before"


def test_quiet_shows_warnings_alone_and_keeps_all_lines_in_the_file(tmp_path, capsys):
    with nobody_listens(), show_log(tmp_path / "log.txt", quiet=True): log.info("x"), log.warning("careful")
    assert capsys.readouterr().out == "careful\n"
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_within_another_no_line_is_shown_twice_and_a_resumed_log_goes_on(tmp_path, capsys):
    with nobody_listens(), show_log():
        for k in range(2):
            with show_log(tmp_path / "log.txt"): log.info("line %d", k)
    assert capsys.readouterr().out == "line 0\nline 1\n"
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_a_program_that_already_shows_the_lines_is_left_to_it(tmp_path, capsys, caplog):
    with show_log(): log.warning("once")
    assert capsys.readouterr().out == "" and caplog.messages == ["once"]


def test_a_reader_that_is_gone_does_not_end_the_run(monkeypatch, capfd, tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with nobody_listens(), show_log(tmp_path / "log.txt"):
            for k in range(3): log.info("line %d", k)
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 3 and capfd.readouterr().err == ""


def test_the_handlers_go_where_the_inside_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), show_log(tmp_path / "log.txt"): 1 / 0   # noqa: B018
    assert not log.handlers
