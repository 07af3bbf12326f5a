"""The benchmarks of pretraining's defaults and rates: their arithmetic by hand, their runs against `mengya run`, both commands tiny."""

from __future__ import annotations

import importlib
import json
import statistics
import sys

import pytest
import torch

from mengya.data.token_files import open_tokens
from mengya.errors import UserError
from mengya.objectives.language_model import next_token_loss
from mengya.run import Context, Run
from mengya.stages import STAGES
from mengya.stages.common import packed_loader, tokenizer_of, world_of
from road import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
pretrainings = importlib.import_module("pretrainings")
defaults = importlib.import_module("defaults")
rates_sweep = importlib.import_module("rates_sweep")


# ------------------------------------------------------------------------------------------------------ arithmetic


def test_the_best_factor_is_the_vertex():
    losses = {
        0.5: 3.08,
        1.0: 3.02,
        2.0: 3.02,
        4.0: 3.08,
    }  # 3.02 + 0.03 · x · (x − 1), x = log₂ of the factor; lowest at √2
    found = rates_sweep.vertex({factor: losses[factor] for factor in (0.5, 1.0, 2.0)})
    assert found["factor"] == pytest.approx(2**0.5)
    assert found["loss"] == pytest.approx(3.02 - 0.03 / 4)
    # 0.03 · d² = 0.01 at d = 1/√3
    assert (found["from"], found["to"]) == pytest.approx((2 ** (0.5 - 3**-0.5), 2 ** (0.5 + 3**-0.5)))


def test_a_lowest_at_the_end_is_no_vertex():
    assert rates_sweep.vertex({1.0: 3.2, 2.0: 3.1, 4.0: 3.0}) == {"factor": 4.0, "loss": 3.0, "at": "above"}


@pytest.mark.parametrize(
    ("best", "order"), [(1, [0.5, 1, 2]), (0.25, [0.5, 1, 2, 0.25]), (2, [0.5, 1, 2, 4]), (8, [0.5, 1, 2, 4])]
)
def test_factors_beyond_a_rise_are_not_tried(best, order):
    asked = []

    def loss(factor):
        asked.append(factor)
        return abs(factor - best)

    assert list(rates_sweep.tried([4, 2, 1, 0.5, 0.25], loss)) == sorted(order)
    assert asked == order
    assert len(rates_sweep.tried([4, 2, 1, 0.5, 0.25], loss, every=True)) == 5


def test_the_verdict_is_by_the_interval_over_seeds():
    # Mean 0.02, standard deviation 0.01, t(2) = 4.303: ± 0.0248.
    found = defaults.judged([0.03, 0.01, 0.02])
    assert (found["low"], found["high"]) == pytest.approx((-0.004843, 0.044843), abs=1e-6)
    assert found["verdict"] == "no difference seen (default lower in 3 of 3 seeds)"
    assert defaults.judged([0.021, 0.019, 0.020])["verdict"] == "default kept"
    assert defaults.judged([-0.021, -0.019, -0.020])["verdict"] == "default worse"
    assert defaults.judged([0.5])["low"] is None


