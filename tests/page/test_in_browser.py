"""The page of a run in Chromium: what a click, a key and an address do, and that nothing leaves the page."""
import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_net

from cifar_fastai.explain import ImageInterpretation
from cifar_fastai.loaders import cifar_dataloaders
from cifar_fastai.machine import versions
from cifar_fastai.page import write_report
from cifar_fastai.runs.report import FoundRate, numbers
from cifar_fastai.training import cifar_learner

pytestmark = pytest.mark.no_rounding
HOSTILE = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"quotes\" & 'more' 犬", "a" * 200)


def write(data, folder: Path, epochs=1, right=False):
    "The page of a tiny net that has hardly trained, or that is `right` everywhere; its interpretation"
    dls = cifar_dataloaders(data, 32, None, num_workers=0, device="cpu")
    learn = cifar_learner(dls, tiny_net, precision="fp32")
    with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(epochs, .02)
    interp = ImageInterpretation.from_learner(learn)
    if right:
        probs = np.full(interp.preds.shape, .01, np.float32)
        probs[range(len(interp)), interp.targs] = 1
        preds = interp.preds.new_tensor(probs)
        interp = ImageInterpretation(learn, interp.dl, interp.losses, preds=preds, targs=interp.targs)
    results = numbers(interp) | {
        "recipe": "tiny", "data": data.source, "training_pictures": 160, "epochs": epochs, "bs": 32,
        "lr": .02, "seed": 0, "tta": "none", "parameters": 1324, "precision": "fp32", "seconds": 3.2,
        "device": "cpu", "versions": versions()}
    rows = [{"epoch": e + 1, "train_loss": 2. / (e + 1), "valid_loss": 2.1 / (e + 1), "accuracy": .2 + .1 * e}
            for e in range(3)]
    found = FoundRate([1e-4, 1e-3, 1e-2, .1, 1.], [2.3, 2.2, 1.9, 1.5, 4.], {"peak": .1}, .1)
    write_report(folder, interp, results, history=rows, found=found, lrs=[.01, .02, .01], command="python …")
    interp.to_csv(folder / "predictions.csv")
    return interp


@pytest.fixture(scope="module")
def report(tmp_path_factory, learnable):
    "Folder and interpretation of a page with mistakes"
    folder = tmp_path_factory.mktemp("report")
    return folder, write(learnable, folder)


@pytest.fixture
def page(browser, report):
    "The page of `report`, watched: what it complains of and asks for must be nothing"
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    page, wrong = context.new_page(), []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    asked = []
    page.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("data:", "blob:")) else None)
    page.goto(f"file://{report[0]}/report.html")
    yield page
    context.close()
    assert wrong == [] and {u.split("#")[0] for u in asked} == {f"file://{report[0]}/report.html"}


def mistakes(report) -> list[dict]:
    rows = csv.DictReader((report[0] / "predictions.csv").read_text().splitlines())
    return [r for r in rows if r["true"] != r["predicted"]]


def tiles(page) -> list[int]:
    return [int(t.get_attribute("data-open")) for t in page.locator("#tiles button").all()]


def counted(page) -> int: return int(page.locator("#count").inner_text().split()[0])


def test_all_mistakes_are_there_the_worst_first(page, report):
    wrong = sorted(mistakes(report), key=lambda r: -float(r["loss"]))
    assert counted(page) == len(wrong) > 5 and len(tiles(page)) == min(len(wrong), 120)
    losses = {int(r["index"]): float(r["loss"]) for r in wrong}
    shown = [losses[i] for i in tiles(page)]
    assert shown == sorted(shown, reverse=True) and set(tiles(page)) <= losses.keys()


def test_filters_show_what_predictions_csv_says(page, report):
    classes = report[1].names
    for true in range(len(classes)):
        page.select_option("#f-true", str(true))
        for predicted in ("", *map(str, range(len(classes)))):
            page.select_option("#f-predicted", predicted)
            want = [r for r in mistakes(report) if r["true"] == classes[true] and
                    (predicted == "" or r["predicted"] == classes[int(predicted)])]
            assert counted(page) == len(want) and set(tiles(page)) == {int(r["index"]) for r in want}


