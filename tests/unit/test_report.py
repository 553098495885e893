"""The report: what it reads, what it says, and that equal inputs give equal bytes."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from report_workspace import PARAM_SECTIONS, PARAMS, edit_json, make_workspace

from macflow.files import digest
from macflow.report import numbers
from macflow.report.charts import Series, build_charts, curve
from macflow.report.content import Content, Inputs, attention, headline, read_content
from macflow.report.graph import lay_out
from macflow.report.render import machine_facts, machine_script, render_page
from macflow.stages import report as stage
from macflow.types import ConfigError, DataError, MacflowError

SECTIONS = {
    "result", "returns", "run", "dataset", "validation", "training", "diagnostics", "lineage", "machine",
}  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("template"))


@pytest.fixture
def workspace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = shutil.copytree(template, tmp_path / "workspace")
    monkeypatch.chdir(root)
    return root


def arguments(**changes: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    stage.add_arguments(parser)
    parsed = parser.parse_args(["--out", "reports/index.html"])
    vars(parsed).update(changes)
    return parsed


def read() -> Content:
    return read_content(
        Inputs(
            params=Path("params.yaml"),
            recorded=Path("data/raw"),
            metrics=Path("metrics"),
            plots=Path("plots"),
            models=Path("models"),
            data=Path("data/prepared"),
            validation=Path("reports/validation"),
            lock=Path("dvc.lock"),
        )
    )


def sentence() -> str:
    return "".join(text for text, _ in headline(read().evaluation))


class Outline(HTMLParser):
    """Collect ids, scripts' texts and all visible text; fail on elements that do not nest."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in {"src", "href"}:
                self.sources.append(str(value))
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data


def test_page_has_every_section_and_loads_nothing_but_the_machine_script(workspace: Path) -> None:
    outline = Outline(render_page(read(), "A title"))
    assert set(outline.ids) >= SECTIONS
    assert len(outline.ids) == len(set(outline.ids))
    outside = {s for s in outline.sources if not s.startswith(("#", "data:"))}
    assert outside == {"machine.js"}
    for link in (s[1:] for s in outline.sources if s.startswith("#")):
        assert link in outline.ids


def test_same_inputs_in_another_place_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = []
    for name in ("first", "a/second one"):
        root = tmp_path / name
        root.mkdir(parents=True)
        monkeypatch.chdir(make_workspace(root))
        stage.main(arguments())
        pages.append((root / "reports/index.html").read_bytes())
        # What differs between machines must not reach the page.
        edit_json(root / "metrics/run_cards/distill.json", wall_seconds=999.0, git_commit="f" * 40)
        stage.main(arguments())
        pages.append((root / "reports/index.html").read_bytes())
    assert len(set(pages)) == 1
    assert str(tmp_path).encode() not in pages[0]
    assert len(pages[0]) < 3_000_000


def test_headline_names_the_gain_and_the_side_of_the_flow(workspace: Path) -> None:
    assert sentence() == (
        "The one-step policy reaches a normalised return of 88.8 (95% interval 86.8 to 90.7), "
        "19.1 points above the mean of its dataset and 13.9 points above the joint flow it was distilled "
        "from."
    )


def test_headline_does_not_claim_what_intervals_do_not_separate(workspace: Path) -> None:
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    metrics["flow"] |= {"normalized_return": 90.0, "normalized_return_ci95_low": 88.0}
    metrics["flow"] |= {"normalized_return_ci95_high": 92.0}
    edit_json(Path("metrics/evaluate.json"), **metrics)
    assert "level with the joint flow it was distilled from (1.2 points apart)." in sentence()


def test_a_policy_worse_than_its_data_and_teacher_is_said_to_be(workspace: Path) -> None:
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    edit_json(Path("metrics/evaluate.json"), policy=metrics["random"])
    assert "69.1 points below the mean of its dataset" in sentence()
    assert [(a.text, a.section) for a in attention(read())] == [
        ("The one-step policy does worse than its dataset", "returns"),
        ("The one-step policy does worse than the joint flow it was distilled from", "returns"),
    ]


def test_headline_and_page_use_raw_returns_without_a_reference(workspace: Path) -> None:
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    for name in ("policy", "flow", "behaviour", "random"):
        metrics[name] |= {key: None for key in metrics[name] if key.startswith("normalized")}
    metrics["dataset"]["normalized_return"] = None
    edit_json(Path("metrics/evaluate.json"), **metrics | {"reference": None, "gain_over_dataset": None})
    assert sentence().startswith(
        "The one-step policy reaches a return of −24.1 (95% interval −24.9 to −23.3), 8.0 above"
    )
    assert "Normalised return" not in Outline(render_page(read(), "t")).text