def test_a_machine_that_slows_down_does_not_move_a_paired_speed():
    now, calls = [0.0], [0]

    def step(seconds):
        def work():
            now[0] += seconds * 3.0 ** (calls[0] // 3)  # every round of three steps thrice as slow as the one before
            calls[0] += 1

        return work

    steppers = {"default": step(1.0), "dear": step(2.0), "cheap": step(0.5)}
    calls[0] = -3  # the first step of each is not timed
    found = pretrainings.paired_speeds(steppers, "default", 4, clock=lambda: now[0])
    assert found == pytest.approx({"default": 1.0, "dear": 0.5, "cheap": 2.0})


# ---------------------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def context(tiny_run):
    run = Run.open(tiny_run)
    return Context(run.recipe(), run, STAGES["pretrain"])


def test_a_run_in_this_process_is_the_stage_of_mengya_run(context):
    found = pretrainings.trained(context.recipe, context.run)
    manifest = context.run.manifest("pretrain")
    assert found["bits_per_byte"] == manifest["metrics"]["pretrain.bits_per_byte"]["value"]
    assert (found["steps"], found["tokens"]) == (manifest["counts"]["step"], manifest["counts"]["tokens"])


def test_flat_initialisation_and_z_loss_are_what_they_say(context):
    model = pretrainings.fresh_model(context)
    train = open_tokens(context.path("shards/tokens"), "train")
    loader = packed_loader(context, train, context.recipe.pretrain, tokenizer_of(context), world_of(context))
    batch = next(iter(loader))[0]
    terms, plain = defaults.z_loss(model, batch), next_token_loss(model, batch)
    assert terms.count == plain.count
    # Fresh logits are small: the normaliser is about log V, its square times 1e-4 what is added a target.
    added = (terms.loss_sum - plain.loss_sum).item() / plain.count
    assert added == pytest.approx(1e-4 * torch.tensor(600.0).log().item() ** 2, rel=0.02)
    scaled = model.model.layers[0].mlp.down_proj.weight.clone()
    defaults.flat_initialisation(model)
    assert torch.allclose(model.model.layers[0].mlp.down_proj.weight, 2 * scaled)  # two layers: √4
    assert scaled.std().item() == pytest.approx(0.01, rel=0.05)


def test_every_variant_differs_from_the_default_in_one_thing():
    base = pretrainings.base_recipe(defaults.parsed([]), "x")
    names = {"default": defaults.Variant(""), **defaults.VARIANTS}
    dumped = {name: recipe.model_dump() for name, recipe in defaults.recipes(base, 128, names, 1).items()}
    for name, variant in defaults.VARIANTS.items():
        differing = [
            f"{section}.{key}"
            for section in ("model", "pretrain")
            for key, value in dumped[name][section].items()
            if value != dumped["default"][section][key]
        ]
        inside = (variant.change is not None) + (variant.objective is not next_token_loss)
        assert len(differing) + inside == 1, (name, differing)


# ------------------------------------------------------------------------------------------------------- commands

SMALL = ["--characters", "60000", "--vocab-size", "600", "--tokens", "4096", "--batch-tokens", "2048"]


def called(benchmark, capsys, monkeypatch, *arguments):
    """The last line of a benchmark's stdout."""
    monkeypatch.setattr(sys, "argv", [benchmark.__name__, *SMALL, *map(str, arguments)])
    benchmark.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_both_commands_say_on_the_page_what_their_runs_gave(tmp_path, capsys, monkeypatch):
    out, page = tmp_path / "out", tmp_path / "page.md"
    arguments = [
        "--seeds",
        "1,2",
        "--width",
        64,
        "--rounds",
        1,
        "--adamw-rates",
        "1e-3,4e-3",
        "--out",
        out,
        "--page",
        page,
    ]
    arguments += ["--variants", "adamw,flat-init,z-loss"]
    found = called(defaults, capsys, monkeypatch, *arguments)
    rows, text = found["variants"], page.read_text(encoding="utf-8")
    assert list(rows) == ["default", "adamw", "flat-init", "z-loss"]
    for name, row in rows.items():
        assert row["tokens"] == max(1, round(2 * row["speed"])) * 2048
        for bits in row["bits_per_byte"].values():
            assert f"{bits:.4f}" in next(line for line in text.splitlines() if line.startswith(f"| {row['words']} |"))
        if name != "default":
            apart = [row["bits_per_byte"][seed] - rows["default"]["bits_per_byte"][seed] for seed in "12"]
            assert row["difference"] == pytest.approx(statistics.fmean(apart))
            assert row["verdict"] in text
            assert any(apart), f"{name} changes nothing"
    assert rows["adamw"]["bits_per_byte"]["1"] == min(found["adamw_rates"].values())
    assert {name for name, row in rows.items() if row["speed"] != 1} <= {"adamw"}

    kept = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    lost = out / "results" / "z-loss-2.json"
    lost.unlink()
    assert called(defaults, capsys, monkeypatch, *arguments) == found  # the same bits again
    again = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    assert {path for path in kept if again[path] != kept[path]} == {lost}

    # Beside them in the same folder, on the same data.
    swept = called(
        rates_sweep, capsys, monkeypatch, "--widths", "64", "--factors", "0.5,1,2", "--out", out, "--page", page
    )
    text = page.read_text(encoding="utf-8")
    for name, (words, _, _) in rates_sweep.SWEEPS.items():
        row = swept["widths"]["64"][name]
        line = text.split(f"## {words}")[1].split("\n| 64 | ")[1].split("\n")[0]
        assert line.startswith(" | ".join([f"{row['rule']:g}", *(f"{v:.4f}" for v in row["losses"]["1"].values())]))
    shared = {name: swept["widths"]["64"][name]["losses"]["1"]["1"] for name in ("matrix", "beside")}
    assert shared["matrix"] == shared["beside"]
    assert len(list((out / "results").glob("64-*"))) == 1 + 2 + 2 + 3


def test_each_file_is_a_source_with_a_limit_of_its_own(tmp_path):
    for name in ("encyclopedia_misc", "law", "life_general"):
        (tmp_path / f"{name}.jsonl.zst").touch()
    found = pretrainings.base_recipe(defaults.parsed(["--data", str(tmp_path), "--limit", "7"]), "x")
    sources = found["corpus"]["documents"]
    assert [(source["path"].rpartition("/")[2], source["limit"]) for source in sources] == [
        ("encyclopedia_misc.jsonl.zst", 7),
        ("life_general.jsonl.zst", 7),
    ]
    with pytest.raises(UserError, match="no such file"):
        pretrainings.base_recipe(defaults.parsed(["--data", str(tmp_path / "*.csv")]), "x")


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (defaults, ["--variants", "adam"], "no variant adam"),
        (defaults, ["--seeds", "1,1"], "not a list of seeds"),
        (rates_sweep, ["--factors", "2,4"], "not factors around 1"),
    ],
)
def test_the_users_mistake_is_said(benchmark, arguments, message):
    with pytest.raises(UserError, match=message):
        benchmark.parsed(arguments)