def test_a_cell_of_the_confusion_matrix_chooses_its_mistakes_and_lets_them_go_again(page, report):
    cell = page.locator("#confusion button").first
    cell.click()
    assert counted(page) == int(cell.inner_text()) and cell.get_attribute("aria-pressed") == "true"
    cell.click()
    assert counted(page) == len(mistakes(report))


def test_other_orders_and_the_right_answers(page, report):
    page.select_option("#f-order", "confidence")
    surest = sorted(mistakes(report), key=lambda r: -float(r["confidence"]))
    assert tiles(page)[0] == int(surest[0]["index"])
    page.select_option("#f-order", "index")
    assert tiles(page) == sorted(tiles(page))
    page.check("#f-right")
    right = int(report[1].correct.sum())
    assert f"and {right} right" in page.locator("#count").inner_text() and len(tiles(page)) == len(report[1])


def heat(page) -> str:
    page.wait_for_timeout(150)
    return page.evaluate("document.getElementById('v-heat').toDataURL()")


def test_a_picture_opens_with_its_classes_its_maps_and_its_neighbours(page, report):
    interp, i = report[1], tiles(page)[0]
    predicted, true = interp.names[interp.decoded[i]], interp.names[interp.targs[i]]
    page.locator("#tiles button").first.click()
    said = page.locator("#v-facts").inner_text()
    assert page.locator("#v-title").inner_text() == f"Picture {i}"
    assert f"predicted {predicted}" in said and f"true {true}" in said
    top = page.locator("#v-top tbody th").all_inner_texts()
    assert top == [interp.names[c] for c in interp.preds[i].topk(4).indices.tolist()]
    assert page.locator("#v-near-list li").count() == 5
    layers = page.locator("#v-layers button").all_inner_texts()
    assert layers[0] == "layer4+layer2" and {"layer1", "layer2", "layer3", "layer4"} <= set(layers)
    size = page.evaluate("[document.getElementById('v-own').width, document.getElementById('v-plain').width]")
    assert size[0] == 16 and size[1] >= 300


def test_the_slider_takes_the_heat_off_the_picture(page):
    page.locator("#tiles button").first.click()
    full = heat(page)
    page.locator("#v-opacity").fill("0")
    plain = page.evaluate("document.getElementById('v-plain').toDataURL()")
    assert heat(page) == plain != full


def test_keys_walk_through_pictures_layers_and_targets(page):
    order = tiles(page)
    page.locator("#tiles button").first.click()
    title = page.locator("#v-title")
    page.keyboard.press("ArrowRight")
    assert title.inner_text() == f"Picture {order[1]}"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert title.inner_text() == f"Picture {order[-1]}" or len(order) == 120
    page.keyboard.press("ArrowRight")
    first = heat(page)
    page.keyboard.press("ArrowDown")
    assert page.locator("#v-layers [aria-selected=true]").inner_text() == "layer1" and heat(page) != first
    page.keyboard.press("ArrowUp")
    page.keyboard.press("t")
    assert page.locator("#v-targets [aria-selected=true]").inner_text().startswith("where ")
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    assert page.evaluate("document.activeElement.dataset.open") == str(order[0]), "back where one came from"


def test_the_address_shows_the_same_in_another_window(page, browser):
    page.select_option("#f-true", "1")
    page.select_option("#f-order", "confidence")
    page.locator("#tiles button").nth(1).click()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("t")
    other = browser.new_page()
    other.goto(page.url)
    for what in ("#v-title", "#v-facts", "#count", "#v-layers [aria-selected=true]",
                 "#v-targets [aria-selected=true]"):
        assert other.locator(what).inner_text() == page.locator(what).inner_text() != ""
    assert tiles(other) == tiles(page)
    other.close()


def test_marks_stay_and_are_exported_as_csv(page, report):
    first, second = tiles(page)[:2]
    page.locator("#tiles button").first.click()
    page.check("#v-mark")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("m")
    page.keyboard.press("Escape")
    page.reload()
    page.check("#f-marked")
    assert set(tiles(page)) == {first, second} and counted(page) == 2
    with page.expect_download() as download: page.click("#export")
    rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    known = {int(r["index"]): r for r in mistakes(report)}
    assert [int(r["index"]) for r in rows] == sorted([first, second])
    assert all(r["true"] == known[int(r["index"])]["true"] for r in rows)
    assert download.value.suggested_filename.endswith(".csv")


