"""`mengya plan`: claims, rows of a source, other machines, remedies and warnings, each against arithmetic by hand."""

import gzip
import io
import json
import os
import random
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import zstandard

from mengya.errors import UserError
from mengya.files import write_json
from mengya.generate.batching import Batch
from mengya.generate.engine import generate
from mengya.generate.sampling import Sampling
from mengya.model.config import ModelConfig
from mengya.model.presets import preset
from mengya.model.transformer import Transformer
from mengya.recipe import load_recipe
from mengya.report.prediction import prediction
from mengya.run import Context, Run
from mengya.serve import plan as plans
from mengya.serve import plan_parts, plan_probe, plan_sample
from mengya.serve.plan_fit import fits_everywhere, remedy, seconds_on, warnings
from mengya.serve.plan_machines import GPUS, LAYER_SECONDS, UTILISATION, Machine, common_machines, gpu, parse_claim
from mengya.serve.plan_parts import StagePlan
from mengya.serve.plan_print import print_plan
from mengya.serve.plan_probe import GenerationTime, Probe, StepTime, decoding
from mengya.serve.plan_rows import take_rows
from mengya.serve.plan_stages import Planner
from mengya.settings import PretrainSettings, Recipe, Source
from mengya.stages import STAGES, micro_batch
from mengya.stages.dial import with_dial

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = Path(os.environ.get("MENGYA_DATA", Path(__file__).parents[2] / "../shared/data"))
GIB = 2**30


# ------------------------------------------------------------------------------------------------------- claims


def test_the_impossible_claim_is_told():
    claim = parse_claim("tokens=64e9,parameters=1.1e9,hours=24,gpus=8,gpu=A800")
    # 6 · 64e9 · 1.1e9 = 4.2e20 FLOPs; 8 · 312e12 · 86,400 s = 2.2e20.
    assert claim.share == pytest.approx(4.224e20 / 2.1565e20, rel=1e-3)
    assert claim.verdict() == "impossible: it needs 2.0 times the peak"


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ("tokens=64e9, parameters=1.1e9, hours=120, gpus=8, gpu=a100", "possible: 39%"),
        ("tokens=64e9,parameters=1.1e9,hours=60,gpus=8,gpu=A100-80G", "not believable: 78%"),
        ("tokens=64e9,parameters=1.1e9,hours=80,gpus=8,gpu=a800", "very good, if true: 59%"),
    ],
)
def test_other_claims(claim, verdict):
    assert parse_claim(claim).verdict().startswith(verdict)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("tokens=64e9", "no 'parameters'"),
        ("tokens=64e9,parameters=1e9,hours=24,gpu=A800,colour=red", "unknown key 'colour'"),
        ("tokens=many,parameters=1e9,hours=24,gpu=A800", "tokens=many is no number"),
        ("tokens=1e9,parameters=1e9,hours=0,gpu=A800", "hours=0 is not above 0"),
        ("tokens=1e9,parameters=1e9,hours=1,gpu=Voodoo", "unknown GPU 'Voodoo'"),
    ],
)
def test_claims_that_cannot_be_judged(claim, message):
    with pytest.raises(UserError, match=message):
        parse_claim(claim)


def test_prices_come_from_the_command_and_the_recipe():
    assert plans.parse_prices(["0.5", "h100=2.5"], {"here": 0.1, "A100": 2.0}) == {
        "here": 0.5,
        "H100": 2.5,
        "A100": 2.0,
    }
    with pytest.raises(UserError, match="no price"):
        plans.parse_prices(["cheap"], {})


def test_nothing_to_plan():
    with pytest.raises(UserError, match="nothing to plan"):
        plans.plan_command(None, [], None, None)


# ---------------------------------------------------------------------------------------------------- the sample


def _rows(count):
    rng = random.Random(7)
    return [{"text": "山" * rng.randint(20, 400)} for _ in range(count)]


def _written(rows, kind, directory):
    lines = "".join(json.dumps(row, ensure_ascii=kind == "escaped") + "\n" for row in rows).encode()
    if kind == "gz":
        path = directory / "a.jsonl.gz"
        path.write_bytes(gzip.compress(lines))
    elif kind == "zst":
        path = directory / "a.jsonl.zst"
        path.write_bytes(zstandard.ZstdCompressor().compress(lines))
    elif kind == "array":
        path = directory / "a.json"
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    else:
        path = directory / "a.jsonl"
        path.write_bytes(lines)
    return path


