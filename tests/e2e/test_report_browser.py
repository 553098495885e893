"""The report in a real browser: it draws, fits, and asks nothing of any network."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from report_workspace import add_finetuning, make_workspace

from macflow.files import write_text
from macflow.report.finetuned import read_content, render_page
from macflow.report.render import machine_facts, machine_script
from macflow.stages import report as stage

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt-get install chromium)"),
]
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SECTIONS = [
    "result", "returns", "run", "dataset", "validation", "training", "diagnostics", "lineage", "machine",
]  # fmt: skip
FINETUNED_SECTIONS = ["result", "curve", "returns", "training", "run", "machine"]
Scheme = Literal["light", "dark"]
READY = "document.documentElement.dataset.charts === 'ready'"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        root = make_workspace(tmp_path_factory.mktemp("workspace"))
        patch.chdir(root)
        parser = argparse.ArgumentParser()
        parser.add_argument("--params", type=Path, default=Path("params.yaml"))
        stage.add_arguments(parser)
        stage.main(parser.parse_args(["--out", "reports/index.html"]))
        return root / "reports/index.html"


@pytest.fixture(scope="module", params=[False, True], ids=["steady", "changing"])
def finetuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        root = make_workspace(tmp_path_factory.mktemp("workspace"))
        add_finetuning(root, request.param)
        patch.chdir(root)
        page = root / "reports/finetuned.html"
        content = read_content(root / "params.yaml", root / "metrics", root / "plots")
        write_text(page, render_page(content, "MAC-Flow"))
        write_text(page.with_name("machine.js"), machine_script(machine_facts(root / "metrics")))
        return page


class Visit:
    """A page with everything that it said and asked for."""

    def __init__(self, browser: Browser, file: Path, width: int = 1280, scheme: Scheme = "light") -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.messages.append(f"exception: {error}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_function(READY, timeout=30_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 390])
def test_page_draws_and_fits(browser: Browser, report: Path, width: int, scheme: Scheme) -> None:
    page = drawn(browser, report, SECTIONS, width, scheme)
    assert page.locator(".plot").count() >= 10
    assert page.locator(".graph.wide").is_visible() == (width > 740)
    assert page.locator(".graph.tall").is_visible() == (width <= 740)
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_of_fine_tuning_draws_and_fits(
    browser: Browser, finetuned: Path, width: int, scheme: Scheme
) -> None:
    page = drawn(browser, finetuned, FINETUNED_SECTIONS, width, scheme)
    assert page.locator(".plot").count() == 4
    caption = page.locator("#caption-finetune_returns").inner_text()
    assert caption.startswith("Normalised return 69.9 offline (dotted), ")
    assert ("The upright line is where the environment became another." in caption) == (
        "80% of the normalised return before it was not regained." in page.locator("#curve").inner_text()
    )
    assert unreadable(page) == []
    page.close()


def drawn(browser: Browser, file: Path, sections: list[str], width: int, scheme: Scheme) -> Page:
    """Open a page that must be whole, fit the window and ask nothing of any network."""
    visit = Visit(browser, file, width, scheme)
    page = visit.page
    assert visit.messages == []
    outside = [url for url in visit.requests if not url.startswith("data:")]
    assert outside == [file.as_uri(), file.with_name("machine.js").as_uri()]
    for section in sections:
        assert page.locator(f"section#{section}").is_visible()
    plots = page.locator(".plot")
    assert page.locator(".plot svg").count() == plots.count()
    # Nothing reaches beyond the window but what scrolls inside its own box.
    assert page.evaluate("document.documentElement.scrollWidth") == width
    beyond = page.evaluate(
        """() => [...document.querySelectorAll("main *")]
             .filter((e) => !e.closest(".table, .visually-hidden, .graph, .plot"))
             .filter((e) => e.getBoundingClientRect().right > innerWidth)
             .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert beyond == []
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(browser: Browser, report: Path, scheme: Scheme) -> None:
    page = Visit(browser, report, scheme=scheme).page
    assert unreadable(page) == []
    page.close()