def test_behaviour_may_be_unknown(workspace: Path) -> None:
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    del metrics["behaviour"]
    Path("metrics/evaluate.json").write_text(json.dumps(metrics))
    content = read()
    drawn = json.dumps(build_charts(content)["returns"].spec)
    assert "Random" in drawn
    assert "Behaviour" not in drawn
    render_page(content, "t")


@pytest.mark.parametrize(
    "path",
    [
        "metrics/evaluate.json",
        "metrics/diagnose.json",
        "metrics/describe.json",
        "metrics/train_flow.json",
        "metrics/train_critic.json",
        "metrics/distill.json",
        "reports/validation/validation.json",
        "data/prepared/dataset.json",
        "models/critic/critic.json",
        "plots/describe/returns.csv",
        "plots/describe/actions.csv",
        "plots/train_flow/curve.csv",
        "plots/distill/diagnostics.csv",
        "plots/diagnose/actions.csv",
        "plots/evaluate/episode.gif",
        "params.yaml",
    ],
)
def test_missing_input_is_named_and_leaves_the_old_report(workspace: Path, path: str) -> None:
    Path("reports/index.html").write_text("old")
    Path(path).unlink()
    with pytest.raises(MacflowError, match=re.escape(path)):
        stage.main(arguments())
    assert Path("reports/index.html").read_text() == "old"
    assert not Path("reports/machine.js").exists()


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("metrics/diagnose.json", '{"w2": "far"}', "`w2`"),
        ("metrics/describe.json", "{", "not valid JSON"),
        ("plots/train_flow/curve.csv", "step,loss\n", "holds no rows"),
        ("plots/train_flow/curve.csv", "step\n1\n", "`loss` is missing"),
        ("plots/train_flow/curve.csv", "step,loss\n1,low\n", "must hold numbers (received 'low')"),
        ("plots/evaluate/episode.gif", "PNG", "not a GIF"),
        ("models/flow/flow.json", '{"made_from": {"data/prepared": 3}}', "`made_from` must map"),
        ("models/flow/flow.json", '{"made_from": {}, "params": {"flow": 3}}', "`params` must map"),
        ("models/flow/flow.json", '{"made_from": {"models/policy": "x"}}', "made from each other"),
        ("dvc.lock", "stages: [", "not a DVC lock file"),
    ],
)
def test_malformed_input_is_named_with_its_rule(workspace: Path, path: str, text: str, said: str) -> None:
    Path(path).write_text(text)
    with pytest.raises(DataError) as caught:
        read()
    assert said in str(caught.value)
    assert Path(path).name in str(caught.value) or "manifests" in str(caught.value)


def test_reference_without_normalised_returns_is_refused(workspace: Path) -> None:
    edit_json(Path("metrics/evaluate.json"), dataset={"return_mean": -32.1, "normalized_return": None})
    with pytest.raises(DataError, match="every `normalized_return` must be a number"):
        read()


def test_params_must_be_sections(workspace: Path) -> None:
    Path("params.yaml").write_text("dataset: a/b\nreport: {title: x}\nalpha: 3\n")
    with pytest.raises(ConfigError, match="every section must map"):
        read()
    Path("params.yaml").write_text("report: {title: x}\n")
    with pytest.raises(ConfigError, match=r"`dataset`: must be a name \(received None\)"):
        read()


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"


