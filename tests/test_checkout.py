"""A test that writes into the checkout is noticed: the fixture in conftest.py compares what this lists."""
import pytest
from conftest import checkout


@pytest.fixture
def root(tmp_path):
    for folder in ("tests", "runs/demo/1-seed0", "venv/lib", ".git", "x.egg-info"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("made", ["models", "tests/a.png", "runs/other", "runs/demo/2-seed0", "a.csv"])
def test_a_new_folder_or_file_is_seen(root, made):
    before, path = checkout(root), root / made
    path.write_bytes(b"") if path.suffix else path.mkdir()
    assert checkout(root) - before == {made} and not before - checkout(root)


@pytest.mark.parametrize("made", ["venv/lib/torch", ".git/index.d", "x.egg-info/d", "runs/demo/1-seed0/x"])
def test_what_tools_write_and_a_run_that_goes_on_beside_the_tests_are_not(root, made):
    before = checkout(root)
    (root / made).mkdir()
    assert checkout(root) == before
