"""docs/results/alignment.md in Markdown, from the numbers that `alignment_numbers` found; nothing in it is written by hand but
the notes of its last section."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alignment_numbers import ARITHMETIC_POINTS, METRICS, PROMISED, better_of, score_of
from alignment_trials import ablations, failure
from alignment_words import change, ranged, stage_name, words, yes
from mengya.console import duration
from mengya.report.words import as_value
from results_page import cell, table

Row = dict[str, Any]


def head(result: Row) -> Iterator[str]:
    seeds = result["seeds"]
    machine, versions = seeds[0]["hardware"], seeds[0]["versions"]
    commits = sorted({commit for seed in seeds for commit in seed["commits"]})
    yield f"# Alignment: {result['name']}"
    yield ""
    yield f"- Command: `{result['command']}`"
    memory = machine["memory_bytes"] / 2**30
    yield f"- Machine: {machine['processor']}, {machine['cores']} cores, {memory:.0f} GiB; {machine['system']}"
    yield f"- Model: {seeds[0]['model']}"
    yield (
        f"- Seeds {', '.join(str(seed['seed']) for seed in seeds)}; commit {', '.join(commits)}; "
        f"Python {versions['python']}, torch {versions['torch']}"
    )
    yield ""
    yield (
        "Intervals are of 95%. A change from SFT is of the same prompts, prompt by prompt, where both models answered them; of "
        "bits per byte it is of two independent measurements, and so wider than need be. Each seed walks the whole road anew, "
        "from the corpus on."
    )
    yield ""


def over_all_seeds(result: Row) -> Iterator[str]:
    seeds, stages, pooled = result["seeds"], result["stages"], result["pooled"]
    yield f"## Over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    yield ""
    yield "Mean (least…most):"
    yield ""

    def values(stage: str, metric: str) -> list[float]:
        rows = [seed["sft"] if stage == "sft" else seed["stages"].get(stage) for seed in seeds]
        found = [as_value(row["metrics"].get(metric)) for row in rows if row]
        return [value.value for value in found if value]

    rows = []
    for metric in METRICS:
        held = {stage: values(stage, metric) for stage in ("sft", *stages)}
        if any(held.values()):
            rows.append([words(metric), *(ranged(metric, v) if v else "" for v in held.values())])
    times = {
        stage: [(seed["sft"] if stage == "sft" else seed["stages"][stage])["seconds"] for seed in seeds
                if stage == "sft" or stage in seed["stages"]]
        for stage in ("sft", *stages)
    }  # fmt: skip
    rows.append(
        [
            "time",
            *(
                f"{duration(sum(t) / len(t))} ({duration(min(t))}…{duration(max(t))})" if t else ""
                for t in times.values()
            ),
        ]
    )
    yield from table(["", *map(stage_name, ("sft", *stages))], rows)
    yield "Change from SFT, mean over seeds, with the interval of the prompts (other prompts to these very models):"
    yield ""
    found = [metric for metric in METRICS if any(metric in pooled[stage] for stage in stages)]
    yield from table(
        ["", "better", *map(stage_name, stages)],
        ([words(m), better_of(m), *(change(m, pooled[stage].get(m)) for stage in stages)] for m in found),
    )
    yield "The score alone, with the interval of the seeds too (other seeds; Student's t, wide for few):"
    yield ""
    rows = []
    for stage in stages:
        name = score_of(pooled[stage])
        if name:
            one = pooled[stage][name]
            rows.append(
                [
                    stage_name(stage), words(name), change(name, one), yes(one["beyond"]),
                    change(name, one, "seeds_low", "seeds_high"), f"{one['seeds_beyond']} of {one['seeds']}",
                ]
            )  # fmt: skip
    yield from table(
        [
            "",
            "score",
            "change, interval of prompts",
            "beyond it",
            "change, interval of seeds",
            "seeds beyond their own",
        ],
        rows,
    )


def promises(result: Row) -> Iterator[str]:
    """One row a seed and stage: is the score beyond its interval, is anything worse by more than 1%?"""
    yield "## Is it better, and at no cost?"
    yield ""
    yield (
        "Beyond its interval: the whole interval of the paired change lies above 0. Above SFT's: the stage's value lies "
        "above the upper end of SFT's own interval. Not worse by more than 1%: a percentage point of a share, 1% of the bits."
    )
    yield ""
    goal = f"at least {100 * ARITHMETIC_POINTS:.0f} points, GRPO's goal"
    yield from table(
        [
            "",
            "score: change",
            "beyond its interval",
            "above SFT's",
            *(f"{words(name)} kept" for name in PROMISED),
            "arithmetic",
            goal,
        ],
        (promise_row(seed, stage, row) for seed in result["seeds"] for stage, row in seed["stages"].items()),
    )
    for seed in result["seeds"]:
        for stage, message in seed["refused"].items():
            yield f"- Seed {seed['seed']}, {stage_name(stage)} did not run: {message}"
    if any(seed["refused"] for seed in result["seeds"]):
        yield ""
    yield "What the guard handed over:"
    yield ""
    for seed in result["seeds"]:
        for stage, row in seed["stages"].items():
            verdict = row["verdict"] or "no guard in this stage"
            same = "; its weights are SFT's, bit by bit" if row["sft_handed_back"] else ""
            early = f"; stopped early: {row['stopped_early']}" if row["stopped_early"] else ""
            yield f"- Seed {seed['seed']}, {stage_name(stage)}: {verdict}{same}{early}"
    yield ""


def promise_row(seed: Row, stage: str, row: Row) -> list[str]:
    name = score_of(row["changes"])
    above = reached = None
    sums = row["changes"].get("arithmetic_accuracy")
    if stage.startswith("grpo") and sums:
        reached = sums["value"] >= ARITHMETIC_POINTS
    if name == "gold_score":
        above = row["metrics"][name]["value"] > seed["sft"]["metrics"][name]["high"]
    return [
        f"seed {seed['seed']}, {stage_name(stage)}",
        change(name, row["changes"].get(name)) if name else "",
        yes(row["beyond"].get(name)) if name else "",
        yes(above),
        *(yes(row["kept"].get(promised)) for promised in PROMISED),
        change("arithmetic_accuracy", sums),
        yes(reached),
    ]


def curves(result: Row) -> Iterator[str]:
    if not result["figure"]:
        return
    yield "## Score and training reward against KL"
    yield ""
    yield f"![held-out score and training reward against the square root of KL to SFT]({result['figure']})"
    yield ""
    yield (
        "Filled: what the guard handed over. A cross: the over-optimisation point, the highest look, if a later one fell below "
        "it by more than its error while the training reward was higher."
    )
    yield ""
    for seed in result["seeds"]:
        for stage, row in seed["stages"].items():
            if row["looks"]:
                peak = row["over_optimised"]
                where = f"at {peak['kl']:.2f} nats (step {peak['step']})" if peak else "not reached"
                yield f"- Seed {seed['seed']}, {stage_name(stage)}: over-optimisation {where}"
    yield ""


def each_seed(result: Row) -> Iterator[str]:
    for seed in result["seeds"]:
        yield f"## Seed {seed['seed']}"
        yield ""
        rows = {"sft": seed["sft"], **seed["stages"]}
        held = [metric for metric in METRICS if any(as_value(row["metrics"].get(metric)) for row in rows.values())]
        lines = [
            [words(metric), *(cell(metric, row["metrics"].get(metric)) for row in rows.values())] for metric in held
        ]
        lines.append(["time", *(duration(row["seconds"]) for row in rows.values())])
        yield from table(["", *map(stage_name, rows)], lines)


def reward_model(result: Row) -> Iterator[str]:
    """Every figure of the reward model that its stage reports, baselines among them, whatever they are."""
    seeds = result["seeds"]
    yield "## Reward model"
    yield ""
    names = list(dict.fromkeys(name for seed in seeds for name in seed["reward"]))
    dull = ("seconds", "_bytes", "_per_second")
    shown_names = [n for n in names if not n.endswith(dull) and any(as_value(seed["reward"].get(n)) for seed in seeds)]
    rows = []
    for name in shown_names:
        value = next(value for seed in seeds if (value := as_value(seed["reward"].get(name))))
        many = f"{value.n:,}" if value.n else ""
        rows.append([words(name), many, *(cell(name, seed["reward"].get(name)) for seed in seeds)])
    yield from table(["", "of", *(f"seed {seed['seed']}" for seed in seeds)], rows)
    for judge in result["judges"]:
        accuracy = cell("pair_accuracy", judge["accuracy"])
        yield (
            f"- Seed {judge['seed']}, the judge of other sources: a reward model of the same SFT model, "
            f"trained on {judge['sources']} alone; "
            f"{accuracy} of {judge['accuracy']['n']:,} held-out pairs; {judge['shared_prompts']} of its training "
            "pairs have a prompt that the policy's reward model saw too"
        )
    if result["judges"]:
        yield ""


def page(result: Row, notes: str) -> str:
    """The whole page."""
    lines: list[str] = []
    for section in (head, over_all_seeds, promises, curves, each_seed, reward_model, ablations, failure):
        lines += section(result)
    lines += ["## What is weak, and why", "", notes.strip() or "(to be written)"]
    return "\n".join(lines) + "\n"
