"""Each row of the tables in docs/your-own-pictures.md, tried: taken, passed over or refused, as it says."""
import os
import re
import stat
import unicodedata
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made import alone, file_of, some_pixels  # noqa: F401  alone is a fixture
from PIL import Image

from cifar_fastai.data import picture_cache
from cifar_fastai.data.image_data import content_keys
from cifar_fastai.data.label_tables import labels_in
from cifar_fastai.data.sources import load_data
from cifar_fastai.errors import InputError

pytestmark = [pytest.mark.usefixtures("alone"),
              pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")]

PAGE = Path(__file__).parents[2] / "docs/your-own-pictures.md"
ROWS = dict(re.findall(r"^\| (?!In the folder)(.+?) \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.M))
CASES = {}
SPLIT = "are split off to test, by class and content"


def case(row):
    "What it decorates makes a folder (or returns another source) and says what comes of it"
    def add(make):
        assert row not in CASES
        CASES[row] = make
        return make
    return add


def picture(seed=0): return file_of(Image.fromarray(some_pixels(8, 8, seed=seed)))


def fill(root, *folders, n=5, first=0):
    "`n` pictures in each folder, no two alike"
    for k, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(n): (root / folder / f"{i}.png").write_bytes(picture(first + 1000 * k + i))


def whole(root, train="train", test="test", classes=("cat", "dog")):
    fill(root, *[f"{train}/{c}" for c in classes])
    fill(root, *[f"{test}/{c}" for c in classes], n=2, first=500)


def add(root, name, content):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content if isinstance(content, bytes) else file_of(content))


def taken(train=10, test=4, classes=("cat", "dog"), says=(), check=None):
    "So many pictures, and these lines or none at all"
    says = [says] if isinstance(says, str) else says
    return {"train": train, "test": test, "classes": classes, "says": says, "check": check}


def refused(says): return {"refused": says}


# ---------------------------------------------------------------- folders

@case("`train/<class>/*` and `test/<class>/*`")
def _(root): return whole(root), taken()


@case("`train/` and `valid/`, `val/` or `validation/`")
def _(root):
    for name in ("valid", "val", "validation"):
        whole(root / name / "d", test=name)
        yield root / name / "d", taken()


@case("`training/` and `testing/`, `Train/` and `TEST/`")
def _(root):
    for a, b in (("training", "testing"), ("Train", "TEST"), ("TRAINING", "Val")):
        whole(root / a, a, b)
        yield root / a, taken()


@case("`seg_train/` and `seg_test/`, `training_set/` and `test_set/`")
def _(root):
    whole(root / "a", "seg_train/seg_train", "seg_test/seg_test")
    whole(root / "b", "training_set", "test_set")
    yield root / "a", taken()
    yield root / "b", taken()


@case("`train/`, `valid/` and `test/` together")
def _(root):
    whole(root)
    fill(root, "valid/cat", "valid/dog", first=100)
    return None, taken(says="valid/ is passed over: of several sets beside the training set, test/ tests")


@case("`train/<class>/*` and `test/*` without classes")
def _(root):
    fill(root, "train/cat", "train/dog", "test")
    return None, taken(8, 2, says=["test/ is passed over: nothing says the classes", SPLIT])


@case("Class folders without any split")
def _(root):
    fill(root, "cat", "dog", n=10)
    return None, taken(16, 4, says=[SPLIT, "4 of its 20 pictures", "--data-split"])


@case("`train/<class>/*` alone, or beside other folders")
def _(root):
    fill(root / "a", "train/cat", "train/dog")
    yield root / "a", taken(8, 2, says=SPLIT)
    fill(root / "b", "train/cat", "train/dog", "masks", "unlabelled")
    yield root / "b", taken(8, 2, says=["what lies beside train/: masks/, unlabelled/", SPLIT])


@case("Class folders of which one is called `train` or `test`")
def _(root):
    fill(root / "a", "bus", "car", "train")
    yield root / "a", taken(12, 3, ("bus", "car", "train"), SPLIT)
    fill(root / "b", "crash test", "test", "drive")
    yield root / "b", taken(12, 3, ("crash test", "drive", "test"), SPLIT)


@case("All of it in one further folder, `pets/train/…`")
def _(root): return whole(root / "pets/data"), taken()


def kaggle(root, table, name="train.csv", n=6):
    fill(root, "train", n=n)
    fill(root, "test", first=700)
    add(root, name, table.encode())


LABELS = [("0", "cat"), ("1", "dog"), ("2", "cat"), ("3", "dog"), ("4", "cat"), ("5", "dog")]


@case("`train/*.png` beside `train.csv` of file name and class (Kaggle)")
def _(root):
    lines = ["id,label", *map(",".join, LABELS)]
    tables = {"stems": "\n".join(lines), "bom": "\ufeff" + "\r\n".join(lines),
              "paths": "\n".join(f"{c}\ttrain/{i}.png" for i, c in LABELS),
              "more": "\n".join(["row;file;width;label", *(f"x;{i}.png;8;{c}" for i, c in LABELS), "9;9"])}
    for kind, table in tables.items():
        kaggle(root / kind, table)
        add(root / kind, "test.csv", b"id\n0\n1\n")
        yield root / kind, taken(4, 2, check=by_number, says=[
            "the classes of 6 pictures of train/ are those of train.csv", SPLIT, "test/ is passed over"])


def by_number(data):
    "Even pictures are cats"
    for y, name in zip([*data.y_train, *data.y_test], [*data.files_train, *data.files_test]):
        assert data.classes[y] == ("cat", "dog")[int(Path(name).stem) % 2]


@case("`images/*.png` beside `labels.csv`")
def _(root):
    fill(root / "a", "images", n=6)
    fill(root / "b", "", n=6)
    for name in "ab":
        add(root / name, "labels.csv", "\n".join(["name,label", *map(",".join, LABELS)]).encode())
        yield root / name, taken(4, 2, says=["those of labels.csv", SPLIT], check=by_number)


@case("`images/*.png` and `labels.csv` in one folder")
def _(root):
    for name, inside in (("a", "images"), ("b", "train/images")):
        fill(root / name, inside, n=6)
        add(root / name, f"{inside}/labels.csv", "\n".join(["name,label", *map(",".join, LABELS)]).encode())
        for k in range(6): add(root / name, f"{inside}/{k}.txt", b"0 .5 .5 .1 .1\n")     # boxes: no table
        yield root / name, taken(4, 2, check=by_number, says=[
            f"those of {inside}/labels.csv", SPLIT, f"6 files that are no picture by name: {inside}/0.txt"])


@case("`images/` beside `masks/`, `labels/`, `annotations/`, `segmentations/` or `trimaps/`")
def _(root):
    for name in ("masks", "Labels", "annotation"):
        fill(root / name, "images", name)
        add(root / name, "labels.csv", "\n".join(["name,label", *map(",".join, LABELS)]).encode())
        yield root / name, refused(f"/{name}/ and the images beside it are no classes. Give the images alone")
    fill(root / "classes", "image", "text", "table")
    assert load_data(root / "classes").classes == ("image", "table", "text")


@case("`train/<class>/images/*` and `val/images/*` beside `val_annotations.txt` (Tiny-ImageNet)")
def _(root):
    fill(root, "train/n01/images", "train/n02/images", "val/images", "test/images")
    for c in ("n01", "n02"): add(root, f"train/{c}/{c}_boxes.txt", b"0.png\t0\t0\t8\t8\n")
    add(root, "val/val_annotations.txt",
        "".join(f"{i}.png\tn0{1 + i % 2}\t0\t0\t62\t62\n" for i in range(5)).encode())
    add(root, "wnids.txt", b"n01\nn02\n")

    def check(data): assert data.y_test.tolist() == [0, 0, 0, 1, 1]
    return None, taken(10, 5, ("n01", "n02"), check=check, says=[
        "folders within a class folder are of its class: train/n01/, train/n02/", "val/val_annotations.txt",
        "test/ is passed over", "2 files that are no picture by name: train/n01/n01_boxes.txt"])


@case("`sample_submission.csv`")
def _(root):
    kaggle(root, "\n".join(["id,label", *map(",".join, LABELS)]))
    for name in ("sample_submission.csv", "sampleSubmission.csv"):
        add(root, name, "\n".join(["id,label", *(f"{i},cat" for i in range(9))]).encode())
    return None, taken(4, 2, says=["those of train.csv", "test/ is passed over"], check=by_number)


@case("A table that gives a picture no class or two, or has several columns that may be the class, "
      "or two that may be the file names")
def _(root):
    rows = "\n".join(map(",".join, LABELS))
    tables = {"none": ("id,label\n0,cat\n1,\n2,cat\n3,cat\n4,cat\n5,dog", "gives 1.png no class"),
              "absent": ("id,label\n0,cat\n1,dog\n2,cat\n", "no class for 3 of 6 pictures (3.png)"),
              "two": (f"id,label\n{rows}\n0,dog", "two classes, cat and dog"),
              "columns": ("id,a,b\n" + rows.replace(",", ",x,"), "may be the class (a, b)"),
              "names": ("a,b,label\n" + "\n".join(f"{5 - int(i)},{i},{c}" for i, c in LABELS),
                        "two columns that may be the file names, the 1. and the 2.")}
    for kind, (table, says) in tables.items():
        kaggle(root / kind, table)
        yield root / kind, refused(says)


@case("Two tables that give other classes")
def _(root):
    kaggle(root, "id,label\n" + "\n".join(map(",".join, LABELS)))
    add(root, "sizes.csv", ("id,width,height\n" + "\n".join(f"{i},8,8" for i, _ in LABELS)).encode())
    assert len(load_data(root).x_train) == 4                        # that one is no table of classes
    add(root, "labels.csv", ("id,label\n" + "\n".join(f"{i},x{c}" for i, c in LABELS)).encode())
    return None, refused("labels.csv and train.csv differ in the classes they give")


@case("Pictures without class folder and table, `cat.1.jpg`")
def _(root):
    for name in ("", "train", "images"):
        fill(root / f"d{name}", name)
        add(root / f"d{name}", "notes.csv", b"a,b\nc,d\n")
        yield root / f"d{name}", refused("lie in no class folders and no table gives their classes. Put")


@case("Two folders that may each be the test set, `test/` and `testing/`")
def _(root):
    whole(root)
    fill(root, "testing/cat", "testing/dog")
    return None, refused("test/ and testing/: each may be the test set")


@case("`test/` without `train/`")
def _(root): return fill(root, "test/cat", "test/dog"), refused("has test/ but no train/")


def zipped(root, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for p in sorted(root.rglob("*")): z.write(p, p.relative_to(root))
    return path


@case("A `.zip` of any of these")
def _(root):
    whole(root / "a/pets")
    add(root / "a", "__MACOSX/pets/train/cat/._0.png", b"x")
    path = zipped(root / "a", root / "pets.zip")
    loose, packed = load_data(root / "a"), load_data(path)
    assert packed.fingerprint == loose.fingerprint == load_data(path).fingerprint     # and from its cache
    yield path, taken()
    fill(root / "b", "cat", "dog")
    yield zipped(root / "b", root / "without suffix"), taken(8, 2, says=SPLIT)


def entry(name, kind=stat.S_IFREG):
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o644) << 16
    return info


@case("A `.zip` with `../`, absolute or doubled names, links, encryption or a member over 100 MB")
def _(root):
    outside = root.parent / "evil.png"
    unsafe = "../evil.png", str(outside), "train/../../evil.png", "C:/evil.png", "train\\evil.png"
    odd = dict.fromkeys(unsafe, "no safe name")
    odd |= dict.fromkeys(("train/cat", "train/cat/0.png"), "is there twice")
    odd |= {"train/cat/0.png/x.png": "lies in a file"}
    entries = [(entry(name), picture(), says) for name, says in odd.items()]
    entries += [(entry("train/cat/link.png", stat.S_IFLNK), b"/etc/passwd", "is no file"),
                (entry("train/cat/big.png"), bytes(100_000_001), "has over 100,000,000 bytes")]
    whole(root / "d")
    for k, (info, content, says) in enumerate(entries):
        path = zipped(root / "d", root / f"{k}.zip")
        with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as z:
            warnings.simplefilter("ignore")                             # zipfile says that a name is doubled
            z.writestr(info, content, zipfile.ZIP_DEFLATED)
        yield path, refused(says)
        assert not outside.exists()
    raw = bytearray(zipped(root / "d", root / "locked.zip").read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    add(root, "locked.zip", bytes(raw))
    yield root / "locked.zip", refused("is encrypted")


@case("A damaged `.zip`")
def _(root):
    whole(root / "d")
    raw = zipped(root / "d", root / "d.zip").read_bytes()
    add(root, "cut.zip", raw[:len(raw) // 2])
    yield root / "cut.zip", refused("is no whole .zip")
    at = raw.index(b"train/cat/0.png") + 60
    add(root, "bad.zip", raw[:at] + bytes(20) + raw[at + 20:])
    yield root / "bad.zip", refused("cannot read")
    add(root, "text.zip", b"hello")
    yield root / "text.zip", refused("is no whole .zip")


@case("A `.tar.gz`, `.7z` or any other file")
def _(root):
    for name in ("pets.tar.gz", "pets.7z", "cat.png", "labels.csv"):
        add(root, name, b"\x1f\x8b anything")
        yield root / name, refused("If it holds pictures, unpack it and give the folder, or a .zip")


@case("A folder with nothing but archives")
def _(root):
    for name in ("train.7z", "test.7z", "trainLabels.csv"): add(root, name, b"x")
    return None, refused("Unpack test.7z first")


@case("Nothing")
def _(root):
    root.mkdir()
    return None, refused("no CIFAR files (found: nothing)")


# ---------------------------------------------------------------- classes

@case("Class names that are numbers")
def _(root): return whole(root, classes=("2", "10", "1")), taken(15, 6, ("1", "10", "2"))


@case("A hundred classes")
def _(root):
    names = tuple(f"c{i:02}" for i in range(100))
    fill(root, *names)

    def check(data): assert (np.bincount(data.y_test) == 1).all() and (np.bincount(data.y_train) == 4).all()
    return None, taken(400, 100, names, SPLIT, check=check)


@case("Class names with blanks, umlauts, other scripts")
def _(root):
    names = ("größe x", "кот", "犬")
    return whole(root, classes=names), taken(15, 6, names)


@case("A class name that cannot be printed")
def _(root):
    for k, name in enumerate(("a\nb", "\x1b[2J", os.fsdecode(b"caf\xe9"))):
        whole(root / str(k), classes=("cat", name))
        yield root / str(k), refused(f"class name {ascii(name)} cannot be printed")


@case("`cat` in `train/` and `Cat` in `test/`, or a trailing blank, or another Unicode form")
def _(root):
    nfd = unicodedata.normalize("NFD", "möwe")
    for k, (a, b, says) in enumerate((("cat", "Cat", "upper and lower case"), ("cat", "cat ", "blanks"),
                                      ("möwe", nfd, "their Unicode form"))):
        fill(root / str(k), f"train/{a}", "train/dog", f"test/{b}", "test/dog")
        yield root / str(k), refused(f"class {a!r} in train/ is {b!r} in test/: they differ in {says}.")


@case("`cat` and `Cat` as two classes of one set")
def _(root):
    whole(root, classes=("Cat", "cat"))
    if len(os.listdir(root / "train")) == 1: pytest.skip("this file system takes them for one")
    return None, taken(classes=("Cat", "cat"), says="classes 'Cat' and 'cat' differ in upper and lower case")


@case("A class that only one set has")
def _(root):
    whole(root)
    fill(root, "train/frog")
    return None, refused("has 2 classes in test/ but 3 in train/ (missing: frog)")


@case("One class alone")
def _(root):
    fill(root / "a", "cat")
    fill(root / "b", "train/cat", "test/cat")
    for name in "ab": yield root / name, refused("has 1 classes, not 2 or more")


@case("A class folder without pictures")
def _(root):
    fill(root, "cat", "dog")
    add(root, "frog/readme.txt", b"x")
    return None, refused("frog is empty: no pictures. Fill or remove it.")


@case("A class of one picture, without a test set")
def _(root):
    fill(root, "cat", "dog", n=10)
    fill(root, "frog", n=1, first=5000)

    def check(data): assert 2 in data.y_train and 2 not in data.y_test
    return None, taken(17, 4, ("cat", "dog", "frog"), ["too few pictures to test class frog", SPLIT], check)


@case("A picture that is there twice, without a test set")
def _(root):
    for c in ("cat", "dog"):
        fill(root, c, n=10, first=0 if c == "cat" else 100)
        for i in range(10): add(root, f"{c}/again{i}.png", (root / c / f"{i}.png").read_bytes())

    def check(data):
        assert not {p.tobytes() for p in data.x_train} & {p.tobytes() for p in data.x_test}
        assert len(data.x_train) + len(data.x_test) == 40 and len(data.x_test) >= 4
    return None, taken(None, None, says=SPLIT, check=check)


@case("A picture in `train/` and in `test/`")
def _(root):
    whole(root)
    add(root, "train/cat/leak.png", (root / "test/cat/0.png").read_bytes())
    return None, taken(11, says="1 of 4 test pictures")


# ---------------------------------------------------------------- files

@case("`.DS_Store`, `Thumbs.db`, `__MACOSX/`, `.ipynb_checkpoints/`, `@eaDir/`")
def _(root):
    whole(root)
    for name in (".DS_Store", "Thumbs.db", "__MACOSX/._0.png", ".ipynb_checkpoints/0.png", "@eaDir/0.png"):
        for folder in ("", "train/", "train/cat/"): add(root, folder + name, b"x")
    return None, taken()


@case("Files that are no pictures by name, `README.txt`, `labels.csv`")
def _(root):
    whole(root)
    for name in ("train/README.txt", "train/cat/labels.csv", "test/dog/a.bak", "test/dog/b"):
        add(root, name, b"x")
    return None, taken(says="passed over: 4 files that are no picture by name: train/README.txt, "
                            "train/cat/labels.csv, test/dog/a.bak and 1 more")


@case("Anything beside `train/` and `test/`")
def _(root):
    whole(root)
    for name in ("logo.svg", "README.md", "raw/x.heic", "models/net.pth", "labels.csv"): add(root, name, b"x")
    return None, taken()


@case("A file with a picture's name that is empty, cut short or no picture")
def _(root):
    whole(root)
    for raw in (b"", picture()[:60], b"hello"):
        add(root, "train/cat/bad one.png", raw)
        yield root, refused(f"cannot read {root}/train/cat/bad one.png")
        yield zipped(root, root.parent / f"{len(raw)}.zip"), refused("zip/train/cat/bad one.png")


@case("Pictures that are not read: `.heic`, `.svg`, `.psd`, camera raw")
def _(root):
    for suffix in (".heic", ".SVG", ".psd", ".dng"):
        whole(root / suffix[1:])
        add(root / suffix[1:], f"train/cat/a{suffix}", b"x")
        yield root / suffix[1:], refused(f"a{suffix} is of a format that is not read. Convert it to PNG")


def one_more(name, content, check):
    "The folder of two classes with one more training picture; `check(its pixels)`"
    def make(root):
        whole(root)
        add(root, f"train/cat/{name}", content)
        return None, taken(11, check=lambda d: check(d.x_train[d.files_train.index(f"train/cat/{name}")]))
    return make


def plain(*color):
    def check(x): assert np.abs(x.astype(int) - color).max() <= 3
    return check


def red(form, **kwargs): return file_of(Image.new("RGB", (8, 8), (200, 0, 0)), form, **kwargs)


RED = plain(200, 0, 0)
case("A picture under another format's suffix, a JPEG called `.png`")(one_more("a.png", red("JPEG"), RED))
case("`.JPG`")(one_more("A.JPG", red("JPEG"), RED))
case("File names with blanks, umlauts, other scripts")(one_more("größe 犬 1.png", red("PNG"), RED))


@case("A picture beside the class folders")
def _(root):
    fill(root / "a", "cat", "dog")
    whole(root / "b")
    add(root / "a", "stray.png", picture())
    add(root / "b", "test/stray.png", picture())
    for name in "ab": yield root / name, refused("stray.png lies outside the class folders. Move or")


@case("Folders within a class folder")
def _(root):
    whole(root)
    fill(root, "train/cat/black/young", first=300)
    return None, taken(15, says="folders within a class folder are of its class: train/cat/",
                       check=lambda d: np.testing.assert_array_equal(np.bincount(d.y_train), [10, 5]))


@case("A folder with a picture's name")
def _(root):
    whole(root)
    (root / "train/cat/a.png").mkdir()
    return None, refused("train/cat/a.png is a folder")


@case("Links to pictures and to folders")
def _(root):
    whole(root)
    fill(root.parent / "elsewhere", "frog", first=3000)
    for split in ("train", "test"): (root / split / "frog").symlink_to(root.parent / "elsewhere/frog")
    (root / "train/cat/link.png").symlink_to(root.parent / "elsewhere/frog/0.png")
    return None, taken(16, 9, ("cat", "dog", "frog"), says="5 of 9 test pictures")


@case("Links in a circle")
def _(root):
    whole(root)
    (root / "train/cat/all").symlink_to(root / "train")
    return None, refused("links to a folder around it. Remove the link.")


@case("A link to nowhere, or a pipe, with a picture's name")
def _(root):
    whole(root)
    odd = root / "train/cat/odd.png"
    for make in (lambda: odd.symlink_to("nowhere"), lambda: os.mkfifo(odd)):
        make()
        yield root, refused("odd.png")
        odd.unlink()
    (root / "train/cat/notes.txt").symlink_to("nowhere")
    yield root, taken(says="1 file that is no picture by name: train/cat/notes.txt")


# ---------------------------------------------------------------- pictures

def halves(x): assert (x[:, :14] < 15).all() and (x[:, 18:] > 240).all()


WIDE = np.zeros((20, 90, 3), np.uint8)
WIDE[:, 45:] = 255
case("Any width and height")(one_more("a.png", Image.fromarray(WIDE), halves))


@case("Grey, black and white, palette, CMYK")
def _(root):
    for mode in ("L", "1", "P", "CMYK"):
        content = file_of(Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode), "TIFF")
        yield root / mode, one_more("a.tif", content, plain(255, 255, 255))(root / mode)[1]


SIXTEEN = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))
case("16 bits a channel")(one_more("a.png", SIXTEEN, plain(100, 100, 100)))


@case("32-bit floats")
def _(root):
    whole(root)
    add(root, "train/cat/a.tif", file_of(Image.new("F", (8, 8), .5), "TIFF"))
    return None, refused("a.tif: 32-bit float pictures have no known range")


@case("Animations and several pages")
def _(root):
    frames = [Image.new("RGB", (8, 8), c) for c in ((200, 0, 0), (0, 0, 200))]
    for form in ("GIF", "WEBP", "TIFF", "PNG"):
        content = file_of(frames[0], form, save_all=True, append_images=frames[1:])
        yield root / form, one_more(f"a.{form.lower()}", content, RED)(root / form)[1]


def turned():
    x = np.zeros((90, 20, 3), np.uint8)
    x[:45] = 255
    exif = Image.Exif()
    exif[274] = 6
    return file_of(Image.fromarray(x), "PNG", exif=exif)


case("Turned by EXIF")(one_more("a.png", turned(), halves))


def ink(color):
    x = np.zeros((32, 32, 4), np.uint8)
    x[8:24, 8:24] = (*color, 255)
    return Image.fromarray(x)


def laid(ground, color):
    def check(x): assert (x[0, 0] == ground).all() and (x[16, 16] == color).all()
    return check


case("Transparent parts")(one_more("a.png", ink((200, 100, 0)), laid(0, (200, 100, 0))))


@case("Black ink on a transparent ground")
def _(root):
    nothing = Image.new("RGBA", (8, 8))
    for k, (content, check) in enumerate((
            (ink((0, 0, 0)), laid(255, (0, 0, 0))), (ink((31, 20, 9)), laid(255, (31, 20, 9))),
            (ink((32, 0, 0)), laid(0, (32, 0, 0))), (nothing, plain(0, 0, 0)))):
        yield root / str(k), one_more("a.png", content, check)(root / str(k))[1]


@case("More than 89 million pixels")
def _(root):
    whole(root)
    add(root, "train/cat/a.png", Image.new("1", (10_000, 9_000)))
    return None, refused("10000×9000 pixels are too many")


@case("A colour channel that is the same in all pictures")
def _(root):
    whole(root)
    for p in root.rglob("*.png"):
        x = np.asarray(Image.open(p)).copy()
        x[..., 2] = 7
        add(p.parent, p.name, Image.fromarray(x))

    def check(data): assert data.std[2] == 1 and data.mean[2] == 7 / 255 and 0 < data.std[0] < 1
    return None, taken(says="a colour channel of", check=check)


# ---------------------------------------------------------------- the tables are the tests

def test_every_row_has_its_test_and_every_test_its_row():
    assert len(ROWS) > 50 and sorted(ROWS) == sorted(CASES)


@pytest.mark.parametrize("row", CASES)
def test_a_row(row, tmp_path, caplog):
    root, result = tmp_path / "d", CASES[row](tmp_path / "d")
    verdict = re.match(r"taken|passed over|refused", ROWS[row])[0]
    tried = 0
    for source, expected in result if hasattr(result, "__next__") else [result]:
        source, tried = source or root, tried + 1
        caplog.clear()
        if "refused" in expected: check_refusal(source, expected["refused"])
        else: check_data(load_data(source, size=32), caplog.messages, expected)
        assert tried > 1 or ("refused" in expected) == (verdict == "refused")
    assert tried


def check_refusal(source, says):
    with pytest.raises(InputError) as e: load_data(source)
    assert says in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 700


def check_data(data, lines, expected):
    for part in expected["says"]: assert sum(part in line for line in lines) == 1, lines
    if not expected["says"]: assert lines == []
    assert data.classes == expected["classes"] and not any("\n" in line for line in lines)
    n = len(data.x_train), len(data.x_test)
    if expected["train"]: assert n == (expected["train"], expected["test"])
    if expected["check"]: expected["check"](data)


# ---------------------------------------------------------------- hostile bytes

def test_any_damage_to_a_zip_is_read_or_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_cache, "_load", lambda *args: None)
    whole(tmp_path / "d")
    path, rng, ends = zipped(tmp_path / "d", tmp_path / "d.zip"), np.random.default_rng(0), set()
    raw = path.read_bytes()
    truth = load_data(path)
    known = content_keys(np.concatenate([truth.x_train, truth.x_test]))
    for _ in range(300):
        changed = bytearray(raw)
        for at in rng.integers(0, len(raw), 3): changed[at] = rng.integers(256)
        path.write_bytes(changed[:rng.choice([len(raw), rng.integers(len(raw))], p=[.8, .2])])
        try: got = load_data(path)
        except InputError as e:
            assert "\n" not in str(e)
            ends.add("refused")
        else:
            assert np.isin(content_keys(got.x_train), known).all()       # a name may have become a stranger's
            ends.add("read")
    assert ends == {"read", "refused"}


NUMBERED = [f"{i}.png" for i in range(12)]
CLASS_OF = {name: str(i % 3) for i, name in enumerate(NUMBERED)}


@pytest.mark.parametrize("head, row", [
    (",filename,label", "{k},{name},{label}"), ("label,filename", "{label},{name}"),
    ("label,id", "{label},{i}"), ("id,label", "{i},{label}"), ("", "{k},{name},{label}"),
    ("image,fold,class", "{name},{k},{label}")], ids=lambda v: v or "no head")
def test_an_index_or_a_class_that_is_a_number_is_not_taken_for_the_name(head, row):
    "In glob's order, 0, 1, 10, 11, 2 …, an index says other numbers than the names"
    lines = [row.format(k=k, name=name, i=name[:-4], label=CLASS_OF[name])
             for k, name in enumerate(sorted(NUMBERED))]
    text = "\n".join([head, *lines] if head else lines)
    if head or "{k}" not in row: assert labels_in(text, NUMBERED, "t.csv") == CLASS_OF
    else:
        with pytest.raises(InputError, match="has 2 columns that may be the class"):
            labels_in(text, NUMBERED, "t.csv")


def test_two_columns_that_may_both_be_names_are_refused():
    text = "row,id,label\n" + "\n".join(f"{11 - i},{i},{'ab'[i % 2]}" for i in range(12))
    with pytest.raises(InputError, match="two columns that may be the file names, the 1. and the 2."):
        labels_in(text, NUMBERED, "t.csv")
    rows = [f"{i},{i // 2},{'ab'[i // 2 % 2]}" for i in range(24)]       # two a picture
    found = labels_in("\n".join(["annotation,image,label", *rows]), NUMBERED, "t.csv")
    assert found == {name: "ab"[i % 2] for i, name in enumerate(NUMBERED)}
    rows = [f"{k},{max(k - 1, 0)}.png,a" for k in range(12)]             # one is there twice, one is not
    with pytest.raises(InputError, match="has no class for 1 of 12 pictures"):
        labels_in("\n".join([",filename,label", *rows]), NUMBERED, "t.csv")
    same = "row,id,label\n" + "\n".join(f"{i},{i},{'ab'[i % 2]}" for i in range(12))
    assert labels_in(same, NUMBERED, "t.csv")["3.png"] == "b"


def test_any_table_says_the_classes_or_is_refused_in_a_line():
    rng, ends = np.random.default_rng(0), set()
    parts = ["0", "0.png", "cat", "dog", ",", ",", ",", ";", "\n", "\n", "\n", '"', "\t", "\0", "é", "label"]
    for _ in range(3000):
        text = "".join(rng.choice(parts, rng.integers(1, 30)))
        try: found = labels_in(text.encode(), ["0.png"], "t.csv")
        except InputError as e:
            assert "\n" not in str(e)
            ends.add("refused")
        else:
            assert found is None or set(found) == {"0.png"} and all(found.values())
            ends.add("read" if found else "not about these")
    assert ends == {"read", "refused", "not about these"}
    assert labels_in("id,label\n0," + "x" * 200_000, ["0.png"], "t.csv") is None
