"""The report: one page without network, of whatever subset of stages there is, with every answer escaped."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic_run import STAGE_SECONDS, curves, interrupt, make_run

from mengya.files import read_json, write_json, write_jsonl
from mengya.report import plots
from mengya.report.page import update_report, view, write_report
from mengya.report.training import delta_table
from mengya.report.words import as_value, metric_words, shown

_STAGES = tuple(STAGE_SECONDS)


class _Page(HTMLParser):
    """All tags with attributes, ids, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br", "path", "use", "rect", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = write_report(make_run(tmp_path_factory.mktemp("runs") / "r"))
    return path.read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_runs_nothing(page):
    parsed = _Page(page)
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "img", "link", "iframe", "object", "embed"})
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_untrusted_text_is_shown_as_text(page):
    parsed = _Page(page)
    for hostile in ("<script>alert(1)</script> &", "<img src=x onerror=alert(2)>", "<b>快来</b>"):
        assert hostile in parsed.text
        assert hostile not in page


def test_every_id_is_there_once_and_every_reference_finds_its_own(page):
    parsed = _Page(page)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes.get("href") or attributes.get("xlink:href") for _, attributes in parsed.tags]
    references = {target[1:] for target in targets if target} | set(re.findall(r"url\(#([^)]*)\)", page))
    assert references <= set(ids)
    assert not parsed.open, "elements left open"


def test_every_section_of_a_whole_run_is_there(page):
    parsed = _Page(page)
    sections_there = {attributes["id"] for tag, attributes in parsed.tags if tag == "section"}
    training = {"pretrain", "sft", "reward", "dpo", "ppo"}
    assert sections_there == {"summary", "corpus", "tokenizer", "comparison", "answers", "environment"} | training
    for expected in (
        "李明住在青石镇，家就在河边。",
        "Example CPU",
        "torch 2.13.0",
        "playground:12",
        "vocab_size: 6400",
    ):
        assert expected in parsed.text


@pytest.mark.parametrize(
    "stages", [(), ("corpus",), ("corpus", "tokenizer", "shards", "pretrain"), ("ppo", "evaluate")]
)
def test_any_part_of_a_run_is_reported(tmp_path, stages):
    parsed = _Page(write_report(make_run(tmp_path / "r", stages)).read_text(encoding="utf-8"))
    assert not parsed.open
    assert parsed.text.count("完成 done") == len(stages)
    assert parsed.text.count("未运行 not run") == len(_STAGES) - len(stages)


def test_an_interrupted_stage_shows_its_curve_so_far(tmp_path):
    run = make_run(tmp_path / "r", ("corpus", "pretrain"))
    interrupt(run, "pretrain")
    (stage,) = view(run)["training"]
    assert (stage["state"], stage["last_step"]) == ("interrupted", 200)
    assert stage["figures"]
    assert "interrupted" in write_report(run).read_text(encoding="utf-8")


def test_a_stage_that_measured_nothing_is_reported_without_numbers(tmp_path):
    run = make_run(tmp_path / "r", _STAGES)
    for stage in _STAGES:
        path = run.directory / stage / "manifest.json"
        write_json(path, read_json(path) | {"metrics": {}, "counts": {}, "delta": [], "samples": []})
        (run.directory / stage / "metrics.jsonl").unlink(missing_ok=True)
    (run.directory / "summary.json").unlink()
    shown_page = view(run)
    assert [card["en"] for card in shown_page["cards"]] == ["total time"]
    assert shown_page["comparison"] is None
    assert shown_page["answers"] is None
    write_report(run)


def test_a_page_is_drawn_again_when_something_it_tells_of_is_newer(tmp_path):
    run = make_run(tmp_path / "r", ("pretrain",))
    first = update_report(run).stat().st_mtime_ns
    assert update_report(run).stat().st_mtime_ns == first
    manifest = run.directory / "pretrain" / "manifest.json"
    write_json(manifest, read_json(manifest))
    assert update_report(run).stat().st_mtime_ns > first


def test_a_column_nobody_named_still_gets_a_curve(tmp_path):
    run = make_run(tmp_path / "r", ("sft",))
    rows = [row | {"brand_new": row["step"] / 7} for row in curves("sft", 40)]
    write_jsonl(run.directory / "sft" / "metrics.jsonl", rows)
    (stage,) = view(run)["training"]
    assert "brand new" in [figure["title"] for figure in stage["small_figures"]]


