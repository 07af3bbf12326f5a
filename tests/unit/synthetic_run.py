"""A run directory as finished stages leave it, with invented numbers: the report is developed and tested against it."""

import json
import math
import random

from mengya.files import write_json, write_jsonl
from mengya.run import Run
from mengya.settings import Recipe

_HARDWARE = {"processor": "Example CPU @ 2.5GHz", "cores": 2, "memory_bytes": 8 * 2**30, "system": "Linux-6.1-x86_64"}
_VERSIONS = {"python": "3.12.1", "mengya": "0.1.0", "torch": "2.13.0", "numpy": "2.3.0"}
STAGE_SECONDS = {
    "corpus": 21.3, "tokenizer": 8.2, "shards": 3.4, "pretrain": 271.0, "sft": 98.0, "reward": 30.5, "dpo": 41.0,
    "ppo": 88.0, "evaluate": 35.0,
}  # fmt: skip


def measured(value, n=300):
    half = 1.96 * math.sqrt(max(value * (1 - value), 1e-4) / n)
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def _delta(metric, before, after, better, before_stage):
    half = 0.03
    return {
        "metric": metric, "before": before, "after": after, "change": after - before, "better": better,
        "before_stage": before_stage, "low": after - before - half, "high": after - before + half,
    }  # fmt: skip


def _counts(unit, start):
    steps = [("read", start), ("rules", int(start * 0.93)), ("exact_duplicates", int(start * 0.86))]
    return {
        "unit": unit,
        "funnel": [{"step": name, unit: n, "characters": n * 240} for name, n in steps],
        "dropped": {
            "exact_duplicate": {unit: int(start * 0.07), "characters": start * 16},
            "near_duplicate": {unit: int(start * 0.06), "characters": start * 14},
            "advertisement": {unit: int(start * 0.04), "characters": start * 9},
            "too_short": {unit: int(start * 0.03), "characters": start},
        },
        "kept": {unit: int(start * 0.8), "characters": start * 192},
        "by_source": {
            "playground": {"read": start, "kept": int(start * 0.8), "dropped": {"exact_duplicate": int(start * 0.07)}},
        },
    }


METRICS = {
    "corpus": {
        "corpus.exact_duplicate_recall": measured(1.0, 412),
        "corpus.near_duplicate_recall": measured(0.981, 318),
        "corpus.near_duplicate_precision": measured(0.994, 314),
    },
    "tokenizer": {"tokenizer.chars_per_token": 1.71, "tokenizer.bytes_per_token": 4.93},
    "shards": {},
    "pretrain": {
        "pretrain.bits_per_byte": {"value": 0.482, "low": 0.47, "high": 0.494, "n": 200},
        "pretrain.validation_loss": 1.643,
        "pretrain.unigram_loss": 5.98,
        "pretrain.trigram_loss": 2.21,
        "pretrain.cloze_accuracy": measured(0.84),
        "pretrain.tokens_per_second": 9800.0,
    },
    "sft": {
        "sft.qa_accuracy": measured(0.88),
        "sft.multi_turn_accuracy": measured(0.77),
        "sft.identity_accuracy": measured(0.98, 60),
        "sft.gold_score": {"value": 0.712, "low": 0.68, "high": 0.744, "n": 200},
        "sft.repetition": {"value": 0.021, "low": 0.012, "high": 0.03, "n": 200},
        "sft.refusal_rate": measured(0.05),
    },
    "reward": {
        "reward.pair_accuracy": measured(0.95, 400),
        "reward.length_only_accuracy": measured(0.52, 400),
        "reward.pair_accuracy.right": measured(0.91, 160),
        "reward.length_only_accuracy.right": measured(0.5, 160),
        "reward.pair_accuracy.polite": measured(0.99, 120),
        "reward.length_only_accuracy.polite": measured(0.54, 120),
        "reward.characters_only_accuracy": measured(0.81, 400),
        "reward.answer_only_accuracy": measured(0.83, 400),
        "reward.length_matched_accuracy": measured(0.94, 120),
        "reward.member_accuracy.0": measured(0.94, 400),
        "reward.member_accuracy.1": measured(0.93, 400),
        "reward.calibration_error": 0.021,
        "reward.length_correlation": {"value": -0.08, "low": -0.15, "high": -0.01, "n": 800},
    },
    "dpo": {
        "dpo.qa_accuracy": measured(0.89),
        "dpo.gold_score": {"value": 0.761, "low": 0.73, "high": 0.79, "n": 200},
        "dpo.repetition": {"value": 0.014, "low": 0.008, "high": 0.02, "n": 200},
        "dpo.win_rate_vs_sft": measured(0.63, 200),
        "dpo.kl_to_sft": 3.1,
    },
    "ppo": {
        "ppo.qa_accuracy": measured(0.9),
        "ppo.multi_turn_accuracy": measured(0.78),
        "ppo.gold_score": {"value": 0.804, "low": 0.775, "high": 0.833, "n": 200},
        "ppo.repetition": {"value": 0.012, "low": 0.007, "high": 0.017, "n": 200},
        "ppo.win_rate_vs_sft": measured(0.69, 200),
        "ppo.kl_to_sft": 2.2,
    },
    "evaluate": {},
}

