"""The lineage's page in a real browser: a graph to move and open, by hand and by keyboard, offline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Project
from playwright.sync_api import Browser, Page, sync_playwright
from test_report_browser import unreadable

from macflow.lineage import project as lineage
from macflow.lineage.page import as_page
from macflow.lineage.tree import Tree, read_tree

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt-get install chromium)"),
]
VIEW = "document.querySelector('.graph.wide').getAttribute('viewBox')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def tree(reproduced: Project) -> Tree:
    found = lineage.Project(reproduced.root)
    return read_tree(found, lineage.find_subject(found, "models/policy"))


@pytest.fixture(scope="module")
def page_file(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "lineage.html"
    file.write_text(as_page(tree), encoding="utf-8")
    return file


def visit(browser: Browser, file: Path, width: int = 1280) -> tuple[Page, list[str], list[str]]:
    """Open the page; return it with what it says and asks for."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    return page, said, asked


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_whole_fits_and_asks_for_nothing(
    browser: Browser, page_file: Path, tree: Tree, width: int, scheme: str
) -> None:
    page, said, asked = visit(browser, page_file, width)
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = [node for node in tree.nodes if node.kind != "metrics"]
    assert page.locator(".graph.wide a").count() == page.locator(".artifacts details").count() == len(boxes)
    assert page.locator(".graph.wide").is_visible() == (width > 740)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert unreadable(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


def test_a_box_opens_its_details(browser: Browser, page_file: Path, tree: Tree) -> None:
    page, said, _ = visit(browser, page_file)
    assert page.locator("details[open]").count() == 0
    for index, node in enumerate(n for n in tree.nodes if n.kind != "metrics"):
        page.locator(".graph.wide a").nth(index).click()
        details = page.locator(".artifacts details").nth(index)
        assert details.get_attribute("open") is not None
        text = details.inner_text()
        assert node.path in text
        if node.made is not None:
            assert node.md5 is not None
            for fact in (node.md5, node.made.cmd, "training.seed" if "train" in node.made.stage else ""):
                assert fact in text
            assert "torch 2.13.0" in text
    assert said == []
    page.close()


def test_the_keyboard_reaches_and_opens_a_box(browser: Browser, page_file: Path) -> None:
    page, _, _ = visit(browser, page_file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the lineage"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('href')") == "#artifact-3":
            break
    page.keyboard.press("Enter")
    assert page.locator("details[open] h3").all_inner_texts() == ["data/prepared"]
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.close()


def test_the_graph_moves_and_grows(browser: Browser, page_file: Path) -> None:
    page, _, _ = visit(browser, page_file)
    whole = page.evaluate(VIEW)
    page.get_by_role("button", name="Zoom in").click()
    x, _, width, _ = (float(number) for number in page.evaluate(VIEW).split())
    assert width == pytest.approx(0.8 * float(whole.split()[2]))
    graph = page.locator(".graph.wide").bounding_box()
    assert graph is not None
    # Dragging from a box moves the graph and opens nothing.
    page.mouse.move(graph["x"] + graph["width"] / 2, graph["y"] + graph["height"] / 2)
    page.mouse.down()
    page.mouse.move(graph["x"] + graph["width"] / 2 + 100, graph["y"] + graph["height"] / 2, steps=4)
    page.mouse.up()
    assert float(page.evaluate(VIEW).split()[0]) < x
    assert page.locator("details[open]").count() == 0
    page.get_by_role("button", name="Show all").click()
    assert [float(x) for x in page.evaluate(VIEW).split()] == [float(x) for x in whole.split()]
    page.close()


def test_text_of_a_dataset_is_never_markup(browser: Browser, tree: Tree, tmp_path: Path) -> None:
    evil = "<script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"
    nodes = tuple(
        replace(node, path=evil, source=dict(node.source) | {"name": evil, "url": f"javascript:{evil}"})
        if node.kind == "source"
        else replace(node, inputs=tuple(evil if path.startswith("source") else path for path in node.inputs))
        for node in tree.nodes
    )
    file = tmp_path / "evil.html"
    file.write_text(as_page(replace(tree, nodes=nodes, warnings=(evil,))), encoding="utf-8")
    page, said, _ = visit(browser, file)
    page.locator(".graph.wide a").first.click()
    assert page.evaluate("window.evil") is None
    assert page.locator("details[open] h3").inner_text() == evil
    assert said == []
    page.close()


def test_the_page_refuses_the_network(browser: Browser, page_file: Path) -> None:
    page, _, _ = visit(browser, page_file)
    blocked = page.evaluate(
        """() => new Promise((resolve) => {
             document.addEventListener("securitypolicyviolation", (e) => resolve(e.blockedURI));
             fetch("http://127.0.0.1:9/").catch(() => {});
           })"""
    )
    assert blocked.startswith("http://127.0.0.1:9")
    page.close()
