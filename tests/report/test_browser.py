"""Reports in a real browser: they open from a file with the network cut, draw, sort, download, switch."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kn_lens.report.page import write_report
from tests.report.conftest import ODD, Pages

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


class Tab:
    """A tab without a network that notes what goes wrong."""

    def __init__(self, context: Any) -> None:
        self.page = context.new_page()
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on(
            "console", lambda told: self.wrong.append(told.text) if told.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.route("**/*", self._gate)

    def _gate(self, route: Any) -> None:
        if route.request.url.startswith(("file://", "data:", "blob:")):
            route.continue_()
        else:
            self.asked.append(route.request.url)
            route.abort()

    def open(self, path: Path, hash: str = "") -> Any:
        self.page.goto(f"file://{path}{hash}")
        return self.page

    def draw_all(self) -> None:
        self.page.evaluate("knLens.drawAll()")
        self.page.wait_for_function(
            "[...document.querySelectorAll('[data-figure], [data-circuits]')].every(box => box.dataset.drawn)"
        )

    def check(self) -> None:
        assert self.wrong == []
        assert self.asked == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        except sync_api.Error as error:
            pytest.skip(f"{CHROMIUM} does not start: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """``tab(viewport, ...)``: a tab; at the end nothing may have gone wrong in it."""
    made: list[tuple[Tab, Any]] = []

    def make(viewport: Any = DESKTOP, **options: Any) -> Tab:
        context = browser.new_context(viewport=viewport, offline=True, **options)
        made.append((Tab(context), context))
        return made[-1][0]

    yield make
    for one, context in made:
        one.check()
        context.close()


@pytest.mark.parametrize("which", ["report", "comparison"])
def test_every_figure_is_drawn(which: str, tab: Any, pages: Pages) -> None:
    one = tab()
    page = one.open(getattr(pages, which))
    one.draw_all()
    figures = page.locator("figure").count()
    expected = sum(
        len(section.figures) for content in pages.contents[: 1 + (which != "report")] for section in content.sections
    )
    assert figures == expected + 1  # and the glance at the top
    page.wait_for_function(
        "[...document.querySelectorAll('[data-circuits]')].every(box => box.querySelector('canvas, span'))"
    )
    marks = page.evaluate(
        "[...document.querySelectorAll('[data-figure]')].map(box => box.querySelectorAll('.main-svg path').length)"
    )
    assert min(marks) > 3


def test_figures_wait_until_they_come_into_sight(tab: Any, pages: Pages) -> None:
    page = tab().open(pages.report)
    page.wait_for_selector("#glance [data-drawn='true']")
    last = page.locator("#E9-heads .drawing")
    assert last.get_attribute("data-drawn") is None
    last.scroll_into_view_if_needed()
    page.wait_for_selector("#E9-heads [data-drawn='true']")


def test_attention_answers_to_the_mouse(tab: Any, pages: Pages) -> None:
    page = tab().open(pages.report)
    figure = page.locator("#E1-attention")
    figure.scroll_into_view_if_needed()
    zoomed = figure.get_by_text(re.compile(r"Zoomed$"))
    zoomed.wait_for()
    assert zoomed.inner_text() == "0:0 Zoomed"
    figure.locator("canvas").nth(1).hover()
    figure.get_by_text("1:1 Zoomed").wait_for()
    assert figure.locator("canvas").last.bounding_box()["width"] > 300


@pytest.mark.parametrize(
    ("table", "column"), [("E1-table-units", "layer"), ("E1-table-units", "group"), ("E9-table-curves", "flipped")]
)
def test_tables_sort_both_ways(table: str, column: str, tab: Any, pages: Pages) -> None:
    section, _, name = table.split("-")
    frame = next(entry for entry in pages.contents[0].sections if entry.name == section).tables[name]
    page = tab().open(pages.report)
    box = page.locator(f"#{table}")
    if not box.evaluate("box => box.open"):
        box.locator("summary").click()
    if box.locator("button.all").count():
        box.locator("button.all").click()
    at = list(frame.columns).index(column)
    head = box.locator("th").nth(at)
    assert head.get_attribute("aria-sort") == "none"
    for direction in ("ascending", "descending"):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == direction
        cells = [cell.strip() for cell in box.locator(f"tbody tr td:nth-child({at + 1})").all_inner_texts()]
        order = str.casefold if isinstance(frame[column][0], str) else float
        values = sorted(frame[column].tolist(), key=order, reverse=direction == "descending")
        assert len(cells) == len(frame)
        if isinstance(values[0], str):
            assert cells == values
        else:
            np.testing.assert_allclose([float(cell) for cell in cells], values, rtol=6e-3)
    assert box.locator("th[aria-sort='none']").count() == len(frame.columns) - 1


def test_missing_and_infinite_numbers_sort(tab: Any, pages: Pages) -> None:
    page = tab().open(pages.report)
    box = page.locator("#E1-table-odd")
    texts = lambda: [text.strip() for text in box.locator("tbody tr td:nth-child(2)").all_inner_texts()]  # noqa: E731
    before = texts()
    button = box.locator("th").nth(1).locator("button")
    button.focus()
    page.keyboard.press("Enter")
    assert texts() == ["-1,235", "1e-07", "0.3", "∞", "–"]
    page.keyboard.press("Enter")
    assert texts() == ["∞", "0.3", "1e-07", "-1,235", "–"]
    assert sorted(texts()) == sorted(before)
    assert "</script><script>alert(1)</script>" in box.locator("tbody").inner_text()


def test_long_tables_show_all_on_request(tab: Any, pages: Pages, tmp_path: Path) -> None:
    content = pages.contents[0]
    long = replace(content.sections[0], tables={"long": pd.DataFrame({"n": range(130)})}, figures={})
    page = tab().open(write_report(replace(content, sections=[long]), tmp_path / "long.html"))
    box = page.locator("#E1-table-long")
    assert box.locator("tbody tr").count() == 50
    button = box.locator("button.all")
    button.click()
    assert box.locator("tbody tr").count() == 130
    assert button.get_attribute("aria-expanded") == "true"
    button.click()
    assert box.locator("tbody tr").count() == 50


def test_csv_files_hold_the_numbers_in_full(tab: Any, pages: Pages) -> None:
    page = tab().open(pages.report)

    def downloaded(table: str) -> tuple[str, str]:
        with page.expect_download() as waited:
            page.locator(f"#{table} button.csv").click()
        return waited.value.suggested_filename, Path(waited.value.path()).read_text(encoding="utf-8")

    name, text = downloaded("E9-table-sites")
    assert name == "tiny-causal-E9-sites.csv"
    frame = pages.contents[0].sections[-1].tables["sites"]
    read = pd.read_csv(io.StringIO(text), float_precision="round_trip")
    assert list(read.columns) == list(frame.columns)
    for column in frame.columns:
        if frame[column].dtype.kind in "if":
            np.testing.assert_array_equal(read[column].to_numpy(float), frame[column].to_numpy(float))
    name, text = downloaded("E1-table-odd")
    read = pd.read_csv(io.StringIO(text), float_precision="round_trip")
    np.testing.assert_array_equal(read["share"].to_numpy(), ODD["share"].to_numpy())
    assert read["token"].fillna("").tolist() == ODD["token"].fillna("").tolist()
    assert read["found"].tolist() == ODD["found"].tolist()


def test_dark_and_light(tab: Any, pages: Pages) -> None:
    one = tab()
    page = one.open(pages.report)
    one.draw_all()
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('#E9-accuracy .xtick text').style.fill"
    button = page.locator("#theme")
    light = page.evaluate(paper), page.evaluate(ink)
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    page.wait_for_function(f"{ink} !== '{light[1]}'")
    dark = page.evaluate(paper), page.evaluate(ink)
    assert (light[0], dark[0]) == ("rgb(255, 255, 255)", "rgb(21, 23, 26)")
    assert (light[1], dark[1]) == ("rgb(34, 34, 34)", "rgb(232, 232, 232)")
    button.click()
    page.wait_for_function(f"{ink} === '{light[1]}'")
    assert page.evaluate(paper) == light[0]


def test_dark_is_what_the_system_prefers_and_is_remembered(tab: Any, pages: Pages) -> None:
    page = tab(color_scheme="dark").open(pages.report)
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"
    page.locator("#theme").click()
    page.reload()
    assert page.locator("#theme").get_attribute("aria-pressed") == "false"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_comparison_switches_models(tab: Any, pages: Pages) -> None:
    one = tab()
    page = one.open(pages.comparison)
    first, second = (page.locator(f"#E9-panel-{at}") for at in (1, 2))
    assert (first.is_visible(), second.is_visible()) == (True, False)
    page.locator("#E9-tab-2").click()
    assert (first.is_visible(), second.is_visible()) == (False, True)
    assert pages.contents[1].sections[-1].findings[0] in second.inner_text()
    page.keyboard.press("ArrowLeft")
    assert (first.is_visible(), second.is_visible()) == (True, False)
    assert page.evaluate("document.activeElement.id") == "E9-tab-1"
    assert page.locator("#E9 [role=tab][aria-selected=true]").get_attribute("id") == "E9-tab-1"
    assert page.locator("#E9-tab-2").get_attribute("tabindex") == "-1"
    page.locator("#E9 .beside").click()
    assert (first.is_visible(), second.is_visible()) == (True, True)
    boxes = [panel.bounding_box() for panel in (first, second)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] < boxes[1]["x"]
    page.locator("#E9 .beside").click()
    assert (first.is_visible(), second.is_visible()) == (True, False)


def test_a_figure_drawn_while_hidden_fits_when_it_is_shown(tab: Any, pages: Pages) -> None:
    one = tab(PHONE)
    page = one.open(pages.comparison)
    one.draw_all()
    page.locator("#E9-tab-2").click()
    drawing = page.locator("#E9-panel-2 figure[id^='E9-layers'] .drawing")
    drawing.scroll_into_view_if_needed()
    page.wait_for_function(
        "box => Math.abs(box.querySelector('.main-svg').getBoundingClientRect().width - box.clientWidth) < 2",
        arg=drawing.element_handle(),
    )


def test_a_link_opens_the_tab_it_leads_to(tab: Any, pages: Pages) -> None:
    page = tab().open(pages.comparison, "#E9-accuracy-tiny-masked-2")
    page.locator("#E9-accuracy-tiny-masked-2").wait_for(state="visible")
    assert page.locator("#E9-tab-2").get_attribute("aria-selected") == "true"


@pytest.mark.parametrize("which", ["report", "comparison"])
@pytest.mark.parametrize("viewport", [PHONE, {"width": 375, "height": 667}, DESKTOP], ids=["390", "375", "1280"])
def test_no_page_is_wider_than_the_screen(viewport: Any, which: str, tab: Any, pages: Pages) -> None:
    one = tab(viewport, has_touch=viewport is not DESKTOP)
    page = one.open(getattr(pages, which))
    one.draw_all()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_print_draws_all_in_ink(tab: Any, pages: Pages) -> None:
    page = tab(color_scheme="dark").open(pages.report)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("[...document.querySelectorAll('[data-figure]')].every(box => box.dataset.drawn === 'true')")
    assert page.evaluate("document.querySelector('#E9-accuracy .xtick text').style.fill") == "rgb(34, 34, 34)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.locator("details.table:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.table:not([open])").count() == 2
    assert page.pdf()[:5] == b"%PDF-"


def test_keyboard_finds_the_content_first(tab: Any, pages: Pages) -> None:
    page = tab().open(pages.report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    names = page.evaluate(
        "[...document.querySelectorAll('button')].map(b => b.ariaLabel || b.textContent || b.dataset.title || '')"
    )
    assert all(names)
