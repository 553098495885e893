"""Data and model cards: whatever a dataset calls itself, they are plain Markdown, and nothing is invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_samples import prepare_recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from test_cli import fail, run

from macflow.files import write_json
from macflow.lineage.cards import code, front_matter, markdown
from macflow.lineage.locked import dvc_md5

HOSTILE = (
    "<script>alert(1)</script>",
    "![x](https://example.org/beacon.png)",
    "[click](javascript:alert(1))",
    "a | b | c",
    "`code` **bold** _it_ ~~gone~~ # no heading",
    "line\n\n# heading\n\n---\n\n* list",
    "&lt;img src=x onerror=alert(1)&gt;",
    "\\` \\| \\",
    "---",
    "$x$ :smile: \u202e\x00\x1b[31m",
)
# What Markdown may become here; anything else was smuggled in.
TAGS = {"h1", "h2", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "code", "hr", "br"}


def tokens(text: str) -> list[Any]:
    """Parse as hubs do: CommonMark with tables, and HTML let through, so that it would show."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    found = []
    for token in parser.parse(text):
        found.append(token)
        found += token.children or []
    return found


def check_harmless(text: str) -> None:
    """Hold that nothing runs, loads or leads anywhere, for a renderer too that knows no front matter."""
    for token in tokens(text):
        assert token.type not in ("html_block", "html_inline", "image", "link_open"), token


def check_card(card: str) -> None:
    check_harmless(card)
    assert {token.tag for token in tokens(body(card))} <= TAGS | {""}


def body(card: str) -> str:
    return card.split("\n---\n", 1)[1]


def head(card: str) -> Any:
    assert card.startswith("---\n")
    return yaml.safe_load(card[4:].split("\n---\n", 1)[0])


@given(st.text() | st.sampled_from(HOSTILE))
@settings(max_examples=300, deadline=None)
def test_any_text_in_a_cell_shows_itself_and_nothing_else(text: str) -> None:
    shown = tokens(f"| a | b |\n|---|---|\n| x | {markdown(text)} |\n")
    assert {token.type for token in shown} <= {
        "table_open", "table_close", "thead_open", "thead_close", "tbody_open", "tbody_close", "tr_open",
        "tr_close", "th_open", "th_close", "td_open", "td_close", "inline", "text", "text_special",
    }  # fmt: skip
    cells = [token for token in shown if token.type == "inline"]
    assert len(cells) == 4
    words = "".join(child.content for child in cells[3].children)
    assert words.split() == "".join(c if c.isprintable() else " " for c in text).split()


@given(st.text() | st.sampled_from(HOSTILE))
@settings(max_examples=200, deadline=None)
def test_any_name_as_code_and_in_front_matter(text: str) -> None:
    check_harmless(f"Of {code(text)}.")
    name = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    written = front_matter({"pretty_name": name, "tags": ["a", name]})
    assert yaml.safe_load(written[4:-4]) == {"pretty_name": name, "tags": ["a", name]}
    # A renderer that knows no front matter takes it for text.
    check_harmless(written)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards") / "data"
    prepare_recorded(folder, "game/landmark", "medium", 12)
    return folder


@pytest.fixture
def hostile(tmp_path: Path, prepared: Path) -> Path:
    """A prepared dataset whose every free text is an attack."""
    folder = tmp_path / "data"
    folder.mkdir()
    for file in prepared.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    meta = json.loads((folder / "dataset.json").read_text())
    meta["source"] |= {
        "dataset_id": HOSTILE[0] + HOSTILE[1],
        "behaviour": {"name": HOSTILE[2], HOSTILE[3]: HOSTILE[4]},
    }
    meta["env"] |= {"id": HOSTILE[5], "kwargs": {HOSTILE[6]: HOSTILE[7]}, "version": HOSTILE[9]}
    write_json(folder / "dataset.json", meta)
    return folder


def test_a_dataset_named_as_an_attack_does_no_harm(hostile: Path) -> None:
    card = run("dataset", "card", hostile)
    check_card(card)
    assert head(card)["pretty_name"] == HOSTILE[0] + HOSTILE[1]
    headings = [t.content for t in tokens(body(card)) if t.type == "inline"]
    assert any("script" in heading for heading in headings)
    rows = [line for line in body(card).splitlines() if line.startswith("| a \\| b \\| c")]
    assert len(rows) == 1, "a key with bars is one cell"


