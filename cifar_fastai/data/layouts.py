"""Folder layouts: which pictures train, which test, and the class of each, by the names alone.

    with open_tree("pets") as tree: layout = arrange(tree)
    layout.classes, layout.train[0]     # ('cat', 'dog'), ('train/cat/1.jpg', 0, (size, time))

docs/your-own-pictures.md has the layouts that are taken, and what becomes of everything else."""
import re
import unicodedata
from collections import namedtuple

from ..errors import InputError
from .archive_members import one_line
from .label_tables import TABLES, labels_in
from .trees import is_picture, is_unread

__all__ = ["LAYOUT", "Layout", "arrange"]

LAYOUT = "Give a folder with train/<class>/* and test/<class>/*."
SPLITS = {"train": ("train", "training"), "test": ("test", "testing"),
          "valid": ("valid", "val", "validation")}
SET_NAMES = frozenset(n for names in SPLITS.values() for n in names)
PLAIN = {"images", "image", "imgs", "img", "pictures", "photos"}   # folders that name no class
ABOUT = {"mask", "label", "annotation", "segmentation", "trimap"}  # nor do these beside images; also in -s
# train, test: [(name below the root, label, (size, time))] by class and name. No test: to be split off
Layout = namedtuple("Layout", "classes train test lines")


class _Found(dict):
    "Class → [(name, (size, time))]; what was passed over, and lines that say what was decided"
    def __init__(self, at=""): self.at, self.strays, self.lines = at, [], []


def arrange(tree) -> Layout:
    "The layout of a tree. Raises: InputError, in one line, where it is not clear which picture is what"
    at, top = _unwrapped("", tree.top, stop=_names_set)
    splits = _splits(tree, at, top)
    place = {kind: (f"{at}{name}/", top[name]) for kind, name in splits.items()}
    train = _labelled(tree, *place.get("train", (at, top)), "train", (at, top))
    if train is None: raise _without_classes(tree, place.get("train", (at,))[0])
    if not train and not splits: raise _nothing_in(tree)
    test, lines = _test_set(tree, place, (at, top), tuple(train))
    _check_names(tree.root, train, test)
    _check_classes(tree.root, train, test)
    classes, sets = tuple(sorted(train)), [train] if test is None else [train, test]
    if list(splits) == ["train"]:
        others = [f"{at}{n}/" for n in _folders(top) if n != splits["train"]]
        if others: lines.append(f"passed over: what lies beside {train.at}: {_some(others)}")
    lines += sum((found.lines for found in sets), _nearly_equal(classes))
    if strays := sum((found.strays for found in sets), []):
        what = "1 file that is" if len(strays) == 1 else f"{len(strays):,} files that are"
        lines.append(f"passed over: {what} no picture by name: {_some(strays)}")
    return Layout(classes, _in_order(train, classes), _in_order(test or {}, classes), lines)


def _test_set(tree, place, root, known):
    "(the test set or None, lines that say what is passed over): test/ goes before valid/"
    test, lines = None, []
    for kind in ("test", "valid"):
        if kind not in place: continue
        at = place[kind][0]
        if test is not None:
            lines.append(f"{at} is passed over: of several sets beside the training set, {test.at} tests")
            continue
        test = _labelled(tree, *place[kind], kind, root, known)
        if test is None: lines.append(f"{at} is passed over: nothing says the classes of its pictures")
    return test, lines


def _in_order(found, classes):
    return [(n, label, info) for label, c in enumerate(classes) for n, info in sorted(found.get(c, ()))]


def _folders(node): return sorted(n for n in node if isinstance(node[n], dict))
def _files(node): return sorted(n for n in node if not isinstance(node[n], dict))
def _pictures(node): return [n for n in _files(node) if is_picture(n)]


def _names_set(name): return name.lower() in SET_NAMES
def _names_class(name): return name.lower() not in PLAIN and not _words(name) & SET_NAMES
def _is_table(name): return any(name.lower().endswith(s) for s in TABLES)


def _unwrapped(at, node, stop):
    "Go down as long as there is nothing but one folder of folders, to one whose name means something"
    while len(names := _folders(node)) == 1 and _folders(node[names[0]]) and not _pictures(node):
        if stop(names[0]): break
        at, node = f"{at}{names[0]}/", node[names[0]]
    return at, node


