"""A real browser for the pages: Debian's Chromium, driven by Playwright. Tests skip where there is none."""
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
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