def manifest_of(name: str, made_from: dict[str, str]) -> dict[str, Any]:
    return {
        "schema_version": 3,
        "spec": {
            "agent_ids": ["a", name], "obs_dims": [3, 4], "state_size": 7, "action_kind": "discrete",
            "action_size": 2, "action_low": [-1.0, -1.0], "action_high": [1.0, 1.0],
        },
        "noise": "individual",
        "acting": {"noise": 1.0, "best_of": 1},
        "params": {"distill": {"alpha": 0.03, "hidden": [8]}, "training": {"seed": 7}},
        "made_from": made_from,
        "env": {"id": name, "kwargs": {}, "version": None},
        "source": {"path": "data/raw", "sha256": "0" * 64, "dataset_id": name, "behaviour": None},
    }  # fmt: skip


def save_bundle(root: Path, name: str) -> Path:
    folder = root / "models" / "policy"
    folder.mkdir(parents=True)
    write_json(folder / "policy.json", manifest_of(name, {name: "1" * 64}))
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_a_policy_for_an_environment_named_as_an_attack_does_no_harm(tmp_path: Path, name: str) -> None:
    check_card(run("policy", "card", save_bundle(tmp_path, name)))


def test_a_bundle_alone_has_a_card_that_says_what_is_unknown(tmp_path: Path) -> None:
    card = run("policy", "card", save_bundle(tmp_path, "game/xor"))
    assert "## Results\n\nUnknown." in card
    assert "## Diagnosis\n\nUnknown." in card
    assert "Time to act: unknown." in card
    assert "Those of earlier stages are unknown here." in card
    assert "| training | seed: 7 |" in card
    assert "| behaviour | unknown |" in card
    assert "no dvc.lock above" in card
    # Nothing was measured, so a hub is told no result.
    assert "model-index" not in head(card)


def test_a_prepared_dataset_alone_says_what_is_missing(prepared: Path) -> None:
    card = run("dataset", "card", prepared)
    meta = json.loads((prepared / "dataset.json").read_text())
    assert f"| team return, mean | {meta['returns']['mean']:.4g} |" in card
    assert "| episodes | 12 |" in card
    assert "## Statistics\n\nUnknown." in card
    assert "## Checks\n\nUnknown." in card
    assert "Missing: metrics/describe.json" in card
    assert "Missing: reports/validation/validation.json" in card
    assert "| licence | unknown |" in card
    assert head(card)["license"] == "unknown"
    assert head(card)["size_categories"] == ["n<1K"]


def evaluation(mean: float) -> dict[str, Any]:
    measured = {
        "return_mean": mean, "return_ci95_low": mean - 1, "return_ci95_high": mean + 1,
        "normalized_return": None, "normalized_return_ci95_low": None, "normalized_return_ci95_high": None,
    }  # fmt: skip
    better = measured | {"return_mean": mean + 5, "return_ci95_low": mean + 4, "return_ci95_high": mean + 6}
    near = measured | {
        "return_mean": mean + 1.5,
        "return_ci95_low": mean + 0.5,
        "return_ci95_high": mean + 2.5,
    }
    return {"env": "game/xor", "episodes": 9, "seed": 1000, "reference": None, "policy": measured,
            "flow": better, "random": near}  # fmt: skip


def lock_up(root: Path, bundle: Path, md5: str | None = None) -> None:
    """Write the metrics of an evaluation and the dvc.lock that says of what it was."""
    file = root / "metrics" / "evaluate.json"
    write_json(file, evaluation(3.0))
    policy = {"path": "models/policy", "md5": dvc_md5(bundle)}
    used = policy | ({} if md5 is None else {"md5": md5})
    stages = {
        "distill": {
            "outs": [policy],
            "params": {"params.yaml": {"distill": {"alpha": 0.5}, "flow.steps": 9}},
        },
        "evaluate": {"deps": [used], "outs": [{"path": "metrics/evaluate.json", "md5": dvc_md5(file)}]},
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))


