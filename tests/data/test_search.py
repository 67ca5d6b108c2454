"""CIFAR is found where it lies, else fetched; what was tried is said."""
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from made import alone, pictures, shuffled, some_data  # noqa: F401  alone is a fixture
from official import NAMES10, PY10, PY100, members_of, small_official, unpacked

from cifar_fastai.data import sources as search
from cifar_fastai.data.sources import load_data
from cifar_fastai.errors import InputError

pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.parametrize("place", [
    "work", "work/data", "home/data", "cache/cifar_fastai", "home/.cache/torch", "home/.cache/torch/datasets",
    "home/.fastai/data", "home/.fastai/archive"])
def test_what_is_already_here_is_found(tmp_path, monkeypatch, place):
    small_official(monkeypatch, tmp_path / place)
    data = load_data("cifar10")
    assert len(data.x_train) == 20 and data.source == "cifar10" and data.classes == tuple(NAMES10)


def test_fastais_own_configuration_is_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTAI_HOME", str(tmp_path / "fa"))
    (tmp_path / "fa").mkdir()
    (tmp_path / "fa/config.ini").write_text(f"[DEFAULT]\ndata = {tmp_path}/elsewhere\narchive = arch\n")
    assert search.places()[-2:] == [tmp_path / "elsewhere", tmp_path / "fa/arch"]
    (tmp_path / "fa/config.ini").write_bytes(b"\xff no ini")
    assert search.places()[-2:] == [tmp_path / "fa/data", tmp_path / "fa/archive"]


def test_the_variable_goes_before_everything(tmp_path, monkeypatch):
    small_official(monkeypatch, tmp_path / "work")
    folder = unpacked(tmp_path / "mine", PY10, members_of(PY10))
    monkeypatch.setenv("CIFAR10_DIR", str(folder))
    with pytest.raises(InputError, match="mine.*not the official file"): load_data("cifar10")
    assert load_data("cifar10", unverified=True).source == "cifar-10-batches-py (unverified)"
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "gone"))
    with pytest.raises(InputError, match="CIFAR10_DIR=.*gone is not there"): load_data("cifar10")


def test_a_folder_with_both_sets_is_refused_and_a_damaged_copy_is_passed_over(tmp_path, monkeypatch, caplog):
    both = tmp_path / "both"
    for kind in (PY10, PY100): small_official(monkeypatch, both, kind)
    with pytest.raises(InputError, match="holds CIFAR-10 and CIFAR-100. Give the archive"): load_data(both)
    (both / PY100.archive).unlink()
    half = unpacked(both, PY10, members_of(PY10))
    (half / "data_batch_1").unlink()
    assert load_data(both).source == "cifar10" and "passed over" in caplog.text
    (both / PY10.archive).write_bytes(b"no archive")
    with pytest.raises(InputError, match="cifar-10-python.tar.gz"): load_data(both)


def test_cifar100_is_not_taken_for_cifar10(tmp_path, monkeypatch):
    path = small_official(monkeypatch, tmp_path / "work", PY100)
    assert len(load_data("cifar100").classes) == 100
    with pytest.raises(InputError, match="cifar10 was not found"): load_data("cifar10")
    monkeypatch.setenv("CIFAR10_DIR", str(path))
    with pytest.raises(InputError, match="holds cifar100, not cifar10"): load_data("cifar10")


def test_a_fastai_folder_must_be_whole(tmp_path, monkeypatch, caplog):
    root = tmp_path / "home/.fastai/data/cifar10"
    for split in ("train", "test"):
        for c in NAMES10:
            (root / split / c).mkdir(parents=True)
            (root / split / c / "1.png").write_bytes(b"")
    assert search.already_here("cifar10") == []
    assert "not all of CIFAR-10 (10 pictures in train/)" in caplog.text
    monkeypatch.setattr(search, "WHOLE", (("train", 1), ("test", 1)))
    assert search.already_here("cifar10") == [root]


def test_the_official_archive_is_downloaded_when_nothing_is_here(tmp_path, monkeypatch):
    import torchvision.datasets.utils as tv
    source = small_official(monkeypatch, tmp_path / "server")
    asked = []

    def download_url(url, root, filename, md5):
        asked.append((url, md5))
        (Path(root) / filename).write_bytes(source.read_bytes())

    monkeypatch.setattr(tv, "download_url", download_url)
    monkeypatch.setattr(search, "_unreachable", lambda url: "")
    with pytest.raises(InputError, match="download is off"): load_data("cifar10", download=False)
    assert len(load_data("cifar10").x_test) == 4 == len(load_data("cifar10").x_test)
    assert asked == [("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", search.KINDS[0].md5)]
    assert os.listdir(tmp_path / "cache/cifar_fastai") == ["cifar-10-python.tar.gz"]   # no part is left


def test_of_processes_that_start_together_one_downloads_for_all(tmp_path, monkeypatch):
    import torchvision.datasets.utils as tv
    source, asked, together = small_official(monkeypatch, tmp_path / "server"), [], Barrier(3)
    def download_url(url, root, filename, md5):
        asked.append(url)
        time.sleep(1)
        (Path(root) / filename).write_bytes(source.read_bytes())
    monkeypatch.setattr(tv, "download_url", download_url)
    monkeypatch.setattr(search, "_unreachable", lambda url: str(together.wait())[:0])
    with ThreadPoolExecutor(3) as pool: found = list(pool.map(lambda _: search.fetch("cifar10"), range(3)))
    assert len(asked) == 1 and len(set(found)) == 1 and found[0].read_bytes() == source.read_bytes()
    assert os.listdir(tmp_path / "cache/cifar_fastai") == ["cifar-10-python.tar.gz"]


def test_a_download_that_fails_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    import torchvision.datasets.utils as tv
    def fails(url, root, filename, md5):
        (Path(root) / filename).write_bytes(b"half")
        raise RuntimeError("File not found or corrupted.")
    monkeypatch.setattr(tv, "download_url", fails)
    monkeypatch.setattr(search, "_unreachable", lambda url: "")
    with pytest.raises(InputError, match="download of .* failed .*corrupted"): load_data("cifar10")
    assert os.listdir(tmp_path / "cache/cifar_fastai") == []
