"What must not break it, the part about data: F2, F9–F12, F15, F16, F25, F27 and F30 of the design's faults"
import gzip
import os
import pickle
import signal
import struct
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from made import alone, file_of, picture_folder, pictures, shuffled, some_data, some_pixels  # noqa: F401
from official import (
    BIN10,
    BIN100,
    PY10,
    PY100,
    info,
    members_of,
    pickled,
    rows_of,
    small_official,
    tar,
    unpacked,
)
from PIL import Image

from cifar_fastai.data import archive_members as batches, archives, picture_cache, sources as search
from cifar_fastai.data.archives import read_official
from cifar_fastai.data.image_data import shared_pictures
from cifar_fastai.data.pictures import read_picture
from cifar_fastai.data.sources import load_data
from cifar_fastai.errors import InputError
from cifar_fastai.machine import cache_dir

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.no_rounding]


def refusal(read, *args, **kwargs):
    "The text of the `InputError`, which is one line"
    with pytest.raises(InputError) as e: read(*args, **kwargs)
    assert "\n" not in str(e.value) and len(str(e.value)) < 1000
    return str(e.value)


# ---------------------------------------------------------------- F2: killed while writing

def killed(act):
    "Run `act` in a child that must die by SIGKILL inside it"
    pid = os.fork()
    if pid == 0:
        try: act()
        finally: os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)


def then_die(*args, replace=os.replace):
    replace(*args)
    die()