@pytest.mark.parametrize("kind", ["plain", "escaped", "gz", "zst", "array"])
def test_rows_of_a_source_are_told_from_its_first(kind, tmp_path):
    path = _written(_rows(3000), kind, tmp_path)
    source = Source(path=str(path), format="text")
    out = tmp_path / "out"
    out.mkdir()
    parts, scale = take_rows(source, "document", Recipe(name="x"), out, most_rows=300, most_bytes=1e9)
    assert len(Path(parts[0].path).read_text().splitlines()) == 300
    assert 300 * scale == pytest.approx(3000, rel=0.1)


def test_a_source_that_is_read_to_its_end_is_exact(tmp_path):
    path = _written(_rows(120), "zst", tmp_path)
    limited = Source(path=str(path), format="text", limit=50)
    for source, rows in ((Source(path=str(path), format="text"), 120), (limited, 50)):
        out = tmp_path / str(rows)
        out.mkdir()
        parts, scale = take_rows(source, "document", Recipe(name="x"), out, most_rows=300, most_bytes=1e9)
        assert (len(Path(parts[0].path).read_text().splitlines()), scale) == (rows, 1.0)


def test_the_limit_of_a_source_bounds_what_it_is_taken_for(tmp_path):
    path = _written(_rows(3000), "plain", tmp_path)
    source = Source(path=str(path), format="text", limit=900)
    _, scale = take_rows(source, "document", Recipe(name="x"), tmp_path, most_rows=300, most_bytes=1e9)
    assert scale == pytest.approx(3.0)


# --------------------------------------------------------------------------------------------------- arithmetic


def test_a_step_is_its_first_micro_batch_and_the_further_ones():
    assert StepTime(1.0, 0.75).step(4) == 1.0 + 3 * 0.75
    assert StepTime(1.0, 0.75).step(1) == 1.0


def test_rows_that_have_ended_cost_no_more():
    time = GenerationTime(base=1.0, row=0.1, prompt_token=0.01)
    # Two rows at a time, long prompts first: (10, 10) with 2 and 2 tokens, then (3, 2) with 3 and 1.
    expected = 0.01 * 2 * 10 + (1.2 + 1.2) + 0.01 * 2 * 3 + (1.2 + 1.1 + 1.1)
    assert time.seconds([10, 2, 3, 10], [2, 1, 3, 2], batch_size=2) == pytest.approx(expected)


def test_a_row_that_ends_makes_room_for_the_next():
    # The second ends after one token; the third takes its place beside the first.
    assert decoding([9, 8, 7], [3, 1, 2], batch_size=2) == (9 + 9 + 7, [2, 2, 2])


def test_generation_is_foreseen_as_the_engine_goes_about_it(monkeypatch):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=30, width=32, num_layers=1, num_heads=1))
    lengths = [3 + i * 7 % 40 for i in range(40)]
    prompts = torch.randint(0, 30, (40, 42)).tolist()
    prompts = [prompt[:length] for prompt, length in zip(prompts, lengths, strict=True)]
    steps = []
    step = Batch.step
    monkeypatch.setattr(Batch, "step", lambda self: steps.append(len(self.rows)) or step(self))
    found = generate(
        model, prompts, max_new_tokens=12, stop_ids=(0, 1, 2, 3), sampling=Sampling(temperature=1.0), batch_size=16
    )
    answers = [len(generation.tokens) for generation in found]
    read, alive = decoding(lengths, answers, batch_size=16)
    assert alive == steps
    assert sum(lengths) <= read <= 1.5 * sum(lengths)


def _plan(**changes):
    settings = changes.pop(
        "settings", PretrainSettings(sequence_length=1024, batch_tokens=65536, micro_batch_tokens=8192)
    )
    return StagePlan("pretrain", **{"flops": 1e18, "micro_batches": 100.0, "settings": settings, **changes})


def test_gpu_time_is_flops_by_the_share_of_the_peak():
    machine, config = gpu("A100"), preset("0.2b", 32000)
    assert seconds_on(_plan(cpu_seconds=7.0), config, machine) == pytest.approx(7 + 1e18 / (312e12 * UTILISATION))
    eight = Machine(machine.name, machine.flops, machine.memory, machine.bandwidth, 8)
    assert seconds_on(_plan(), config, machine) / seconds_on(_plan(), config, eight) == pytest.approx(7.2)


def test_a_small_model_is_not_faster_than_its_launches():
    tiny = ModelConfig(vocab_size=100, width=64, num_layers=2, num_heads=1)
    plan = _plan(flops=1e6, micro_batches=1000.0)
    assert seconds_on(plan, tiny, gpu("H100")) >= 3 * 2 * LAYER_SECONDS * 1000