REWARD_COUNTS = {
    "calibration": [
        {"predicted": 0.53, "right": 0.49, "n": 12}, {"predicted": 0.72, "right": 0.7, "n": 40},
        {"predicted": 0.98, "right": 0.97, "n": 348},
    ],
    "margin_histogram": {"edges": [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0], "counts": [4, 16, 30, 90, 160, 100]},
    "best_baseline": "the answer without its prompt",
    "verdict": "better than its baselines, beyond its error",
}  # fmt: skip

DELTAS = {
    "sft": [
        _delta("qa_accuracy", 0.12, 0.88, "higher", "pretrain"),
        _delta("bits_per_byte", 0.48, 0.62, "lower", "pretrain"),
    ],
    "dpo": [_delta("gold_score", 0.712, 0.761, "higher", "sft"), _delta("qa_accuracy", 0.88, 0.89, "higher", "sft")],
    "ppo": [
        _delta("gold_score", 0.712, 0.804, "higher", "sft"),
        _delta("repetition", 0.021, 0.012, "lower", "sft"),
        _delta("refusal_rate", 0.05, 0.09, "lower", "sft"),
    ],
}  # fmt: skip

SAMPLES = [
    {
        "prompt": [{"role": "user", "content": "李明住在哪里？"}],
        "answers": {
            "pretrain": "李明住在河边。他每天早上都去河边散步，看见很多小鸟在树上唱歌。李明住在河边。",
            "sft": "李明住在青石镇。",
            "dpo": "李明住在青石镇的河边。",
            "ppo": "李明住在青石镇，家就在河边。",
        },
    },
    {
        "prompt": [
            {"role": "system", "content": "你是一个有礼貌的助手。"},
            {"role": "user", "content": "王芳养了什么？"},
            {"role": "assistant", "content": "王芳养了一只橘猫。"},
            {"role": "user", "content": "它叫什么名字？"},
        ],
        "answers": {"pretrain": "它叫什么名字？它叫", "sft": "它叫团团。", "ppo": "它叫团团，是一只橘猫。"},
    },
    {
        "prompt": [{"role": "user", "content": "请写 <script>alert(1)</script> & 说明"}],
        "answers": {"sft": "<img src=x onerror=alert(2)>", "dpo": "抱歉，我不知道。", "ppo": "抱歉，这个我还不知道。"},
    },
]