def test_nan_leaves_a_gap_and_a_curve_of_nothing_is_not_drawn():
    nothing = plots.Series("x", [1, 2], [float("nan")] * 2)
    assert plots.curves("a", "a", [nothing]) == ""
    some = plots.Series("x", [1, 2, 3], [1.0, float("nan"), 2.0])
    assert ElementTree.fromstring(plots.curves("a", "a", [some])).tag.endswith("svg")


def test_a_figure_is_the_same_every_time_and_takes_its_colours_from_the_page():
    series = [plots.Series("training", range(50), np.linspace(3, 1, 50).tolist(), smooth=True)]
    first = plots.curves("a", "a", series, [plots.Level("trigram", 2.0)])
    assert first == plots.curves("a", "a", series, [plots.Level("trigram", 2.0)])
    assert "var(--series-1)" in first
    assert not re.search(r"#[0-9a-f]{6}", first)


def test_the_running_mean_of_a_straight_line_is_the_line():
    line = np.linspace(0, 7, 333)
    np.testing.assert_allclose(plots._running_mean(line), line, atol=1e-12)


def test_thinning_a_long_curve_keeps_its_mean():
    y = np.random.default_rng(1).normal(size=plots._MAX_POINTS * 3)
    x, thin = plots._thin(np.arange(len(y), dtype=float), y)
    assert len(x) == len(thin) == plots._MAX_POINTS
    np.testing.assert_allclose(thin.mean(), y.mean())


@pytest.mark.parametrize(
    ("better", "before", "after", "low", "high", "verdict"),
    [
        ("higher", 0.5, 0.8, 0.2, 0.4, "better"),
        ("higher", 0.8, 0.5, -0.4, -0.2, "worse"),
        ("lower", 0.8, 0.5, -0.4, -0.2, "better"),
        ("lower", 0.5, 0.8, None, None, "worse"),
        ("higher", 0.5, 0.52, -0.01, 0.05, "same"),
        ("higher", 0.5, 0.5, None, None, "same"),
    ],
)
def test_a_change_is_better_worse_or_within_its_error(better, before, after, low, high, verdict):
    row = {"metric": "qa_accuracy", "before": before, "after": after, "change": after - before, "better": better}
    assert delta_table([row | {"low": low, "high": high}])[0]["verdict"] == verdict


def test_a_change_in_percent_is_in_percentage_points():
    row = {"metric": "sft.qa_accuracy", "before": 0.5, "after": 0.625, "change": 0.125, "better": "higher"}
    (row,) = delta_table([row])
    assert (row["change"], row["after"]) == ("+12.5 pp", "62.5%")


def test_the_length_only_baseline_stands_beside_each_reason(tmp_path):
    run = make_run(tmp_path / "r", ("reward",))
    (stage,) = view(run)["training"]
    rows = [(row["reason"], row["value"], row["baseline"]) for row in stage["by_reason"]]
    assert rows == [("", "95.0%", "52.0%"), ("polite", "99.0%", "54.0%"), ("right", "91.0%", "50.0%")]


def test_the_reward_model_is_shown_beside_its_baselines_with_calibration_and_margins(tmp_path):
    run = make_run(tmp_path / "r", ("reward",))
    page = write_report(run).read_text(encoding="utf-8")
    (stage,) = view(run)["training"]
    panels = stage["quality"]["figures"]
    assert [panel["title"].partition(" · ")[2] for panel in panels] == [
        "accuracy on held-out pairs, beside its baselines",
        "share right by the probability that the margin predicts",
        "margins of held-out pairs",
    ]
    for panel in panels:
        assert ElementTree.fromstring(str(panel["svg"])).tag.endswith("svg")
        assert not re.search(r"#[0-9a-f]{6}", str(panel["svg"])), "colours are the page's"
    for label in ("member 0", "member 1", "characters", "no prompt", "of like length"):
        assert label in str(panels[0]["svg"])
    assert page.count("better than its baselines, beyond its error") == 1