def test_decoding_reads_the_weights_for_every_token():
    config = preset("1.1b", 32000)
    plan = _plan(flops=0.0, micro_batches=0.0, decode_steps=1000.0)
    slow = Machine("slow", 1e15, 80, 1e10)
    assert seconds_on(plan, config, slow) == pytest.approx(1000 * 2 * config.num_parameters / 1e10)


def test_what_would_fit_is_said_in_the_order_of_its_price():
    settings = PretrainSettings(sequence_length=1024, batch_tokens=65536, micro_batch_tokens=65536)
    small, large = preset("0.2b", 32000), preset("1.1b", 32000, max_positions=1024)
    assert remedy(settings, small, 300 * GIB, "cuda") is None
    assert remedy(settings, small, 22 * GIB, "cuda").startswith("micro_batch: ")
    assert remedy(settings, large, 40 * GIB, "cuda").startswith("micro_batch: ")
    tight = settings.model_copy(update={"micro_batch_tokens": 1024})
    assert remedy(tight, large, 11 * GIB, "cuda").startswith("8 GPUs that share the model")
    assert remedy(tight, large, 2 * GIB, "cuda").startswith("model.preset: ")


def test_every_named_remedy_fits():
    large = preset("1.1b", 32000)
    plan = _plan(settings=PretrainSettings(sequence_length=2048, batch_tokens=65536, micro_batch_tokens=65536))
    problem = fits_everywhere([plan], large, gpu("RTX 3060"))
    assert problem is not None
    assert problem[0] == "pretrain"
    assert fits_everywhere([plan], preset("3m", 3000, max_positions=2048), gpu("H200")) is None


def test_the_table_holds_the_machines_of_the_issue():
    labels = {machine.label for machine in common_machines()}
    assert labels == {
        prefix + name for name in ("RTX 3060", "RTX 3090", "RTX 4090", "A100", "H100") for prefix in ("", "8× ")
    }
    assert GPUS["A100"].flops == 312e12


def _recipe(**pretrain):
    return Recipe(name="x", pretrain=pretrain)


def test_too_few_and_too_many_tokens_are_told():
    config = preset("3m", 3000)
    enough = {"a": 1e9}
    assert "far below" in warnings(_recipe(tokens=1_000_000), config, enough)[0]
    assert warnings(_recipe(tokens=60_000_000), config, enough) == []
    assert "far above" in warnings(_recipe(tokens=600_000_000), config, enough)[0]


def test_data_read_more_than_four_times_is_told():
    config = preset("3m", 3000)
    assert warnings(_recipe(tokens=56_000_000), config, {"a": 14e6}) == []
    assert "all data is read 5.6 times" in warnings(_recipe(tokens=56_000_000), config, {"a": 5e6, "b": 5e6})[0]
    weighted = _recipe(tokens=56_000_000, weights={"b": 3.0})
    # 56 M of a mixture of 20 + 3 · 4 M: 1.75 epochs of it, in which b is read three times.
    assert "b is read 5.2 times" in warnings(weighted, config, {"a": 20e6, "b": 4e6})[0]


# -------------------------------------------------------------------------------------------------------- the probe


