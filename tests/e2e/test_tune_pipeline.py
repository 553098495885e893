"""`macflow tune` on the real pipeline: trials share what they have in common."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from conftest import Project, copy_of
from playwright.sync_api import sync_playwright

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def tuned(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = copy_of(fresh, tmp_path_factory.mktemp("tuned"))
    said = project.check("macflow", "tune", "alpha", "--trials", "3", "--jobs", "2", "--write")
    assert "3 trials; best: number" in said
    return project


def test_trials_share_all_that_alpha_does_not_change(tuned: Project) -> None:
    runs = [folder for folder in (tuned.root / "tuning/alpha/runs").iterdir() if folder.is_dir()]
    assert Counter(folder.name.rsplit("-", 1)[0] for folder in runs) == {
        "record": 1,
        "prepare": 1,
        "train_flow": 1,
        "teacher": 1,
        "train_critic": 1,
        "distill": 3,
        "evaluate": 3,
    }
    table = pl.read_csv(tuned.root / "tuning/alpha/trials.csv")
    for row in table.iter_rows(named=True):
        metrics = tuned.root / "tuning/alpha/runs" / row["run"] / "metrics/evaluate.json"
        assert json.loads(metrics.read_text())["policy"]["return_mean"] == row["return"]
    assert table["policy"].n_unique() == 3


def test_the_project_itself_is_left_alone(tuned: Project) -> None:
    changed = tuned.check("git", "status", "--porcelain").split("\n")
    assert [line for line in changed if line] == [" M params.yaml"]
    best = pl.read_csv(tuned.root / "tuning/alpha/trials.csv").sort("return")["distill.alpha"][-1]
    assert f"alpha: {best}" in (tuned.root / "params.yaml").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_draws_and_asks_for_nothing(tuned: Project, width: int) -> None:
    page_file: Path = tuned.root / "tuning/alpha/index.html"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        messages: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.as_uri())
        page.wait_for_function("document.documentElement.dataset.charts === 'ready'", timeout=30_000)
        assert messages == []
        assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
        assert page.locator(".plot svg").count() == page.locator(".plot").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth") == width
        browser.close()
