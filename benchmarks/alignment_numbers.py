"""From finished runs to the numbers of docs/results/alignment.md: differences to SFT with 95% intervals, within a seed and over
seeds; whether they are beyond their intervals; what the guard saw, handed over and saved."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment_runs import manifest_of
from mengya.evaluate.score import LOWER_IS_BETTER
from mengya.files import read_jsonl

Row = dict[str, Any]

SCORES = ("gold_score", "judge_win_rate", "win_rate_vs_sft")
"""What a stage is to raise: by the truth, where it is known; else, above a half, by a judge of other sources, or the run's own."""
METRICS = (
    *SCORES, "judge_score", "sampled_accuracy", "qa_accuracy", "multi_turn_accuracy", "arithmetic_accuracy",
    "identity_accuracy", "held_out_entity_accuracy", "repetition", "refusal_rate", "end_rate", "answer_tokens",
    "bits_per_byte", "answer_bits_per_byte", "kl_to_sft",
)  # fmt: skip
PROMISED = ("repetition", "refusal_rate", "bits_per_byte", "answer_bits_per_byte")
"""What may not get worse by more than 1%: a percentage point of a share, 1% of the bits."""
ALLOWED = 0.01
ARITHMETIC_POINTS = 0.15
"""By how much GRPO is to raise the accuracy on sums."""
WIN_RATES = ("win_rate_vs_sft", "judge_win_rate")

_Z95 = 1.959964
# 97.5% quantiles of Student's t by degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
MOST_SEEDS = len(_T95) + 1


def difference(value: float, low: float, high: float) -> Row:
    return {"value": value, "low": low, "high": high}


def beyond(change: Row, better: str) -> bool:
    """Whether the whole interval of a change lies on the better side of 0."""
    return bool(change["low"] > 0 if better == "higher" else change["high"] < 0)


def over_seeds(changes: Sequence[Row]) -> Row:
    """The mean change over seeds, with two intervals: "low", "high" of the prompts, "seeds_low", "seeds_high" of the seeds.

    The first asks what other prompts would have said of these very models: √Σse² / S. The second what other seeds would
    have given: Student's t over the S means, wide for few; absent (None) for a single seed.
    """
    values = [change["value"] for change in changes]
    count, centre = len(values), statistics.fmean(values)
    half = math.hypot(*((change["high"] - change["low"]) / 2 for change in changes)) / count
    found = difference(centre, centre - half, centre + half) | {
        "least": min(values),
        "most": max(values),
        "seeds_low": None,
        "seeds_high": None,
    }
    if count > 1:
        wide = _T95[count - 2] * statistics.stdev(values) / math.sqrt(count)
        found |= {"seeds_low": centre - wide, "seeds_high": centre + wide}
    return found


def spread(values: Sequence[float]) -> Row:
    return {"value": statistics.fmean(values), "least": min(values), "most": max(values)}


def changes_of(manifest: Row, stage: str) -> dict[str, Row]:
    """{metric: its change from SFT}: of the same prompts where both answered them; a win rate's from a half.

    Where SFT was handed back, bits per byte, which are not compared document by document, are known to be the same.
    """
    same = manifest["outputs"][f"{stage}/model"] == manifest["inputs"]["sft/model"]
    found = {
        row["metric"]: difference(
            row["change"], *((0.0, 0.0) if same and not row["change"] else (row["low"], row["high"]))
        )
        for row in manifest["delta"]
        if row["before_stage"] == "sft"
    }
    for name in WIN_RATES:
        rate = manifest["metrics"].get(f"{stage}.{name}")
        if rate is not None:
            found[name] = difference(*(rate[key] - 0.5 for key in ("value", "low", "high")))
    return found


def better_of(metric: str) -> str:
    return "lower" if metric.endswith(LOWER_IS_BETTER) else "higher"


def score_of(changes: Row) -> str | None:
    """What a stage is judged by: the gold score, or the win rate by a held-out judge where nobody knows the truth."""
    return next((name for name in SCORES if name in changes), None)


def kept_promises(changes: dict[str, Row], before: dict[str, Row]) -> dict[str, bool]:
    """{metric: whether it is not worse by more than 1%}; all of these are better when lower."""
    kept = {}
    for name in PROMISED:
        if name in changes:
            allowed = ALLOWED * (before[name]["value"] if name.endswith("bits_per_byte") else 1.0)
            kept[name] = changes[name]["value"] <= allowed
    return kept


