"""The page of figures quotes others briefly, without their telephone numbers, and stands for any finished run."""

import importlib.util
from pathlib import Path

import synthetic_run

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "results_page.py"
_spec = importlib.util.spec_from_file_location("results_page", _SCRIPT)
assert _spec is not None
assert _spec.loader is not None
results_page = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(results_page)


def test_a_quotation_is_one_short_line_without_telephone_numbers_or_markup():
    text = "电话：159-5110-2735\n| 请在2024年 <b>来电</b> " + "长" * 80
    quoted = results_page.quoted(text, 60)
    assert quoted.startswith("电话：# \\| 请在2024年 \\<b\\>来电")
    assert len(quoted.replace("\\", "")) == 60


def test_bits_per_byte_stand_by_source_and_stage():
    def bits(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 12}

    metrics = {"pretrain.bits_per_byte.news": bits(1.5), "sft.bits_per_byte.news": bits(1.6), "evaluate.seconds": 3.0}
    lines = list(results_page.bits_by_source(metrics))
    assert "| source | documents | Pretraining | Instruction tuning |" in lines
    assert "| news | 12 | 1.500 [1.400, 1.600] | 1.600 [1.500, 1.700] |" in lines
    assert list(results_page.bits_by_source({"evaluate.seconds": 3.0})) == []


def test_the_reward_model_stands_beside_the_baseline_and_answers_beside_each_other():
    run = synthetic_run.METRICS["reward"]
    lines = "\n".join(results_page.reward({"metrics": run}))
    assert "| pair accuracy | 400 | 95.0%" in lines
    assert "| length only accuracy | 400 | 52.0%" in lines
    text = "\n".join(results_page.samples(synthetic_run.SAMPLES))
    assert "**李明住在哪里？**" in text
    assert "- PPO: 李明住在青石镇，家就在河边。" in text


def test_counts_that_hold_others_are_left_to_their_own_place():
    counts = {"step": 12, "best": {"step": 9, "validation_loss": 1.5}, "verdict": "step 9 it is", "stopped_early": None}
    line = next(line for line in results_page.training({"dpo": {"counts": counts}}) if line.startswith("- "))
    assert line == "- **DPO**: steps 12, verdict step 9 it is"