def test_the_summary_has_the_last_word_on_a_metric(tmp_path):
    run = make_run(tmp_path / "r", ("sft",))
    write_json(run.directory / "summary.json", {"sft.qa_accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}})
    cards = {card["en"]: card["value"] for card in view(run)["cards"]}
    assert cards["question accuracy"] == "50.0%"
    assert cards["identity accuracy"] == "98.0%"


def test_values_are_written_as_their_kind():
    assert shown("pretrain.bits_per_byte", 0.4821) == "0.482"
    assert shown("x.seconds", 3671) == "1:01:11"
    assert shown("x.peak_memory_bytes", 3 * 2**30) == "3.00 GiB"
    assert shown("x.tokens", 1_350_000) == "1.35 M"
    assert shown("dpo.repetition", 0.0123) == "1.2%"
    assert metric_words("reward.pair_accuracy.polite").en == "pair accuracy · polite"
    assert as_value({"value": None}) is None
    assert as_value({"value": 1.5, "low": 1.5, "high": 1.5, "n": 1}).low is None
    assert as_value(float("nan")) is None


# ------------------------------------------------------------------------------------------------------------- guard


def _look(step, score, mark, **more):
    return {"step": step, "score": score, "repetition": 0.011, "end_rate": 0.98, "kl": 0.04 * step, "mark": mark} | more


LOOKS = [
    _look(0, 0.7, "start", error=0.0, bits_per_byte=0.262, distinct_2=0.448, longest_repeat=0.96, reward=None),
    _look(6, 0.75, "kept", error=0.018, bits_per_byte=0.261, reward=0.1, length=9.5, refusals=0.02, entropy=0.41),
    _look(12, 0.8, "refused", error=0.02, bits_per_byte=0.3, reward=0.4, why_not="bits per byte rose <b>too far</b>"),
]
GUARDED = {
    "guard": LOOKS, "verdict": "the policy of rollout 6 is handed over", "stopped_early": "because of X",
    "handed_over": 6, "over_optimised_past": 12, "rollouts": 12,
}  # fmt: skip


def _guarded_run(directory, counts=GUARDED):
    run = make_run(directory)
    path = run.directory / "ppo" / "manifest.json"
    write_json(path, read_json(path) | {"counts": counts})
    return run


def test_the_guards_table_has_a_row_a_look_with_its_mark(tmp_path):
    run = _guarded_run(tmp_path / "r")
    ppo = next(stage for stage in view(run)["training"] if stage["name"] == "ppo")["guard"]
    columns = [column.zh for column in ppo["columns"]]
    rows = [dict(zip(columns, row["cells"], strict=True)) for row in ppo["rows"]]
    assert [row["step"] for row in ppo["rows"]] == ["0", "6", "12"]
    assert [row["得分"] for row in rows] == ["0.700", "0.750 ± 0.018", "0.800 ± 0.020"]
    assert [row["训练奖励"] for row in rows] == ["", "0.100", "0.400"], "what was not measured is not zero"
    assert [row["每字节比特"] for row in rows] == ["0.262", "0.261", "0.300"]
    assert (rows[0]["不同的二字组"], rows[0]["最长重复"], rows[1]["不同的二字组"]) == ("44.8%", "1.0", "")
    assert [row["en"] for row in ppo["rows"]] == ["start", "kept, handed over", "refused"]
    assert [len(ppo["figures"]), "step 12" in ppo["figures"][0]["svg"]] == [2, True]
    page = _Page(write_report(run).read_text(encoding="utf-8"))
    assert "bits per byte rose <b>too far</b>" in page.text, "shown as text"
    for line in ("the policy of rollout 6 is handed over", "because of X"):
        assert page.text.count(line) == 1


def test_looks_of_an_older_run_and_no_looks_at_all_are_reported(tmp_path):
    old = [{"step": 0, "score": 0.7, "repetition": 0.0, "end_rate": 1.0, "kl": 0.0, "error": 0.0}]
    write_report(_guarded_run(tmp_path / "old", {"guard": old, "verdict": "that one is handed over"}))
    run = _guarded_run(tmp_path / "none", {"rollouts": 3})
    assert next(stage for stage in view(run)["training"] if stage["name"] == "ppo")["guard"] is None
    write_report(run)


def test_the_way_through_reward_and_kl_needs_two_points():
    way = [plots.Point(0, 0.0, 0.5), plots.Point(4, float("nan"), 0.6)]
    assert plots.track("a", "a", way, {"handed over": 0, "over-optimised past": 4}, "x") == ""
    svg = plots.track(
        "a", "a", [*way, plots.Point(8, 1.0, 0.7, 0.1)], {"handed over": 8, "over-optimised past": None}, "x"
    )
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "handed over (step 8)" in svg
    assert "over-optimised" not in svg