def unreadable(page: Page) -> list[str]:
    """Return the texts whose contrast with what is behind them is too low."""
    poor: list[str] = page.evaluate(
        """() => {
          const parse = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = (c) => c.slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const behind = (e) => {
            for (; e; e = e.parentElement) {
              const colour = parse(getComputedStyle(e).backgroundColor);
              if (colour.length < 4 || colour[3] > 0) return colour;
            }
            throw new Error("the page has no background");
          };
          const found = [];
          for (const e of document.querySelectorAll("body *")) {
            const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
            if (!own || !e.checkVisibility() || e.closest("script, style, noscript")) continue;
            const style = getComputedStyle(e);
            const text = light(parse(e instanceof SVGElement ? style.fill : style.color));
            const ground = light(behind(e));
            const ratio = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
            if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${e.tagName} ${e.textContent.trim()}`);
          }
          return found;
        }"""
    )
    return poor


def test_machine_section_shows_times_versions_and_latency(browser: Browser, report: Path) -> None:
    page = Visit(browser, report).page
    text = page.locator("#machine-facts").inner_text()
    for fact in ("train_flow", "22.5", "182", "1,530", "0123456789ab", "torch 2.13.0", "Linux-6.1-x86_64"):
        assert fact in text
    page.close()


def test_page_works_without_the_machine_script(browser: Browser, report: Path, tmp_path: Path) -> None:
    alone = tmp_path / "index.html"
    shutil.copy(report, alone)
    visit = Visit(browser, alone)
    assert "There is no machine.js beside this file" in visit.page.locator("#machine-facts").inner_text()
    assert visit.page.locator(".plot svg").count() == visit.page.locator(".plot").count()
    # The browser itself reports the missing file; nothing else may go wrong.
    assert [m for m in visit.messages if "ERR_FILE_NOT_FOUND" not in m] == []
    visit.page.close()


def test_keyboard_reaches_contents_button_tables_and_lineage(browser: Browser, report: Path) -> None:
    page = Visit(browser, report).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the result"
    focused = """() => {
      const e = document.activeElement;
      return e.getAttribute("href") ?? e.ariaLabel ?? e.textContent;
    }"""
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(focused))
    assert {"#lineage", "Pause", "Returns by actor", "Validation result", "#artifact-6"} <= reached
    page.close()


def test_episode_can_be_paused_and_rests_where_motion_is_unwanted(browser: Browser, report: Path) -> None:
    page = Visit(browser, report).page
    button, still = page.locator(".episode button"), page.locator(".episode canvas")
    assert button.inner_text() == "Pause"
    assert not still.is_visible()
    button.click()
    assert button.inner_text() == "Play"
    assert still.is_visible()
    page.close()

    calm = browser.new_page(reduced_motion="reduce")
    calm.goto(report.as_uri())
    calm.wait_for_function(READY)
    calm.locator(".episode canvas").wait_for(state="visible")
    assert calm.locator(".episode button").inner_text() == "Play"
    calm.close()


def test_a_box_of_the_lineage_opens_its_details(browser: Browser, report: Path) -> None:
    page = Visit(browser, report).page
    boxes = page.locator(".graph.wide a")
    for index in range(boxes.count()):
        boxes.nth(index).click()
        details = page.locator(".artifacts details").nth(index)
        assert details.get_attribute("open") is not None
        assert "SHA-256" in details.inner_text()
    before = page.locator(".graph.wide").get_attribute("viewBox")
    page.get_by_role("button", name="Zoom in").click()
    assert page.locator(".graph.wide").get_attribute("viewBox") != before
    page.close()


def test_curve_tells_its_values_at_the_pointer(browser: Browser, report: Path) -> None:
    page = Visit(browser, report).page
    plot = page.locator("#plot-w2 svg")
    plot.scroll_into_view_if_needed()
    plot.hover()
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    named = {text.strip(" :") for text in tooltip.locator("td.key").all_inner_texts()}
    assert named == {"Step", "W2", "Coupling bound"}
    page.close()


def test_page_refuses_the_network(browser: Browser, report: Path) -> None:
    visit = Visit(browser, report)
    blocked = visit.page.evaluate(
        """() => new Promise((resolve) => {
             document.addEventListener("securitypolicyviolation", (e) => resolve(e.blockedURI));
             fetch("http://127.0.0.1:9/").catch(() => {});
           })"""
    )
    assert blocked.startswith("http://127.0.0.1:9")
    visit.page.close()