def test_charts_tell_their_numbers_on_hover(page):
    told = [t.text_content() for t in page.locator("svg circle title").all()]
    assert "train, epoch 2: 1" in told and "validation, epoch 3: 40.00 %" in told
    assert any(t.startswith("loss, learning rate 0.1: 1.5") for t in told)


def reached(page, times: int) -> list[str]:
    "What Tab comes to: ids, or a word for what has none"
    seen = []
    for _ in range(times):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("(e => e.id || (e.dataset.open && 'picture') || e.role || e.tagName)"
                                  "(document.activeElement)"))
    return seen


def test_every_control_works_by_keyboard_alone(page):
    seen = reached(page, 90)
    controls = ["f-true", "f-predicted", "f-order", "f-right", "f-marked", "f-clear"]
    assert [e for e in seen if e in controls] == controls and "SUMMARY" in seen
    assert "picture" in seen[seen.index("f-clear"):], "the pictures come after what chooses them"
    for _ in range(90):
        if page.evaluate("document.activeElement.classList.contains('tile')"): break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert page.locator("#viewer").is_visible()
    inside = [page.evaluate("document.activeElement.id"), *reached(page, 9)]
    assert {"v-before", "v-next", "v-close", "tab", "v-opacity", "v-mark"} <= {*inside}


@pytest.mark.parametrize("open_tab", ["click", "focus"])
def test_keys_go_on_after_a_tab_of_the_picture_was_used(page, open_tab):
    page.locator("#tiles button").first.click()
    chosen = page.locator("#v-layers [aria-selected=true]")
    if open_tab == "click": page.locator("#v-layers button", has_text="layer1").first.click()
    else: chosen.focus()
    names = page.locator("#v-layers button").all_inner_texts()
    at = names.index(chosen.inner_text())
    for k in (1, 2, 3):
        page.keyboard.press("ArrowDown")
        assert chosen.inner_text() == names[(at + k) % len(names)], k
    assert page.evaluate("document.activeElement.role") == "tab", "and the tab keeps the focus"
    page.keyboard.press("m")
    assert page.is_checked("#v-mark")
    page.keyboard.press("Escape")
    assert page.locator("#tiles button").first.get_attribute("aria-label").endswith(", marked")


def test_focus_comes_back_to_what_was_opened_and_goes_to_what_was_chosen(page):
    page.locator(".row-of [data-open]").first.click()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.closest('.row-of') !== null"), "not to the tile far below"
    page.locator("#confusion button").first.click()
    assert page.evaluate("document.activeElement.id") == "count"


def test_what_a_key_changes_is_said_to_those_who_do_not_see_it(page):
    page.locator("#tiles button").first.click()
    facts = page.locator("#v-facts")
    first = facts.inner_text()
    page.keyboard.press("ArrowRight")
    assert facts.get_attribute("aria-live") == "polite" and facts.inner_text() != first
    caption = page.locator("#v-heat-of")
    page.evaluate("() => { window.said = 0; new MutationObserver(() => window.said++).observe("
                  "document.getElementById('v-facts'), { childList: true }); }")
    before = caption.inner_text()
    page.keyboard.press("ArrowDown")
    assert caption.get_attribute("aria-live") == "polite" and caption.inner_text() != before
    assert page.evaluate("window.said") == 0, "the facts have not changed"


def test_every_epoch_is_there_as_a_table_for_those_who_cannot_hover(page):
    page.locator("summary").click()
    head, *rows = page.locator("#history tr").all_inner_texts()
    assert head.split("\t") == ["epoch", "train loss", "valid loss", "accuracy"]
    assert [r.split("\t") for r in rows] == [["1", "2", "2.1", "0.2"], ["2", "1", "1.05", "0.3"],
                                             ["3", "0.6667", "0.7", "0.4"]]