def test_metrics_that_the_lock_ties_to_the_policy_are_shown(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path, "game/xor")
    lock_up(tmp_path, bundle)
    card = run("policy", "card", bundle)
    assert "over 9 episodes with seeds from 1000 on" in card
    assert "| this policy | 3 (2 to 4) | unknown |" in card
    assert "| flow | steps: 9 |" in card
    assert "clearly worse than: joint flow" in card
    # Intervals that overlap separate nothing.
    assert "clearly worse than: random" not in card
    assert head(card)["model-index"][0]["results"][0]["metrics"][0]["value"] == 3.0
    assert "Missing: metrics/diagnose.json is missing" in card


def test_metrics_of_another_policy_are_not_shown(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path, "game/xor")
    lock_up(tmp_path, bundle, md5="0" * 32 + ".dir")
    card = run("policy", "card", bundle)
    assert "metrics/evaluate.json is not of this version" in card
    assert "## Results\n\nUnknown." in card


def test_metrics_that_were_polished_afterwards_are_not_shown(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path, "game/xor")
    lock_up(tmp_path, bundle)
    write_json(tmp_path / "metrics" / "evaluate.json", evaluation(99.0))
    card = run("policy", "card", bundle)
    assert "99" not in body(card)
    assert "metrics/evaluate.json is not of this version" in card


def test_baselines_are_shown_as_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = save_bundle(tmp_path, "game/xor")
    file = tmp_path / "bc.json"
    measured = evaluation(3.0)["policy"] | {
        "method": "bc",
        "settings": {},
        "env": "game/xor",
        "env_kwargs": {},
    }
    write_json(file, measured | {"episodes": 50, "seed": 1000})
    assert "| bc | game/xor  | 50, 1000 | 3 (2 to 4) | unknown |" in run(
        "policy", "card", bundle, "--baseline", file
    )
    write_json(file, {"settings": {}, "env_kwargs": {}})
    assert "`method` is missing" in fail(capsys, "policy", "card", bundle, "--baseline", file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": None}, "`spec` must be an object"),
        ({"spec": {"agents": 3}}, "wrong keys"),
        ({"acting": {"noise": 1.0}}, "`acting.best_of` is missing"),
        ({"env": "mpe/spread"}, "must hold a JSON object"),
    ],
)
def test_a_manifest_of_another_form_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    bundle = save_bundle(tmp_path, "game/xor")
    write_json(bundle / "policy.json", manifest_of("game/xor", {}) | change)
    assert words in fail(capsys, "policy", "card", bundle)


def test_listed_datasets_have_cards_before_they_are_here(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads((Path(__file__).parents[2] / "macflow" / "dataset_facts.json").read_text())
    card = run("dataset", "card", "mpe-spread/medium")
    known = facts["mpe-spread/medium"]
    assert f"| transitions | {known['transitions']:,} |" in card
    assert f"| team return, mean | {known['return_mean']:.4g} |" in card
    assert "| agents | 3:" in card
    published = run("dataset", "card", "og-marl/og_marl/smac_v1/3m/Good")
    assert "| SHA-256 | unknown |" in published
    assert "| transitions | unknown |" in published
    assert "neither a folder nor a name" in fail(capsys, "dataset", "card", "mpe-spread/nothing")


def test_cards_are_written_beside_never_inside(
    tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = save_bundle(tmp_path, "game/xor")
    out = tmp_path / "cards" / "policy.md"
    run("policy", "card", bundle, "--out", out)
    assert out.read_text() == run("policy", "card", bundle)
    for command, path in (("policy", bundle), ("dataset", prepared)):
        assert "whose hash it would change" in fail(
            capsys, command, "card", path, "--out", path / "README.md"
        )
        assert not (path / "README.md").exists()


def test_a_recording_is_measured_for_its_card(tmp_path: Path) -> None:
    run("dataset", "record", "game-xor/mixed", "--episodes", "30", "--out", tmp_path / "xor")
    card = run("dataset", "card", tmp_path / "xor")
    assert "Computed for this card." in card
    assert "Checked for this card" in card
    assert "| team return, mean | 1 |" in card
    assert "| behaviour | mixed |" in card
