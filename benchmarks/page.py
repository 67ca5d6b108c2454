"""The page of a run in headless Chromium: its size, first paint and the time of a filter; its screenshots.

    python -m benchmarks page RUN [--shots docs/figures] [--rounds 5]

RUN is a folder with a report.html. Medians of several loads; a filter is timed from the choice to the next
frame.
"""
import argparse
import shutil
from pathlib import Path
from statistics import median

from cifar_fastai.errors import InputError, report_errors
from cifar_fastai.machine import machine_name

SIZES = {"light": {"viewport": {"width": 1200, "height": 900}},
         "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
         "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}}
FILTER = """async () => {
  const choice = document.getElementById('f-true'), start = performance.now();
  choice.value = '1';
  choice.dispatchEvent(new Event('change'));
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}"""


def chromium() -> str:
    "Where the browser is. Raises: InputError"
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None: raise InputError("no Chromium here. Install it: apt-get install chromium.")
    return found


def measure(browser, url: str, rounds: int) -> dict[str, float]:
    "Milliseconds until the first paint, and of a filter: medians"
    paints, filters = [], []
    for _ in range(rounds):
        page = browser.new_page()
        page.goto(url)
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        filters.append(page.evaluate(FILTER))
        page.close()
    return {"first paint": median(paints), "filter": median(filters)}


def shoot(browser, url: str, folder: Path) -> None:
    "A picture of the top, and of the viewer, in each of `SIZES`"
    folder.mkdir(parents=True, exist_ok=True)
    for name, how in SIZES.items():
        page = browser.new_page(**how)
        page.goto(url)
        page.screenshot(path=folder / f"page_{name}.png")
        page.locator("#tiles button").first.click()
        page.wait_for_timeout(400)
        page.screenshot(path=folder / f"page_{name}_picture.png")
        page.close()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks page", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--shots", type=Path, help="folder of the screenshots")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    with report_errors():
        path = args.run / "report.html"
        if not path.exists(): raise InputError(f"no page at {path}. Write it: python -m recipes report RUN.")
        from playwright.sync_api import sync_playwright
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            url = f"file://{path.resolve()}"
            times = measure(browser, url, args.rounds)
            if args.shots: shoot(browser, url, args.shots)
            version = browser.version
            browser.close()
        told = ", ".join(f"{name} {ms:.0f} ms" for name, ms in times.items())
        print(f"size {path.stat().st_size / 1e6:.2f} MB, {told} (medians of {args.rounds}; "
              f"Chromium {version}, {machine_name()})")