def test_text_from_inputs_is_never_markup(workspace: Path) -> None:
    params = PARAMS | {"report": {"title": HOSTILE}, "dataset": HOSTILE, "record": {HOSTILE: 1}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    validation = json.loads(Path("reports/validation/validation.json").read_text())
    validation["expectations"][0] |= {"name": HOSTILE, "meaning": HOSTILE}
    edit_json(Path("reports/validation/validation.json"), **validation)
    dataset = json.loads(Path("data/prepared/dataset.json").read_text())
    dataset["source"]["behaviour"] = HOSTILE
    dataset["spec"]["agent_ids"] = [HOSTILE, "b", "c"]
    edit_json(Path("data/prepared/dataset.json"), **dataset)
    table = Path("plots/describe/actions.csv")
    table.write_text(table.read_text().replace("agent_0", '"' + HOSTILE.replace('"', '""') + '"'))
    checks = json.loads(Path("metrics/diagnose.json").read_text())["checks"]
    edit_json(Path("metrics/diagnose.json"), checks={HOSTILE: next(iter(checks.values()))})
    Path("plots/diagnose/texts.json").write_text(json.dumps({"checks": {HOSTILE: {"meaning": HOSTILE}}}))

    stage.main(arguments())

    outline = Outline(Path("reports/index.html").read_text())
    # Chart data, chart library, machine.js and the page's own two scripts: no other was smuggled in.
    assert len(outline.scripts) == 6
    assert not any("alert(1)" in script for script in outline.scripts[1:])
    assert outline.sources.count("x") == 0
    assert outline.text.count(HOSTILE) >= 4
    drawn = json.loads(outline.scripts[0])
    assert HOSTILE in json.dumps(drawn["actions"], ensure_ascii=False).replace('\\"', '"')


def test_machine_script_is_data_even_in_html(workspace: Path) -> None:
    edit_json(Path("metrics/run_cards/distill.json"), platform="</script><b>")
    (Path("metrics/run_cards") / "report.json").write_text("{}")
    facts = machine_facts(Path("metrics"))
    script = machine_script(facts)
    assert "<" not in script
    assert json.loads(script.removeprefix("window.macflowMachine = ").removesuffix(";\n")) == facts
    assert facts["run_cards"]["distill"]["platform"] == "</script><b>"
    assert "report" not in facts["run_cards"]
    assert facts["timings"]["evaluate"]["policy"]["latency_us_p50"] == 182.0


def test_machine_facts_may_be_absent(tmp_path: Path) -> None:
    assert machine_facts(tmp_path) == {"run_cards": {}, "timings": {}}


def test_lineage_of_an_untouched_run_agrees(workspace: Path) -> None:
    content = read()
    assert [a.path for a in content.lineage.artifacts] == [
        "data/raw", "data/prepared", "models/flow", "models/teacher", "models/critic", "models/policy",
    ]  # fmt: skip
    assert content.lineage.warnings == ()
    assert attention(content) == ()
    policy = content.lineage.artifact("models/policy")
    assert policy.sha256 == digest(Path("models/policy"))
    assert policy.dvc_md5 == f"{5:032x}.dir"
    assert {s.name: s.value for s in policy.settings}["distill.alpha"] == 3.0
    assert "Nothing needs attention" in render_page(content, "t")


def test_lineage_finds_a_changed_input_a_missing_source_and_other_parameters(workspace: Path) -> None:
    Path("models/flow/content.bin").write_bytes(b"tampered")
    shutil.rmtree("data/raw")
    params = PARAMS | {"distill": PARAMS["distill"] | {"alpha": 1.0}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    content = read()
    assert content.lineage.warnings == (
        "data/prepared was made from data/raw, which is not present",
        "models/teacher was made from another models/flow than the present one",
        "models/policy was made from another models/flow than the present one",
        "models/policy was made with another distill.alpha than the parameters say",
    )
    text = Outline(render_page(content, "t")).text
    for warning in content.lineage.warnings:
        assert text.count(warning) == 2  # at the top and in the lineage
    assert f"now {digest(Path('models/flow'))[:12]}" in text


def test_lineage_without_dvc_lock_says_so(workspace: Path) -> None:
    Path("dvc.lock").unlink()
    content = read()
    assert {a.dvc_md5 for a in content.lineage.artifacts} == {None}
    assert Outline(render_page(content, "t")).text.count("not in dvc.lock") == 6


@pytest.mark.parametrize("vertical", [False, True])
def test_drawing_has_every_edge_inside_its_frame(workspace: Path, vertical: bool) -> None:
    lineage = read().lineage
    graph = lay_out(lineage, vertical)
    assert {(e.source, e.target) for e in graph.edges} == {
        (entry.path, a.path) for a in lineage.artifacts for entry in a.inputs
    }
    assert len(graph.edges) == 10
    for node in graph.nodes:
        assert 0 <= node.x <= graph.width - graph.node_width
        assert 0 <= node.y <= graph.height - graph.node_height
    for edge in graph.edges:
        # A cubic curve stays between its ends and three quarters of the way to its control points.
        points = [tuple(map(float, p.split(","))) for p in re.findall(r"[-\d.]+,[-\d.]+", edge.path)]
        ends, controls = [points[0], points[-1]], points[1:-1]
        reached = [
            [e + 0.75 * (c - e) for e, c in zip(end, control, strict=True)]
            for end, control in zip(ends, controls, strict=False)
        ]
        for x, y in [*ends, *reached]:
            assert 0 <= x <= graph.width
            assert 0 <= y <= graph.height


def test_attention_lists_every_kind_of_trouble(workspace: Path) -> None:
    validation = json.loads(Path("reports/validation/validation.json").read_text())
    validation["expectations"][2] |= {"success": False, "failures": 2, "first_failures": [[3, 12], [4, 0]]}
    validation["expectations"][3] |= {"success": False, "evaluated": False, "note": "column is missing"}
    edit_json(Path("reports/validation/validation.json"), **validation)
    diagnosis = json.loads(Path("metrics/diagnose.json").read_text())
    diagnosis["checks"]["q_collapse"] |= {"value": 1.7, "raised": True}
    edit_json(
        Path("metrics/diagnose.json"),
        **diagnosis | {"w2_bound_holds": False, "value_gap_bound_holds": False},
    )
    content = read()
    assert [(a.text, a.section) for a in attention(content)] == [
        ("Validation failed: finite_rewards, finite_observations", "validation"),
        ("The bound of Prop. 4.2 does not hold", "diagnostics"),
        ("The bound of Prop. 4.3 does not hold", "diagnostics"),
        ("Q-collapse raised: 1.70 against 1", "diagnostics"),
    ]
    text = Outline(render_page(content, "t")).text
    assert "4 things need attention" in text
    assert "(3, 12), (4, 0)" in text
    assert "could not be checked" in text
    assert "column is missing" in text


def test_curves_take_a_logarithmic_axis_only_where_it_helps() -> None:
    def axis(*values: float | None) -> str:
        rows = [{"step": float(i), "loss": value} for i, value in enumerate(values)]
        chart = curve("key", "Loss", rows, [Series("loss", "Loss", "var(--flow)")])
        scale = chart.spec["layer"][0]["encoding"]["y"]["scale"]
        return str(scale.get("type", "linear"))

    assert axis(1.0, 0.5, 0.4) == "linear"
    assert axis(1.0, 0.5, 0.001) == "log"
    assert axis(1.0, 0.5, -0.001) == "linear"
    assert axis(1.0, None, 0.5) == "linear"
    assert axis(None, None) == "linear"


def test_not_finite_cells_leave_a_gap_and_no_nan_in_the_page(workspace: Path) -> None:
    Path("plots/train_flow/curve.csv").write_text("step,loss\n100,nan\n200,inf\n300,0.5\n400,\n")
    content = read()
    assert [row["loss"] for row in content.flow_curve] == [None, None, 0.5, None]
    chart = build_charts(content)["flow_loss"]
    assert chart.caption == "Loss 0.500 at first, 0.500 at the end."
    json.dumps(chart.spec, allow_nan=False)


def test_lengths_are_drawn_only_where_they_differ(workspace: Path) -> None:
    description = json.loads(Path("metrics/describe.json").read_text())
    description["length"] |= {"min": 25.0, "max": 25.0, "mean": 25.0}
    edit_json(Path("metrics/describe.json"), **description)
    content = read()
    assert "dataset_lengths" not in build_charts(content)
    assert "the same in all episodes" in Outline(render_page(content, "t")).text


def test_one_agent_has_no_joint_actions_to_draw(workspace: Path) -> None:
    Path("plots/diagnose/actions.csv").write_text("state,source,dim,x,y\n")
    content = read()
    assert not any(key.startswith("joint_actions") for key in build_charts(content))
    render_page(content, "t")


def test_parameters_of_recording_are_no_claim_about_data_of_ones_own(workspace: Path) -> None:
    manifest = Path("data/prepared/dataset.json")
    recorded = Outline(render_page(read(), "t")).text
    assert "no part in this result" not in recorded
    source = json.loads(manifest.read_text())["source"]
    edit_json(manifest, source=source | {"path": "data/mine", "dataset_id": "crossing/logs-v0"})
    text = Outline(render_page(read(), "t")).text
    # Under `dataset` and under `record`.
    assert text.count("no part in this result: the data are those in data/mine") == 2
    assert "crossing/logs-v0" in text


def test_all_parameters_stand_on_the_page(workspace: Path) -> None:
    text = Outline(render_page(read(), "t")).text
    assert "mpe-spread/medium" in text
    for section, values in PARAM_SECTIONS.items():
        assert section in text
        for name, value in values.items():
            assert name in text
            assert numbers.setting(value) in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0"), (3, "3"), (-1.5, "−1.50"), (0.01234, "0.0123"), (12.345, "12.3"),
        (9.999, "10.00"), (1234.6, "1 235"), (50000, "50 000"), (2.5e-7, "2.50e−7"), (3e12, "3.00e12"),
    ],
)  # fmt: skip
def test_number(value: float | None, text: str) -> None:
    assert numbers.number(value).replace(numbers.THIN_SPACE, " ") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"), (True, "true"), (3.0, "3.0"), (3e-4, "0.0003"), (1e6, "1e+06"),
        ([256, 128], "256, 128"),
        ({"n_agents": 3, "wide": False}, "n_agents: 3, wide: false"), ({}, "none"), ("mean", "mean"),
    ],
)  # fmt: skip
def test_setting(value: object, text: str) -> None:
    assert numbers.setting(value) == text


def test_signed_fixed_and_percent() -> None:
    assert numbers.signed(3.14159) == "+3.1"
    assert numbers.signed(-3.14159) == "−3.1"
    assert numbers.fixed(-1234.5, 2).replace(numbers.THIN_SPACE, " ") == "−1 234.50"
    assert numbers.percent(0.123).replace(numbers.THIN_SPACE, " ") == "12.3 %"
    assert {f(None) for f in (numbers.signed, numbers.fixed, numbers.percent)} == {"–"}