def write_half(file, at, data):
    file.seek(at)
    file.write(bytes(data)[:len(bytes(data)) // 2])
    file.flush()
    die()


@pytest.mark.parametrize("where, instead", [
    ("mkdir", die), ("_write", write_half), ("_marks", die), ("fsync", die), ("_seal", die), ("replace", die),
    ("replace", then_die)])
def test_F2_a_kill_while_the_cache_is_written_leaves_no_part_of_it(tmp_path, monkeypatch, where, instead):
    made = picture_folder(tmp_path / "d", n=20)
    owner = Path if where == "mkdir" else picture_cache if where.startswith("_") else os
    with monkeypatch.context() as m:
        m.setattr(owner, where, instead)
        killed(lambda: load_data(tmp_path / "d"))
    assert bool(list(cache_dir().glob("*.npy"))) == (instead is then_die)  # under its name once it is whole
    for _ in range(2):
        data = load_data(tmp_path / "d")
        assert all(np.array_equal(x, made[f]) for x, f in zip(data.x_train, data.files_train))


def test_F2_no_damage_to_the_cache_reaches_the_pictures(tmp_path, caplog):
    picture_folder(tmp_path / "d")
    truth = load_data(tmp_path / "d")
    pictures = truth.x_train.copy()                  # mapped from the file that is damaged here
    (cache,) = cache_dir().iterdir()
    whole, rng = cache.read_bytes(), np.random.default_rng(0)
    cuts = [whole[:n] for n in (0, 5, 100, len(whole) // 2, len(whole) - 1)]
    for at in rng.integers(0, len(whole), 40):
        cuts.append(whole[:at] + bytes([whole[at] ^ 1 << rng.integers(8)]) + whole[at + 1:])
    for broken in cuts:
        cache.write_bytes(broken)
        caplog.clear()
        data = load_data(tmp_path / "d")
        assert np.array_equal(data.x_train, pictures) and data.fingerprint == truth.fingerprint
        assert data.mean == truth.mean and len(caplog.records) <= 1
    cache.write_bytes(whole)
    assert load_data(tmp_path / "d").fingerprint == truth.fingerprint


def test_F2_a_kill_while_downloading_leaves_no_archive_and_no_part_for_ever(tmp_path, monkeypatch):
    import torchvision.datasets.utils as utils
    source, cache = small_official(monkeypatch, tmp_path / "server"), tmp_path / "cache/cifar_fastai"

    def download(n, then):
        def load(url, root, name, md5):
            (Path(root) / name).write_bytes(source.read_bytes()[:n])
            then()
        monkeypatch.setattr(utils, "download_url", load)
    monkeypatch.setattr(search, "_unreachable", lambda url: "")
    download(1000, die)
    killed(lambda: search.fetch("cifar10"))
    assert not (cache / PY10.archive).exists() and list(cache.glob("download-*"))
    download(None, lambda: None)
    assert len(load_data("cifar10").x_train) == 20 and os.listdir(cache) == [PY10.archive]


def test_F2_a_download_that_was_cut_off_is_passed_over(tmp_path, caplog):
    (tmp_path / "cache/cifar_fastai").mkdir(parents=True)
    path = tar(tmp_path / "cache/cifar_fastai" / PY10.archive, PY10, members_of(PY10))
    path.write_bytes(path.read_bytes()[:1000])
    assert "no network" in refusal(load_data, "cifar10")
    assert "passed over" in caplog.text and PY10.md5 in caplog.text


# ---------------------------------------------------------------- F9: not what it should be

def changed(kind, member, rows=None, labels=None, raw=None):
    "A whole archive with one batch changed"
    members = members_of(kind)
    if raw is None:
        r, y = rows_of(kind)[member]
        made = {**rows_of(kind), member: (r if rows is None else rows, y if labels is None else labels)}
        raw = members_of(kind, made)[member]
    return members | {member: raw}


def with_meta(kind, raw): return members_of(kind) | {kind.meta: raw}


P, B = "data_batch_1", "data_batch_1.bin"
four = np.zeros((4, 3072), np.uint8)
WRONG = {
    "label 10": (PY10, changed(PY10, P, labels=[0, 1, 10, 2]), "_batch_1 has label 10, expected 0 to 9"),
    "label -1": (PY10, changed(PY10, "test_batch", labels=[0, -1, 1, 2]), "test_batch has label -1"),
    "label text": (PY10, changed(PY10, "test_batch", labels=[0, b"cat", 1, 2]), "has label b'cat'"),
    "label 100": (PY100, changed(PY100, "test", labels=[0, 1, 2, 100]), "has label 100, expected 0 to 99"),
    "binary label": (BIN10, changed(BIN10, B, labels=[0, 1, 2, 255]), "data_batch_1.bin has label 255"),
    "fine label": (BIN100, changed(BIN100, "train.bin", labels=[0, 1, 2, 100]), "train.bin has label 100"),
    "short rows": (PY10, changed(PY10, P, rows=four[:, 1:]), "data_batch_1 has data of shape (4, 3071)"),
    "flat rows": (PY10, changed(PY10, P, rows=four[0]), "shape (3072,)"),
    "no rows": (PY10, changed(PY10, P, rows=four[:0], labels=[]), "shape (0, 3072)"),
    "a row less": (PY10, changed(PY10, "data_batch_5", rows=four[1:]), "has 3 pictures but 4 labels"),
    "odd bytes": (BIN10, changed(BIN10, B, raw=bytes(3072)), "3,072 bytes, expected whole rows of 3,073"),
    "empty file": (BIN10, changed(BIN10, B, raw=b""), "data_batch_1.bin has 0 bytes"),
    "empty pickle": (PY10, changed(PY10, P, raw=b""), "data_batch_1 is no CIFAR batch"),
    "half a pickle": (PY10, changed(PY10, P, raw=members_of(PY10)[P][:5000]), "no CIFAR batch"),
    "a list": (PY10, changed(PY10, P, raw=pickled([1, 2])), "data_batch_1 is no CIFAR batch"),
    "no data": (PY10, changed(PY10, P, raw=pickled({b"labels": [1]})), "no 'data' array"),
    "no labels": (PY10, changed(PY10, P, raw=pickled({b"data": four})), "4 pictures but no list of labels"),
    "one name": (PY10, with_meta(PY10, pickled({b"label_names": [b"a"]})), "names 1 classes, expected 10"),
    "a name twice": (BIN10, with_meta(BIN10, b"a b c d e f g h i a"), "names 9 classes"),
    "names of ints": (PY10, with_meta(PY10, pickled({b"label_names": [1] * 10})), "names 0 classes"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_F9_wrong_contents_are_refused_by_name(tmp_path, case, packed):
    kind, members, says = WRONG[case]
    path = tar(tmp_path / "a.tar", kind, members) if packed else unpacked(tmp_path, kind, members)
    text = refusal(read_official, path, unverified=True)
    assert says in text and str(path) in text


@pytest.mark.parametrize("member", PY10.members)
def test_F9_a_missing_member_is_named(tmp_path, member):
    members = members_of(PY10)
    del members[member]
    for path in (tar(tmp_path / "a.tar", PY10, members), unpacked(tmp_path, PY10, members)):
        assert f"lacks {member}" in refusal(read_official, path, unverified=True)


def test_F9_an_extra_or_repeated_member_is_refused(tmp_path):
    extra = [(info(f"{PY10.folder}/data_batch_6", 4), b"more")]
    path = tar(tmp_path / "a.tar", PY10, members_of(PY10), extra)
    assert "data_batch_6 is in no CIFAR archive" in refusal(read_official, path, unverified=True)
    path = tar(tmp_path / "b.tar", PY10, members_of(PY10), [(info(f"{PY10.folder}/test_batch", 4), b"more")])
    assert "test_batch is there twice" in refusal(read_official, path, unverified=True)
    path = tar(tmp_path / "c.tar", PY10, members_of(PY10), [(info(f"{PY10.folder}/readme.html", 4), b"fine")])
    assert len(read_official(path, unverified=True).x_train) == 20                      # the control


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_F9_a_truncated_archive_is_refused_wherever_it_ends(tmp_path, suffix):
    path = tar(tmp_path / f"a.{suffix}", PY10, members_of(PY10))
    whole = path.read_bytes()
    read_official(path, unverified=True)
    last = len(whole) if suffix != "tar" else len(whole.rstrip(b"\0"))   # plain tar: the padding may go
    for n in np.linspace(0, last - 1, 23).astype(int):
        path.write_bytes(whole[:n])
        assert str(path) in refusal(read_official, path, unverified=True)


@pytest.mark.parametrize("raw", [b"", b"text, no archive\n" * 99, b"PK\3\4" + bytes(99), bytes(10240)])
def test_F9_other_files_are_refused(tmp_path, raw):
    (tmp_path / "x.bin").write_bytes(raw)
    for flag in (False, True): assert "x.bin" in refusal(load_data, tmp_path / "x.bin", unverified=flag)


# ---------------------------------------------------------------- F10: archives that reach out

readme = "cifar-10-batches-py/readme.html"
HOSTILE = {
    "up": (info("cifar-10-batches-py/../../x", 3), b"bad"), "up at once": (info("../x", 3), b"bad"),
    "absolute": (info("/tmp/cifar_fastai_x", 3), b"bad"), "elsewhere": (info("x/test_batch", 3), b"bad"),
    "symlink": (info(readme, type=tarfile.SYMTYPE, linkname="/etc/passwd"), None),
    "hard link": (info(readme, type=tarfile.LNKTYPE, linkname="/etc/passwd"), None),
    "device": (info(readme, type=tarfile.CHRTYPE, devmajor=1, devminor=5), None),
    "pipe": (info(readme, type=tarfile.FIFOTYPE), None),
    "folder": (info(readme, type=tarfile.DIRTYPE), None),
    "10 GB": (info(readme, 10 * 2**30), None),
    "newline": (info("cifar-10-batches-py/a\nb: all is well", 3), b"bad"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_F10_hostile_members_are_refused_and_nothing_is_written(tmp_path, case):
    path = tar(tmp_path / "a.tar", PY10, members_of(PY10), [HOSTILE[case]])
    before = sorted(tmp_path.rglob("*"))
    says = refusal(read_official, path, unverified=True)
    assert any(s in says for s in ("10,737,418,240 bytes", "is in no CIFAR archive", "is no file"))
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/cifar_fastai_x").exists()


def test_F10_a_symlink_cannot_stand_for_a_batch(tmp_path):
    members = members_of(PY10)
    del members["test_batch"]
    link = info(f"{PY10.folder}/test_batch", type=tarfile.SYMTYPE, linkname="data_batch_1")
    path = tar(tmp_path / "a.tar", PY10, members, [(link, None)])
    assert "test_batch is no file" in refusal(read_official, path, unverified=True)


@pytest.mark.parametrize("kind", ["L", "x", "0"])
def test_F10_a_bomb_is_left_before_it_has_unpacked(tmp_path, monkeypatch, kind):
    "A few KB that unpack to a gigabyte: as a member's data, as its long name, as its pax header"
    head = info("cifar-10-batches-py/test_batch", 2**30, type=kind.encode())
    with gzip.open(tmp_path / "a.tar.gz", "wb") as f:
        f.write(head.tobuf(tarfile.GNU_FORMAT))
        f.write(bytes(8 << 20))
    monkeypatch.setattr(archives, "MOST", 4 << 20)
    assert "bytes, CIFAR needs at most" in refusal(read_official, tmp_path / "a.tar.gz", unverified=True)


def test_F10_unpacked_batches_must_be_files_of_a_fair_size(tmp_path):
    folder = unpacked(tmp_path, PY10, members_of(PY10))
    with open(folder / "data_batch_1", "wb") as f: f.truncate(10 * 2**30)      # sparse: takes no disk
    assert "10,737,418,240 bytes" in refusal(read_official, folder, unverified=True)
    (folder / "data_batch_1").unlink()
    os.mkfifo(folder / "data_batch_1")
    assert "data_batch_1 is no file" in refusal(read_official, folder, unverified=True)


# ---------------------------------------------------------------- F11: pickles that call

class Calls:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_F11_a_pickle_that_calls_is_refused_not_run(tmp_path, protocol):
    trap = str(tmp_path / "ran")
    raw = pickle.dumps({"data": Calls(trap), "labels": []}, protocol)
    folder = tar(tmp_path / "a.tar", PY10, changed(PY10, "data_batch_1", raw=raw))
    says = refusal(read_official, folder, unverified=True)
    assert "data_batch_1 asks for posix.mkdir" in says and "not run" in says and not os.path.exists(trap)
    pickle.loads(raw)
    assert os.path.exists(trap)                                           # the control: this one does run


@pytest.mark.parametrize("raw, says", [
    (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
    (b"(S'true'\nios\nsystem\n.", "os.system"),
    (b"cbuiltins\neval\n.", "builtins.eval"),
    (b"c_codecs\nencode\n.", "_codecs.encode"),
    (b"cnumpy\nload\n.", "numpy.load"),
    (b"cnumpy.core.multiarray\nscalar\n.", "numpy.core.multiarray.scalar"),
    (b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.", "numpy.ndarray.dump"),
    (b"c" + b"a\x1b[2J" * 400 + b"\nb\n.", "asks for"),
    (b"}r\xff\xff\xff\xff.", "memo index"),                               # would take 64 GB
    (b"}p999999999\n.", "memo index"),
    (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "no CIFAR batch"),         # bytes of 2**63
    (b"Pid\n.", "no CIFAR batch"), (b"\x82\x01.", "no CIFAR batch"), (b"." * 5, "no CIFAR batch"),
    (b"(" * 9999 + b".", "no CIFAR batch"), (b"](" * 9999 + b"l" * 9999 + b".", "no CIFAR batch"),
    (b"cnumpy\nndarray\n}b.", "no CIFAR batch")])
def test_F11_every_other_name_and_trick_is_refused(raw, says):
    assert says in refusal(batches.python_rows, raw, 10, "the batch")


def test_F11_known_names_used_wrongly_give_no_array():
    good = pickled({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]})
    assert len(batches.python_rows(good, 10, "x")[0]) == 1
    width = b"J" + struct.pack("<i", 3072)
    for old, new in [(b"U\x02u1", b"U\x02O8"), (width, b"J\xff\xff\xff\x7f"), (width, b"J\xfe\xff\xff\xff"),
                     (width, b"N"), (b"tb", b"t0"), (b"U\x02u1", b"K\x07")]:
        assert old in good
        refusal(batches.python_rows, good.replace(old, new), 10, "x")


# ---------------------------------------------------------------- F12, F27: no network, no home

def test_F12_without_a_network_one_line_says_what_was_tried_and_what_to_do():
    says = refusal(load_data, "cifar10")
    for part in ("no network here", ".cache/torch", ".fastai/data", "CIFAR10_DIR is not set", "digits"):
        assert part in says


def test_F27_without_a_home_data_still_loads_and_a_download_says_why_not(tmp_path, monkeypatch, caplog):
    picture_folder(tmp_path / "d")
    for name in ("HOME", "XDG_CACHE_HOME"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda p: os.fspath(p))    # nor an entry in the list of users
    assert len(load_data(tmp_path / "d").x_train) == 6 and "not cached" in caplog.text
    assert "set XDG_CACHE_HOME" in refusal(load_data, "cifar10")
    assert all("~" not in str(p) for p in search.places()) and not Path("~").exists()


# ---------------------------------------------------------------- F15: pictures of every kind

GREY = Image.fromarray(some_pixels(c=1))
KINDS_OF_PICTURE = {
    "33x32": Image.fromarray(some_pixels(32, 33)), "1x1": Image.new("RGB", (1, 1), (9, 8, 7)), "L": GREY,
    "1": GREY.convert("1"), "LA": GREY.convert("LA"), "RGBA": GREY.convert("RGBA"), "P": GREY.convert("P"),
    "I;16": Image.fromarray(some_pixels(c=1).astype(np.uint16) * 257), "CMYK": GREY.convert("CMYK"),
    "tall": Image.new("RGB", (1, 3000)), "wide": Image.new("L", (3000, 2)),
}


@pytest.mark.parametrize("case", KINDS_OF_PICTURE)
def test_F15_odd_pictures_in_a_folder_are_read_by_the_one_rule(tmp_path, case):
    picture_folder(tmp_path / "d")
    name = f"odd.{'tif' if case == 'CMYK' else 'png'}"
    KINDS_OF_PICTURE[case].save(tmp_path / "d/train/cat" / name)
    data = load_data(tmp_path / "d")
    at = data.files_train.index(f"train/cat/{name}")
    assert data.x_train[at].shape == (32, 32, 3)
    assert np.array_equal(data.x_train[at], read_picture(KINDS_OF_PICTURE[case]))


png = file_of(Image.fromarray(some_pixels()))
BAD = {"zero bytes": b"", "truncated": png[:len(png) // 2], "no image data": png[:60], "text": b"hello" * 99,
       "damaged": png[:300] + bytes(50) + png[350:],
       "jpeg cut": file_of(Image.fromarray(some_pixels()), "JPEG")[:500],
       "a billion pixels": png[:16] + struct.pack(">II", 40000, 30000) + png[24:],
       "100 million": file_of(Image.new("1", (10000, 10000)))}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD)
def test_F15_unreadable_pictures_are_refused_by_name_and_leave_no_cache(tmp_path, case):
    picture_folder(tmp_path / "d")
    (tmp_path / "d/test/dog/bad one.png").write_bytes(BAD[case])
    assert "cannot read " + str(tmp_path / "d/test/dog/bad one.png") in refusal(load_data, tmp_path / "d")
    assert not cache_dir().exists()


def test_F15_links_to_nowhere_pipes_and_folders_are_refused_by_name(tmp_path):
    picture_folder(tmp_path / "d")
    odd = tmp_path / "d/train/cat/odd.png"
    for make in (lambda: odd.symlink_to("nowhere"), lambda: os.mkfifo(odd), odd.mkdir):
        make()
        assert "odd.png" in refusal(load_data, tmp_path / "d")
        odd.rmdir() if odd.is_dir() else odd.unlink()


# ---------------------------------------------------------------- F16: class folders

def test_F16_folders_that_do_not_fit_are_refused_by_name(tmp_path):
    root = tmp_path / "d"
    layout = "Give a folder with train/<class>/* and test/<class>/*."
    assert "is not there" in refusal(load_data, root)
    root.mkdir()
    assert f"no train/ and test/ and no CIFAR files (found: nothing). {layout}" in refusal(load_data, root)
    (root / "train").mkdir()
    (root / "test").mkdir()
    assert "has 0 classes, not 2 or more" in refusal(load_data, root)
    for p in ("train/cat", "test/cat"): (root / p).mkdir()
    assert "has 1 classes, not 2 or more" in refusal(load_data, root)
    for p in ("train/dog", "test/dog"): (root / p).mkdir()
    assert f"class folder {root}/train/cat is empty" in refusal(load_data, root)


@pytest.mark.parametrize("less, more", [("train", "test"), ("test", "train")])
def test_F16_a_class_that_is_missing_is_named_with_both_counts(tmp_path, less, more):
    picture_folder(tmp_path / "d", classes=[f"c{i}" for i in range(9)], n=1)
    (tmp_path / "d" / more / "frog").mkdir()
    (tmp_path / "d" / more / "frog/1.png").write_bytes(png)
    assert refusal(load_data, tmp_path / "d") == (
        f"data folder {tmp_path}/d has 9 classes in {less}/ but 10 in {more}/ (missing: frog). "
        "Give a folder with train/<class>/* and test/<class>/*.")


def test_F16_classes_of_other_names_and_files_beside_them(tmp_path):
    picture_folder(tmp_path / "d")
    (tmp_path / "d/test/cat").rename(tmp_path / "d/test/Cat")
    assert "class 'cat' in train/ is 'Cat' in test/" in refusal(load_data, tmp_path / "d")
    (tmp_path / "d/test/Cat").rename(tmp_path / "d/test/cat")
    (tmp_path / "d/test/stray.png").write_bytes(png)
    assert "stray.png lies outside the class folders" in refusal(load_data, tmp_path / "d")


# ---------------------------------------------------------------- F25: leakage

def test_F25_training_holdout_and_test_pictures_are_disjoint():
    for data in (load_data("digits"), some_data()):
        train, held = data.holdout(100)
        parts = [pictures(x) for x in (data.x_train[train], data.x_train[held], data.x_test)]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
        assert len(set.union(*parts)) == len(data.x_train) + len(data.x_test)


def test_F25_a_picture_that_is_there_twice_is_never_on_both_sides():
    data = some_data(n=300)
    x = data.x_train.copy()
    x[200:] = x[:100]                                                     # some also under another class
    twice = replace(data, x_train=x)
    train, held = twice.holdout(60)
    assert not pictures(x[train]) & pictures(x[held])
    assert sorted([*train, *held]) == list(range(300)) and 10 < len(held) < 60
    assert "there twice" in refusal(replace(data, x_train=x * 0).holdout, 60)


def test_F25_the_split_is_fixed_by_seed_not_by_file_order():
    data = load_data("digits")
    held, other, seeded = (pictures(d.x_train[d.holdout(200, seed=s)[1]])
                           for d, s in ((data, 0), (shuffled(data), 0), (data, 1)))
    assert held == other and held != seeded


def test_F25_test_pictures_among_the_training_pictures_are_counted(tmp_path, caplog):
    picture_folder(tmp_path / "d")
    load_data(tmp_path / "d")
    assert "byte-identical" not in caplog.text
    (tmp_path / "d/train/dog/leak.png").write_bytes((tmp_path / "d/test/cat/0.png").read_bytes())
    for _ in range(2):                                                    # also when it comes from the cache
        caplog.clear()
        data = load_data(tmp_path / "d")
        assert "1 of 2 test pictures" in caplog.text
        assert shared_pictures(data.x_train, data.x_test).tolist() == [0]


# ---------------------------------------------------------------- F30: anything at all

ARCHIVES = {kind.folder: members_of(kind, rows_of(kind, n=1)) for kind in (PY10, BIN10)}


def packed(kind, form):
    with tempfile.TemporaryDirectory() as d:
        return tar(Path(d) / f"a.{form}", kind, ARCHIVES[kind.folder]).read_bytes()


BASES = [packed(k, f) for k in (PY10, BIN10) for f in ("tar", "tar.gz", "tar.xz")]
place, byte = st.integers(0, 2**20), st.integers(0, 255)
damage = st.tuples(place, st.lists(st.tuples(place, byte), max_size=6))


def damaged(base, how):
    "`base` with some bytes replaced, then perhaps cut"
    cut, bytes_at = how
    raw = bytearray(base)
    for at, value in bytes_at: raw[at % len(raw)] = value
    return bytes(raw[:cut % (2 * len(raw))])


def reads_or_refuses(read, raw, valid):
    "Anything but a result that holds or an `InputError` of one line is a failure"
    try: got = read(raw)
    except InputError as e: assert "\n" not in str(e)
    else: assert valid(got)


def from_file(raw):
    with tempfile.NamedTemporaryFile() as f:
        f.write(raw)
        f.flush()
        return read_official(f.name, unverified=True)


def sound(got): return got.x_train.shape[1:] == (32, 32, 3) and len(got.x_train) == len(got.y_train) > 0


def archive_case(raw, base, how):
    reads_or_refuses(from_file, raw, sound)
    reads_or_refuses(from_file, damaged(base, how), sound)


def batch_case(raw, how):
    for data in (raw, b"\x80\x02" + raw, damaged(ARCHIVES[PY10.folder]["data_batch_1"], how)):
        reads_or_refuses(lambda r: batches.python_rows(r, 10, "x"), data, lambda g: len(g[0]) == len(g[1]))
    reads_or_refuses(lambda r: batches.binary_rows(r, 100, "x"), raw, lambda got: got[1].max() < 100)


def picture_case(raw, base, how):
    for data in (raw, base[:8] + raw, damaged(base, how)):
        reads_or_refuses(read_picture, data, lambda got: got.shape == (32, 32, 3) and got.dtype == np.uint8)


FORMS = [file_of(Image.fromarray(some_pixels(16, 16)), f)
         for f in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
CASES = {"archive": (archive_case, (st.binary(max_size=2000), st.sampled_from(BASES), damage)),
         "batch": (batch_case, (st.binary(max_size=500), damage)),
         "picture": (picture_case, (st.binary(max_size=500), st.sampled_from(FORMS), damage))}


def fuzz(case, n):
    test, given_ = CASES[case]
    settings(max_examples=n, deadline=None, derandomize=True, database=None,
             suppress_health_check=list(HealthCheck))(given(*given_)(test))()


@pytest.mark.filterwarnings("ignore")   # Pillow warns of what is odd in a picture
@pytest.mark.parametrize("case", CASES)
def test_F30_any_bytes_are_read_or_refused(case): fuzz(case, 100)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")   # Pillow warns of what is odd in a picture
@pytest.mark.parametrize("case", CASES)
def test_F30_any_bytes_are_read_or_refused_a_thousand_times(case): fuzz(case, 1000)