@pytest.mark.parametrize("address", ["t=length", "t=-1&p=99", "t=1.0&p=%201"])
def test_an_address_with_a_class_that_is_none_chooses_no_class(page, report, address):
    page.evaluate(f"location.hash = '{address}'")
    page.wait_for_function("document.getElementById('f-true').value === ''")
    assert counted(page) == len(mistakes(report)) and len(tiles(page)) > 0


def open_new(browser, folder, **kwargs):
    page, wrong = browser.new_page(**kwargs), []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("dialog", lambda d: (wrong.append("a dialog"), d.dismiss()))
    page.goto(f"file://{folder}/report.html")
    page.wrong = wrong
    assert wrong == []
    return page


def test_hostile_class_names_are_inert_and_readable(browser, learnable, tmp_path):
    interp = write(replace(learnable, classes=HOSTILE), tmp_path)
    page = open_new(browser, tmp_path, viewport={"width": 900, "height": 800})
    options = page.locator("#f-true option").all_text_contents()[1:]
    assert tuple(options) == HOSTILE
    for k in range(4):
        page.select_option("#f-true", str(k))
        if not tiles(page): continue
        page.locator("#tiles button").first.click()
        assert f"true {HOSTILE[k]} " in page.locator("#v-facts").inner_text()
        page.keyboard.press("Escape")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is pushed out"
    assert len(interp.misclassified()) > 3
    assert page.wrong == []
    page.close()


def many(n_classes: int, n_test: int = 400):
    from hashlib import sha256

    from cifar_fastai.data.image_data import ImageData
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (160 + n_test, 16, 16, 3), np.uint8), np.arange(160 + n_test) % n_classes
    names = tuple(f"class {k}" for k in range(n_classes))
    return ImageData(x[:160], y[:160], x[160:], y[160:], names, "noise", sha256(x.tobytes()).hexdigest(),
                     (.5,) * 3, (.25,) * 3)


@pytest.mark.parametrize("n", [2, 100])
def test_few_and_many_classes(browser, tmp_path, n):
    interp = write(many(n), tmp_path)
    page = open_new(browser, tmp_path)
    assert counted(page) == len(interp.misclassified()) and page.locator("#f-true option").count() == n + 1
    if n == 100:
        page.locator("#matrix").click(position={"x": 300, "y": 303})
        assert page.input_value("#f-true") in ("50", "51")
        assert page.input_value("#f-predicted") in ("49", "50", "51")
        page.click("#f-clear")
        page.click("#more")
        assert len(tiles(page)) == 360
    assert page.wrong == []
    page.close()


def test_no_mistake_at_all_is_a_page_too(browser, learnable, tmp_path):
    write(learnable, tmp_path, right=True)
    page = open_new(browser, tmp_path)
    assert "No mistakes" in page.locator("#explorer").inner_text() and counted(page) == 0
    assert len(tiles(page)) == 48 and page.is_checked("#f-right"), "the right ones with the largest loss"
    page.uncheck("#f-right")
    assert tiles(page) == []
    page.click("#f-clear")
    assert len(tiles(page)) == 48 and "#" not in page.url
    assert page.wrong == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("opened", [False, True])
def test_axe_finds_no_violation(browser, report, axe, scheme, opened):
    page = open_new(browser, report[0], color_scheme=scheme)
    if opened: page.locator("#tiles button").first.click()
    assert axe(page) == []
    assert page.wrong == []
    page.close()


def test_it_fits_a_phone(browser, report):
    page = open_new(browser, report[0], viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= 390")
    page.locator("#tiles button").first.click()
    box = page.locator("#viewer").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert page.wrong == []
    page.close()


def test_the_file_asks_for_nothing_and_is_one_file(report):
    text = (report[0] / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)[^\"']", text) and "@import" not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert data["mistakes"] == len(mistakes(report))


def test_the_printed_page_has_its_pictures(page):
    def pictures() -> int: return page.pdf(format="A4").count(b"/Subtype /Image")
    with_them = pictures()
    page.add_style_tag(content="@media print { * { print-color-adjust: economy !important; } }")
    assert with_them > 0 == pictures(), "the control: backgrounds are not printed by themselves"