@pytest.fixture
def clocked(monkeypatch):
    """(a probe, its clock) where an update takes 0.1 s and a micro-batch of 8 positions 1 s, whatever this machine does."""
    now = [0.0]

    def step(self, model, optimizer, batches, objective, settings):
        now[0] += 0.1 + sum(batch.ids_BT.numel() for batch in batches) / 8

    config = ModelConfig(vocab_size=30, width=32, num_layers=1, num_heads=1)
    probe = Probe(Recipe(name="x", threads=1, device="cpu", precision="fp32"), config)
    probe.flops_per_second = 1e12
    monkeypatch.setattr(plan_probe, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(Probe, "_step", step)
    monkeypatch.setattr(plan_probe.Optimizer, "step", lambda self, factor: now.__setitem__(0, now[0] + 0.1))
    return probe


def _micro_batch(positions):
    return SimpleNamespace(ids_BT=torch.zeros(1, positions))


def test_a_step_is_told_apart_into_its_update_and_its_micro_batches(clocked):
    settings = PretrainSettings()
    found = clocked.step_time(None, settings, [_micro_batch(8)] * 2, length=8)
    assert (found.first, found.further) == pytest.approx((1.1, 1.0))
    half = clocked.step_time(None, settings, [_micro_batch(4)], length=8, rows_share=0.5)  # half a micro-batch timed
    assert (half.first, half.further) == pytest.approx((1.1, 1.0))


def test_steps_of_uneven_size_stand_for_the_mean_one(clocked):
    steps = iter([[_micro_batch(8), _micro_batch(4)], [_micro_batch(1)]])
    # 12 positions in 1.6 s are more than the budget: one step is timed, and stands for one of 24.
    assert clocked.whole_steps(None, PretrainSettings(), steps, tokens=24, length=8) == pytest.approx(3.2)
    assert clocked.whole_steps(None, PretrainSettings(), steps, tokens=1e12, length=8) is None


# ------------------------------------------------------------------------------------------------------- the sample


def test_conversations_that_are_there_already_are_foreseen(tmp_path, monkeypatch):
    playground = {"num_people": 20, "num_characters": 20_000, "num_conversations": 3000, "num_preferences": 20}
    recipe = Recipe(
        name="x",
        playground=playground,
        corpus={"documents": ["playground"], "conversations": ["playground"], "max_digit_share": 0.5},
        tokenizer={"vocab_size": 400},
        shards={"num_workers": 1},
    )
    counts = {}
    for most in (600, 3000):
        monkeypatch.setattr(plan_sample, "_PLAYGROUND", {**plan_sample._PLAYGROUND, "num_conversations": most})
        (tmp_path / str(most)).mkdir()
        counts[most] = plan_sample.take_sample(recipe, tmp_path / str(most)).count("conversation")
        rows = (tmp_path / str(most) / "run/corpus/conversations/train.jsonl").read_text().count("\n")
        counts[most, "rows"] = rows
    assert counts[3000] == counts[3000, "rows"]
    assert counts[600] == pytest.approx(counts[3000], rel=0.06)


def test_duplicates_become_more_as_the_halves_of_the_sample_tell(tmp_path):
    run = Run(tmp_path)
    path = tmp_path / "corpus" / "conversations" / "train.jsonl"
    path.parent.mkdir(parents=True)
    numbers = [*range(400), *range(500, 800)]  # of 500 and 500
    path.write_text("".join(f'{{"source": "playground", "origin": "playground:train:{n}"}}\n' for n in numbers))
    context = Context(Recipe(name="x"), run, STAGES["pretrain"])
    # 400 of 500, 700 of 1000: twice as many give 1.75 times what is kept; eight times 1.75³.
    assert plan_sample._kept_growth(context, 1000, 8000) == pytest.approx(1.75**3)


# ------------------------------------------------------------------------------------------------- whole recipes


@pytest.fixture
def short_probe(monkeypatch):
    monkeypatch.setattr(plan_probe, "SECONDS_A_PROBE", 0.02)
    monkeypatch.setattr(plan_sample, "_ROWS", {"document": 60, "conversation": 60, "preference": 40})
    tiny = {"num_characters": 60_000, "num_conversations": 300, "num_preferences": 100}
    monkeypatch.setattr(plan_sample, "_PLAYGROUND", tiny)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_planned(path, short_probe, monkeypatch):
    if "MENGYA_DATA" in path.read_text(encoding="utf-8") and not DATA.exists():
        pytest.skip(f"no real data at {DATA} (set MENGYA_DATA)")
    monkeypatch.setenv("MENGYA_DATA", str(DATA.resolve()))
    monkeypatch.chdir(RECIPES.parent)
    recipe = with_dial(load_recipe(path, ["threads=1"]))
    plan = plans.make_plan(recipe)
    assert list(plan["stages"]) == list(recipe.stages)
    assert all(stage["seconds"] > 0 for stage in plan["stages"].values())
    assert sum(plan["data_tokens"].values()) > 0
    for name in ("pretrain", "sft", "reward", "dpo", "ppo", "grpo"):
        if name in recipe.stages:
            assert plan["stages"][name]["steps"] > 0
            assert plan["stages"][name]["flops"] > 0
            assert plan["stages"][name]["memory"]["total"] > 0
    if "pretrain" in recipe.stages:
        assert plan["stages"]["pretrain"]["steps"] == recipe.pretrain.tokens // recipe.pretrain.batch_tokens
        assert len(plan["machines"]) == 10
    shown = io.StringIO()
    with redirect_stdout(shown):
        print_plan(plan, {"here": 1.0, "H100": 2.0})
    assert all(stage in shown.getvalue() for stage in recipe.stages)


def test_grpo_is_planned_and_an_unknown_stage_is_named(short_probe, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    recipe = load_recipe(RECIPES / "quickstart.yaml", ["threads=1", "stages=[corpus,tokenizer,shards,grpo,evaluate]"])
    plan = plans.make_plan(recipe)
    grpo = plan["stages"]["grpo"]
    assert grpo["steps"] == recipe.grpo.steps
    assert {"rollouts", "collecting", "training", "guard", "evaluation"} <= grpo["parts"].keys()
    assert grpo["memory"]["total"] > 0
    made = Planner.makers
    monkeypatch.setattr(Planner, "makers", lambda self: {k: v for k, v in made(self).items() if k != "grpo"})
    plan = plans.make_plan(recipe)
    assert plan["stages"]["grpo"]["seconds"] == 0
    assert "grpo is not planned" in plan["warnings"]


def test_a_micro_batch_is_no_larger_than_its_step(short_probe, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    recipe = load_recipe(RECIPES / "own-data.yaml", ["threads=1", "stages=[corpus,tokenizer,shards,reward,ppo]"])
    stages = plans.make_plan(recipe)["stages"]
    # 8 pairs a step; 16 prompts in two mini-batches.
    assert stages["reward"]["micro_batch"] == {"micro_batch_pairs": 8}
    assert stages["ppo"]["micro_batch"] == {"micro_batch_rows": 8}


def test_what_hangs_on_pairs_that_are_not_there_yet_is_said(short_probe, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    stages = "stages=[corpus,tokenizer,shards,preferences,reward]"
    recipe = load_recipe(RECIPES / "quickstart.yaml", ["threads=1", stages, "reward.pairs_from=own"])
    plan = plans.make_plan(recipe)
    assert plan["stages"]["preferences"]["parts"]["answers"] > 0
    assert any(line.startswith("reward is planned as if 55% of the prompts") for line in plan["warnings"])
    # 0.55 pairs for each of the nine tenths of 2,000 prompts that are trained on, in batches of 64, 1.8 times.
    assert plan["stages"]["reward"]["steps"] == round(recipe.reward.epochs * 0.55 * 0.9 * 2000 / 64)


def test_a_model_that_does_not_fit_is_planned_and_said(short_probe, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    monkeypatch.setattr(plan_parts, "available_memory", lambda world: 0.4 * GIB)
    monkeypatch.setattr(micro_batch, "available_memory", lambda world: 0.4 * GIB)
    changes = [
        "threads=1",
        "model={size: 3m}",
        "pretrain.tokens=1000000",
        "stages=[corpus, tokenizer, shards, pretrain, dpo]",
    ]
    plan = plans.make_plan(with_dial(load_recipe(RECIPES / "quickstart.yaml", changes)))
    assert set(plan["here"]["does_not_fit"]) >= {"dpo"}
    assert plan["stages"]["dpo"]["micro_batch"] == {"micro_batch_pairs": 1}


def test_a_vocabulary_that_the_sample_cannot_fill_is_no_obstacle(short_probe, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    changes = ["threads=1", "tokenizer.vocab_size=20000", "stages=[corpus, tokenizer, shards, pretrain]"]
    plan = plans.make_plan(with_dial(load_recipe(RECIPES / "quickstart.yaml", changes)))
    assert "20,000 tokens" in plan["model"]


# ----------------------------------------------------------------------------------------------------- the report


def test_the_report_shows_predicted_against_actual(tmp_path):
    recipe = Recipe(name="x")
    run = Run(tmp_path / "run")
    run.directory.mkdir()
    run.save_recipe(recipe)
    words = {"zh": "预训练", "en": "pretraining"}
    done = {"seconds": 120.0, "metrics": {"pretrain.peak_memory_bytes": 3 * GIB}}
    rows = [{"name": "pretrain", "words": words, "manifest": done}, {"name": "sft", "words": words, "manifest": {}}]
    assert prediction(run, rows) is None
    memory = {"total": 2.0 * GIB}
    plan = {
        "made": "2026-11-21T10:00:00",
        "identity": "of an earlier recipe",
        "stages": {"pretrain": {"seconds": 100.0, "memory": memory}, "sft": {"seconds": 50.0, "memory": None}},
    }
    write_json(run.directory / plans.PLAN_FILE, plan)
    found = prediction(run, rows)
    assert [row["difference"] for row in found["rows"]] == ["+20%", ""]
    assert found["difference"] == "+20%"  # sft, not run, is not counted
    assert found["changed"]


def test_a_plan_is_kept_in_a_run_and_nowhere_else(tmp_path):
    recipe = Recipe(name="x")
    plans.keep_plan({"made": ""}, recipe, tmp_path / "run")
    assert (tmp_path / "run" / plans.PLAN_FILE).is_file()
    assert Run.open(tmp_path / "run").recipe() == recipe
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not a run"):
        plans.keep_plan({"made": ""}, recipe, tmp_path / "other")
