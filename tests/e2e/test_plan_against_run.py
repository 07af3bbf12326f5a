"""The plan of a recipe against the finished run of the same recipe: what it counts must be what then happens."""

import shutil

import pytest

from mengya.files import read_json
from mengya.recipe import load_recipe
from mengya.report.page import write_report
from mengya.run import Run
from mengya.serve import plan as plans
from mengya.serve import plan_probe
from road import TINY


@pytest.fixture(scope="module")
def planned(tiny_run, tmp_path_factory):
    """(the finished run with the plan of its recipe in it, the plan)."""
    directory = tmp_path_factory.mktemp("planned") / "run"
    shutil.copytree(tiny_run, directory)
    recipe = load_recipe(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_probe, "SECONDS_A_PROBE", 0.02)
        plan = plans.make_plan(recipe)
    plans.keep_plan(plan, recipe, directory)
    return Run.open(directory), plan


def counted(run, stage):
    return (run.manifest(stage) or {})["counts"]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo"])
def test_steps_are_those_that_happened(planned, stage):
    run, plan = planned
    assert plan["stages"][stage]["steps"] == counted(run, stage)["step"]


def test_rollouts_and_tokens_are_those_that_happened(planned):
    run, plan = planned
    assert plan["stages"]["ppo"]["steps"] == counted(run, "ppo")["rollouts"]
    assert sum(plan["data_tokens"].values()) == counted(run, "shards")["train"]["tokens"]
    assert plan["parameters"] == counted(run, "pretrain")["parameters"]


def test_every_stage_is_planned_with_its_model(planned):
    _, plan = planned
    assert list(plan["stages"]) == load_recipe(TINY).stages
    assert all(stage["seconds"] > 0 for stage in plan["stages"].values())


def test_the_report_of_the_run_shows_the_plan(planned):
    run, plan = planned
    page = write_report(run).read_text(encoding="utf-8")
    assert 'id="prediction"' in page
    assert read_json(run.directory / plans.PLAN_FILE) == plan
