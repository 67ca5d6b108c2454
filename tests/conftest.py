"""What tests share. Caches go to a folder of the session: nothing outside is read or written."""
import os
import shutil
import signal
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
OF_TOOLS = {".git", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", "venv", ".venv", "build",
            "dist"}

os.environ["MPLBACKEND"] = "Agg"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


LONG = ("test_first_minute.py", "test_init.py", "test_trackers.py", "test_load_run.py", "test_app.py",
        "test_readme.py", "test_train_page.py", "test_notebooks.py", "test_recipes.py", "test_run_faults.py",
        "test_processes.py")


def pytest_collection_modifyitems(items):
    "Pages of few and long tests first: begun last, one would run alone while the other processes are idle"
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    "The package's cache, empty at the start of the session"
    before, folder = os.environ.get("XDG_CACHE_HOME"), tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None: del os.environ["XDG_CACHE_HOME"]
    else: os.environ["XDG_CACHE_HOME"] = before


def checkout(root: Path = CHECKOUT) -> set[str]:
    "Every folder and file of the checkout, without those of tools and what is inside a run's folder"
    found = set()
    for folder, folders, files in os.walk(root):
        inside = Path(folder).relative_to(root)
        folders[:] = [f for f in folders if f not in OF_TOOLS and not f.endswith(".egg-info")]
        found |= {str(inside / name) for name in (*folders, *files)}
        if inside.parts[:1] == ("runs",) and len(inside.parts) == 2: folders.clear()
    return found


@pytest.fixture(scope="session")
def there_before(): return checkout()


@pytest.fixture(autouse=True)
def the_checkout_stays_as_it_is(there_before):
    "A test that makes or removes a file there is named; those after it are not"
    yield
    now = checkout()
    changed = sorted(now ^ there_before)
    there_before.clear(), there_before.update(now)
    assert not changed, f"this test made or removed {', '.join(changed)} in the checkout"


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard():
    "Also where the suite runs in the background of a shell, which lets its jobs ignore it"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def threads():
    "One, as the nets here are too small to share; CIFAR_FASTAI_TEST_THREADS asks for more"
    import torch
    torch.set_num_threads(int(os.environ.get("CIFAR_FASTAI_TEST_THREADS", "1")))


@pytest.fixture
def all_cores():
    "For nets of real size"
    import torch
    from tiny import own_cores
    before = torch.get_num_threads()
    torch.set_num_threads(own_cores())
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def undisturbed():
    "Optimiser → what an undisturbed fit of `fits.tiny` ends with"
    from fits import OPTIMISERS, fit, tiny
    return {name: fit(tiny(name)) for name in OPTIMISERS}


@pytest.fixture(scope="session")
def digits():
    "scikit-learn's digits, 16×16"
    from cifar_fastai.data.sources import load_data
    return load_data("digits", size=16)


@pytest.fixture(scope="session")
def learnable():
    "160 training and 48 test pictures of four classes, 16×16"
    from tiny import learnable
    return learnable()


@pytest.fixture(scope="session")
def tiny_registered():
    "The name tiny stands for a net of two convolutions"
    from tiny import register
    register()


@pytest.fixture
def undrawn(monkeypatch, tiny_registered):
    "No figures: they take most of a tiny run's time"
    import tiny
    tiny.undrawn(monkeypatch.setattr)


@pytest.fixture
def learner(learnable):
    "A function that makes a Learner of the tiny net on `learnable`, fp32, on the CPU, silent"
    from fastcore.basics import noop
    from tiny import tiny_net

    from cifar_fastai.loaders.block import cifar_dataloaders
    from cifar_fastai.training.learner import cifar_learner

    def make(dls=None, aug="pad_crop_flip", bs=32, seed=0, valid="test", arch=tiny_net, **kwargs):
        dls = dls or cifar_dataloaders(learnable, bs, aug, valid, seed, 0, device="cpu")
        learn = cifar_learner(dls, arch, **{"precision": "fp32", "smoothing": 0.0, **kwargs})
        learn.logger = noop
        return learn
    return make


@pytest.fixture(scope="module")
def browser():
    "Debian's Chromium, driven by Playwright; tests of pages skip where there is none"
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None: pytest.skip("no Chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def axe():
    "A function: page → what axe finds wrong"
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

    def run(page) -> list[tuple]:
        found = module.Axe().run(page).response["violations"]
        return [(v["id"], [n["html"][:120] for n in v["nodes"]][:2]) for v in found]
    return run