def curves(stage, steps):
    """Lines of metrics.jsonl as a training stage writes them."""
    rng = random.Random(f"1:{stage}")
    rows = []
    for step in range(2, steps + 1, 2):
        part = step / steps
        row = {"step": step, "tokens": step * 8192, "lr": 1e-3 * min(1, part * 20) * min(1, (1.02 - part) * 2.5)}
        if stage == "ppo":
            row |= {
                "reward": -0.4 + 1.3 * part + rng.gauss(0, 0.1), "kl": 3 * part + rng.gauss(0, 0.1),
                "kl_coefficient": 0.05 * (1 + part), "entropy": 1.2 - 0.4 * part, "value_loss": 0.2 / (part + 0.1),
                "length": 18 + rng.gauss(0, 1), "end_rate": 0.93 + 0.06 * part, "repetition": 0.02 - 0.01 * part,
            }  # fmt: skip
            if step % 10 == 0:
                row["guard_score"] = 0.71 + 0.1 * part
        else:
            low = {"pretrain": 1.6, "sft": 0.5, "reward": 0.12, "dpo": 0.3}[stage]
            high = {"pretrain": 7.6, "sft": 3.0, "reward": 0.69, "dpo": 0.69}[stage]
            loss = low + (high - low) * math.exp(-6 * part)
            row |= {"loss": loss + rng.gauss(0, 0.03 * loss), "grad_norm": 0.6 + abs(rng.gauss(0, 0.2))}
            row["tokens_per_second"] = 9800 + rng.gauss(0, 200)
            if stage in ("reward", "dpo"):
                row |= {"accuracy": 0.95 - 0.45 * math.exp(-5 * part) + rng.gauss(0, 0.02), "margin": 3 * part}
            if step % (steps // 8) == 0:
                row["validation_loss"] = loss * 1.03
        rows.append(row)
    return rows


def make_run(directory, stages=tuple(STAGE_SECONDS), name="synthetic"):
    """A run whose `stages` are finished; the recipe names all of them."""
    run = Run(directory)
    run.save_recipe(
        Recipe(name=name, description="一次虚构的运行，用来检查报告。An invented run, to look at the report.")
    )
    summary = {}
    for stage in stages:
        manifest = {
            "stage": stage, "mengya": "0.1.0", "seed": 1, "settings": {}, "inputs": {}, "outputs": {},
            "resumed": stage == "pretrain", "started": "2026-01-02T10:00:00+0000", "seconds": STAGE_SECONDS[stage],
            "metrics": METRICS[stage] | {f"{stage}.peak_memory_bytes": 900 * 2**20},
            "counts": {}, "delta": DELTAS.get(stage, []), "samples": [], "versions": _VERSIONS, "hardware": _HARDWARE,
        }  # fmt: skip
        if stage == "corpus":
            manifest["counts"] = {
                "documents": _counts("documents", 12000),
                "conversations": _counts("conversations", 8000),
                "preferences": {},
                "rejects": {"invalid_json": 3, "undecodable": 1},
            }
            write_jsonl(directory / "corpus/documents/dropped.jsonl", _dropped())
            write_jsonl(
                directory / "corpus/rejects.jsonl",
                [{"reason": "invalid_json", "file": "a.jsonl", "line": 7, "excerpt": '{"text": "坏'}],
            )
        if stage == "tokenizer":
            manifest["counts"] = {"vocab_size": 3000, "characters": 2_000_000}
        if stage == "shards":
            manifest["counts"] = {"train": {"documents": 9600, "tokens": 1_350_000, "dtype": "uint16"}}
        if stage in ("pretrain", "sft", "reward", "dpo", "ppo"):
            write_jsonl(directory / stage / "metrics.jsonl", curves(stage, 80 if stage == "ppo" else 400))
            manifest["counts"] = {"parameters": 3_145_728, "tokens": 2_000_000}
        if stage == "reward":
            manifest["counts"] |= REWARD_COUNTS
        if stage == "evaluate":
            manifest["samples"] = SAMPLES
        write_json(directory / stage / "started.json", {"identity": "x"})
        write_json(directory / stage / "manifest.json", manifest)
        summary |= METRICS[stage]
    if "evaluate" in stages:
        write_json(directory / "summary.json", summary)
    return run


def _dropped():
    return [
        {"reason": "advertisement", "origin": "playground:17", "excerpt": "加微信领取优惠！全场包邮。<b>快来</b>"},
        {"reason": "near_duplicate", "origin": "playground:81", "excerpt": "清晨，河边很静。", "twin": "playground:12"},
        {"reason": "too_short", "origin": "playground:99", "excerpt": "好。"},
    ]  # fmt: skip


def interrupt(run, stage):
    """Leave `stage` as a kill in the middle of it does: no manifest, half of the curve, the last line torn."""
    (run.directory / stage / "manifest.json").unlink()
    path = run.directory / stage / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[: len(lines) // 2]) + "\n" + json.dumps({"step": 999})[:-3])