def over_optimised(looks: Sequence[Row]) -> Row | None:
    """The look from which on the judges' score falls while the training reward rises; None where that did not happen.

    It is the look with the highest score, if a later one lies below it by more than its error although training saw a higher
    reward there (Gao et al. 2023). The start has no reward of its own: it counts as the first one seen.
    """
    if not looks:
        return None
    rewards = [look.get("reward") for look in looks]
    first = next((reward for reward in rewards if reward is not None), None)
    peak = max(range(len(looks)), key=lambda i: looks[i]["score"])
    reward_there = rewards[peak] if rewards[peak] is not None else first
    for look, reward in zip(looks[peak + 1 :], rewards[peak + 1 :], strict=True):
        fell = look["score"] < looks[peak]["score"] - look.get("error", 0.0)
        if fell and reward is not None and reward_there is not None and reward > reward_there:
            return looks[peak]
    return None


def handed_over(manifest: Row, stage: str, looks: Sequence[Row]) -> Row | None:
    """The look whose policy the stage handed over; look 0 where its weights are SFT's. None without a guard.

    That SFT is handed back is told by the weights' SHA-256, which no wording can deceive; otherwise it is the last look that the
    guard marked as kept, or the one that its verdict names.
    """
    if not looks:
        return None
    if manifest["outputs"][f"{stage}/model"] == manifest["inputs"]["sft/model"]:
        return looks[0]
    kept = [look for look in looks if look.get("mark") == "kept"]
    if kept:
        return kept[-1]
    said = re.search(r"policy of \w+ (\d+) is handed over", str(manifest["counts"].get("verdict")))
    step = int(said[1]) if said else None
    return next((look for look in looks if look["step"] == step), None)


def aligned(directory: Path, stage: str, before: dict[str, Row]) -> Row:
    """All that the page says of one alignment stage of one run; `before` are SFT's metrics."""
    manifest = manifest_of(directory, stage)
    changes, counts = changes_of(manifest, stage), manifest["counts"]
    looks = counts.get("guard") or []
    log = [
        {"kl": row["kl"], "reward": row["reward"]}
        for row in read_jsonl(directory / stage / "metrics.jsonl")
        if "kl" in row and "reward" in row
    ]
    chosen = handed_over(manifest, stage, looks)
    return {
        "metrics": {name: manifest["metrics"].get(f"{stage}.{name}") for name in METRICS},
        "changes": changes,
        "beyond": {name: beyond(change, better_of(name)) for name, change in changes.items()},
        "kept": kept_promises(changes, before),
        "seconds": manifest["seconds"],
        "sft_handed_back": manifest["outputs"][f"{stage}/model"] == manifest["inputs"]["sft/model"],
        "verdict": counts.get("verdict"),
        "stopped_early": counts.get("stopped_early"),
        "looks": looks,
        "handed_over": None if chosen is None else chosen["step"],
        "saved": chosen["score"] - looks[-1]["score"] if chosen else None,
        "over_optimised": over_optimised(looks),
        "log": log,
        "commit": manifest["commit"],
    }


def with_judge(row: Row, rate: Row) -> None:
    """Add the win rate by the judge of other sources to a stage's numbers, as if the stage had measured it."""
    row["metrics"]["judge_win_rate"] = rate
    change = difference(*(rate[key] - 0.5 for key in ("value", "low", "high")))
    row["changes"]["judge_win_rate"] = change
    row["beyond"]["judge_win_rate"] = beyond(change, "higher")


def seed_numbers(directory: Path, seed: int, done: dict[str, tuple[Path, str]], refused: dict[str, str]) -> Row:
    """One seed: SFT's metrics, the reward model's, and those of each stage that is `done`: (its run, its stage) by its name."""
    sft, reward = manifest_of(directory, "sft"), manifest_of(directory, "reward")
    before = {name: sft["metrics"].get(f"sft.{name}") for name in METRICS}
    found = {name: aligned(run, stage, before) for name, (run, stage) in done.items()}
    return {
        "seed": seed,
        "sft": {"metrics": before, "seconds": sft["seconds"]},
        "reward": {key: value for key, value in reward["metrics"].items() if key.startswith("reward.")},
        "stages": found,
        "refused": refused,
        "commits": sorted({str(made["commit"]) for made in (sft, reward, *found.values())}),
        "hardware": sft["hardware"],
        "versions": sft["versions"],
        "model": manifest_of(directory, "pretrain")["counts"].get("model", ""),
    }


def pooled(seeds: Sequence[Row], stages: Sequence[str]) -> dict[str, Row]:
    """{stage: {metric: its change over the seeds in which the stage ended, how often beyond its interval}}."""
    found: dict[str, Row] = {}
    for stage in stages:
        rows = [seed["stages"][stage] for seed in seeds if stage in seed["stages"]]
        found[stage] = {}
        for name in METRICS:
            held = [row for row in rows if name in row["changes"]]
            if held:
                summary = over_seeds([row["changes"][name] for row in held])
                summary["beyond"] = beyond(summary, better_of(name))
                summary["seeds_beyond"] = sum(row["beyond"][name] for row in held)
                summary["seeds"] = len(held)
                found[stage][name] = summary
    return found