# ---------------------------------------------------------------- which folders are training and test set

def _words(name): return {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def _splits(tree, at, top):
    "The folders of training, test and validation set: {kind: name}; none where all folders are classes"
    exact = {k: [n for n in _folders(top) if n.lower() in SPLITS[k]] for k in SPLITS}
    tables = any(map(_is_table, _files(top)))                  # seg_train/, test_set/; no class "crash test"
    near = {k: [n for n in _folders(top) if _words(n) & set(SPLITS[k]) and (tables or _folders(top[n]))]
            for k in SPLITS}
    found = {k: exact[k] or near[k] for k in SPLITS if exact[k] or near[k]}
    if "train" in found and len(found) > 1: return _only(tree, at, found)
    found = {k: names for k, names in exact.items() if names}
    others = [n for n in _folders(top) if n not in sum(found.values(), [])]
    if "train" in found and (not others or _folders(top[found["train"][0]])): return _only(tree, at, found)
    if found and "train" not in found and not others:
        raise InputError(f"data folder {tree.root} has {at}{found.popitem()[1][0]}/ but no train/. {LAYOUT}")
    return {}


def _only(tree, at, found):
    for kind, names in found.items():
        if len(names) > 1:
            some = " and ".join(f"{at}{n}/" for n in names[:3])
            raise InputError(f"data folder {tree.root} has {some}: each may be the {kind} set. Rename one.")
    return {kind: names[0] for kind, names in found.items()}


# ---------------------------------------------------------------- of what class each picture is

def _labelled(tree, at, node, kind, root, known=()):
    """`_Found` of a set by its class folders, or by a table beside it; None where neither says the classes.
    `known`: the class names of the training set, where they are already known"""
    found, tables = _Found(at), _tables(kind, root, at, node)
    at, node = _unwrapped(at, node, stop=_names_class)
    folders, loose = _folders(node), _pictures(node)
    one = folders[0] if len(folders) == 1 and not loose else None
    if one and _pictures(node[one]) and (tables or one.lower() in PLAIN) and one not in known:
        at, node, folders = f"{at}{one}/", node[one], []
        loose = _pictures(node)
        tables = tables or [at + n for n in _files(node) if _is_table(n) and not n.endswith(".txt")]
    if not folders and not loose: return found if kind == "train" else None
    if not folders: return _by_table(tree, found, at, node, tables, known)
    about = [n for n in folders if n.lower().removesuffix("s") in ABOUT]
    if about and any(n.lower().removesuffix("s") in ("image", "img") for n in folders):
        raise InputError(f"{tree.root}/{at}{about[0]}/ and the images beside it are no classes. Give the "
                         "images alone with a table of their classes, or rename them.")
    if loose:
        raise InputError(f"{tree.root}/{at}{loose[0]} lies outside the class folders. Move or remove it.")
    found.strays += [at + n for n in _files(node)]
    for c in folders: found[c] = list(_below(f"{tree.root}/", f"{at}{c}/", node[c], found.strays))
    nested = [f"{at}{c}/" for c in folders if any("/" in n[len(f"{at}{c}/"):] for n, _ in found[c])]
    if nested: found.lines.append(f"folders within a class folder are of its class: {_some(nested)}")
    return found


def _below(root, at, node, strays):
    "(name, (size, time)) of all pictures below a folder"
    for name in sorted(node):
        if isinstance(node[name], dict):
            if is_picture(name): raise InputError(f"{root}{at}{name} is a folder. Rename it.")
            yield from _below(root, f"{at}{name}/", node[name], strays)
        elif is_picture(name): yield at + name, node[name]
        else: strays.append(_stray(root, at + name))


def _stray(root, name):
    if not is_unread(name): return name
    raise InputError(f"{root}{name} is of a format that is not read. Convert it to PNG, or remove it.")


def _tables(kind, root, at, node):
    "Names of the tables that may speak of a set: those in it, and those beside it that name no other set"
    base, top = root
    inside = [at + n for n in _files(node) if _is_table(n)]
    if top is node: return inside
    others = {w for k in SPLITS if k != kind for w in SPLITS[k]} | {"submission"}
    beside = [n for n in _files(top) if _is_table(n) and not others & _words(n)]
    if kind != "train": beside = [n for n in beside if set(SPLITS[kind]) & _words(n)]
    return inside + [base + n for n in beside]


def _by_table(tree, found, at, node, tables, known):
    names, answers, refused = _pictures(node), {}, None
    for table in tables:
        try: got = labels_in(tree.read(table), names, f"{tree.root}/{table}", known)
        except InputError as e: refused = refused or e          # unless another table has the classes
        else: answers |= {table: got} if got else {}
    if refused and not answers: raise refused
    if not answers: return None
    table, labels = next(iter(answers.items()))
    for other, classes in answers.items():
        if classes == labels: continue
        raise InputError(f"{tree.root}: {table} and {other} differ in the classes they give. Keep one.")
    for n in names: found.setdefault(labels[n], []).append((at + n, node[n]))
    others = [at + n for n in _files(node) if n not in labels and at + n not in tables]
    found.strays += [_stray(f"{tree.root}/", n) for n in others]
    found.lines.append(f"the classes of {len(names):,} pictures of {at or tree.root} are those of {table}")
    return found


def _without_classes(tree, at):
    return InputError(f"the pictures of {tree.root}/{at} lie in no class folders and no table gives their "
                      "classes. Put them into a folder for each class, or add a labels.csv: file name,class.")


def _nothing_in(tree):
    some = ", ".join(sorted(tree.top)[:5]) or "nothing"
    packed = [n for n in _files(tree.top) if n.lower().endswith((".zip", ".7z", ".rar", ".tar", "gz", "xz"))]
    unpack = f"Unpack {packed[0]} first. " if packed else ""
    return InputError(f"data folder {tree.root} has no train/ and test/ and no CIFAR files (found: {some}). "
                      f"{unpack}{LAYOUT}")


# ---------------------------------------------------------------- class names

def _check_names(root, train, test):
    "Raises: InputError for names that cannot be printed, or that differ between the sets and look the same"
    for c in sorted(train):
        if not c.isprintable() or not c.strip():
            raise InputError(f"data folder {root}: class name {ascii(c)} cannot be printed. Rename it.")
    for c in sorted(train.keys() - test.keys()) if test else ():
        near = next((o for o in sorted(test.keys() - train.keys()) if _plain(o) == _plain(c)), None)
        if near is None: continue
        raise InputError(f"data folder {root}: class {c!r} in {train.at} is {near!r} in {test.at}: "
                         f"they differ in {_difference(c, near)}. Give it one name.")


def _check_classes(root, train, test):
    "Raises: InputError where classes differ between the sets, are empty or fewer than two"
    sets = [train] if test is None else [train, test]
    less, more = sorted(sets, key=len)[0], sorted(sets, key=len)[-1]
    odd = sorted(more.keys() - less.keys()) or sorted(less.keys() - more.keys())
    if odd:
        raise InputError(f"data folder {root} has {len(less)} classes in {less.at} but {len(more)} in "
                         f"{more.at} (missing: {_some(odd, 5)}). {LAYOUT}")
    if len(train) < 2:
        raise InputError(f"data folder {root} has {len(train)} classes, not 2 or more. {LAYOUT}")
    empty = [f"{root}/{found.at}{c}" for found in sets for c in sorted(found) if not found[c]]
    if empty: raise InputError(f"class folder {empty[0]} is empty: no pictures. Fill or remove it.")


def _plain(name): return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _difference(a, b):
    "In what two names differ that look the same"
    if unicodedata.normalize("NFKC", a) == unicodedata.normalize("NFKC", b): return "their Unicode form"
    if " ".join(a.split()) == " ".join(b.split()): return "blanks"
    if a.casefold() == b.casefold(): return "upper and lower case"
    return "upper and lower case, blanks or Unicode form"


def _nearly_equal(classes):
    seen = {}
    for c in classes: seen.setdefault(_plain(c), []).append(c)
    return [f"classes {' and '.join(map(repr, same))} differ in {_difference(*same[:2])} alone: "
            f"they count as {len(same)}" for same in seen.values() if len(same) > 1]


def _some(names, n=3):
    more = f" and {len(names) - n:,} more" if len(names) > n else ""
    return ", ".join(one_line(x, 60) if not x.isprintable() else x for x in names[:n]) + more
