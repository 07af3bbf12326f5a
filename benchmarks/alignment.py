"""SFT against DPO, PPO and GRPO over seeds, PPO with each detail switched off, and settings that fail: one command, one page.

    python benchmarks/alignment.py --recipe recipes/quickstart.yaml --seeds 1,2,3 --out FOLDER
        [--stages dpo,ppo,grpo,grpo-arithmetic] [--ablations all|none|NAME,…] [--failure recipes/seed-failure.yaml] [--reuse RUN,…]
        [--judge-sources NAME,…] [--set KEY=VALUE …] [--page docs/results/alignment.md] [--notes FILE]

Every run is `mengya run` in a directory under FOLDER (seed-N, ablation-NAME, failure, judge-N, …); given again, the command goes on
where it was interrupted and makes nothing again that is not stale. Ablations and the failing settings are of the first seed.
FOLDER/alignment.json holds all numbers; the last line on stdout is one JSON object with the differences to SFT and their intervals.
`--judge-sources`, for data whose truth nobody knows: these preference sources train a reward model of their own, which the policy
never sees, and which then says how often a stage's answer is better than SFT's.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from alignment_figure import draw
from alignment_numbers import MOST_SEEDS, Row, aligned, pooled, score_of, seed_numbers, with_judge
from alignment_page import page
from alignment_runs import (
    ALIGNED,
    VARIANTS,
    chosen_ablations,
    judge_run,
    manifest_of,
    ppo_run,
    reuse,
    seed_run,
    split_preferences,
    why_not,
)
from mengya.errors import UserError
from mengya.files import write_json, write_text
from mengya.recipe import load_recipe


def named(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def ablation_rows(arguments: argparse.Namespace, base: Path, first: Row) -> list[Row]:
    """PPO as it is, and then with each detail off: numbers, or why there are none."""
    cases = chosen_ablations(arguments.ablations)
    if not cases:
        return []
    before, given = first["sft"]["metrics"], [f"seed={first['seed']}", *arguments.set]
    rows: list[Row] = []
    if "ppo" in first["stages"]:
        rows.append(
            {"name": "all-on", "words": "PPO as the recipe has it", "overrides": [], "numbers": first["stages"]["ppo"]}
        )
    for case in cases:
        row: Row = {"name": case.name, "words": case.words, "overrides": list(case.overrides)}
        reason = why_not(arguments.recipe, given, case)
        if reason is None:
            directory = arguments.out / f"ablation-{case.name}"
            ended = ppo_run(arguments.recipe, base, directory, [*given, *case.overrides])
            reason = f"it ended with code {ended.code}: {ended.message}" if ended.code else None
        rows.append(row | ({"numbers": aligned(directory, "ppo", before)} if reason is None else {"why_not": reason}))
    return rows


def failure_row(arguments: argparse.Namespace, base: Path, first: Row) -> Row | None:
    if arguments.failure is None:
        return None
    directory, row = arguments.out / "failure", {"recipe": str(arguments.failure)}
    ended = ppo_run(arguments.failure, base, directory, [f"seed={first['seed']}", *arguments.set])
    if ended.code:
        return row | {"why_not": f"it ended with code {ended.code}: {ended.message}"}
    return row | {"numbers": aligned(directory, "ppo", first["sft"]["metrics"])}


def judge_row(arguments: argparse.Namespace, base: Path, numbers: Row, only_judge: str) -> Row:
    """Train the judge of other sources of a seed and add its win rates to the numbers of the stages."""
    from alignment_judge import judged  # torch: only where it is used

    directory = arguments.out / f"judge-{numbers['seed']}"
    judge_run(arguments.recipe, base, directory, [f"seed={numbers['seed']}", *arguments.set, only_judge])
    found = judged(base, directory, [stage for stage in numbers["stages"] if stage in ALIGNED])
    for stage, rate in found["win_rates"].items():
        with_judge(numbers["stages"][stage], rate)
    accuracy = manifest_of(directory, "reward")["metrics"]["reward.pair_accuracy"]
    return {
        "seed": numbers["seed"],
        "sources": ", ".join(arguments.judge_sources),
        "accuracy": accuracy,
        "shared_prompts": found["shared_prompts"],
    }


def command_of(arguments: argparse.Namespace, overrides: list[str]) -> str:
    """The command that makes these numbers anywhere: without this machine's folders."""
    words = ["--recipe", str(arguments.recipe), "--seeds", ",".join(map(str, arguments.seeds))]
    words += ["--stages", ",".join(arguments.stages), "--ablations", arguments.ablations]
    words += ["--failure", str(arguments.failure)] if arguments.failure else []
    words += ["--judge-sources", ",".join(arguments.judge_sources)] if arguments.judge_sources else []
    for override in overrides:
        words += ["--set", override]
    return f"python benchmarks/alignment.py {shlex.join(words)} --out FOLDER"


def evidence(arguments: argparse.Namespace) -> Row:
    """All runs made, and their numbers."""
    overrides = list(arguments.set)
    only_judge = ""
    if arguments.judge_sources:
        without, only_judge = split_preferences(arguments.recipe, overrides, arguments.judge_sources)
        arguments.set = [*overrides, without]
    load_recipe(arguments.recipe, arguments.set)  # a mistake in it is said before anything is spent
    chosen_ablations(arguments.ablations)
    if arguments.failure:
        load_recipe(arguments.failure, arguments.set)
    reuse(arguments.reuse, arguments.seeds, arguments.out)
    seeds: list[Row] = []
    judges: list[Row] = []
    bases: list[Path] = []
    for seed in arguments.seeds:
        done, refused = seed_run(arguments.recipe, arguments.out, seed, arguments.stages, arguments.set)
        bases.append(arguments.out / f"seed-{seed}")
        seeds.append(seed_numbers(bases[-1], seed, done, refused))
        if only_judge:
            judges.append(judge_row(arguments, bases[-1], seeds[-1], only_judge))
    return {
        "name": load_recipe(arguments.recipe).name,
        "command": command_of(arguments, overrides),
        "stages": arguments.stages,
        "seeds": seeds,
        "pooled": pooled(seeds, arguments.stages),
        "judges": judges,
        "ablations": ablation_rows(arguments, bases[0], seeds[0]),
        "failure": failure_row(arguments, bases[0], seeds[0]),
        "figure": None,
    }


def last_line(result: Row) -> Row:
    """{"stages": {stage: {metric: change with intervals}}, "beyond": {stage: {seed: bool or None}}, "ablations", "failure"}."""

    def brief(numbers: Row) -> Row:
        name = score_of(numbers["changes"])
        return {
            "score": None if name is None else numbers["changes"][name],
            "handed_over": numbers["handed_over"],
            "sft_handed_back": numbers["sft_handed_back"],
            "saved": numbers["saved"],
            "stopped_early": numbers["stopped_early"],
        }

    def beyond(seed: Row, stage: str) -> bool | None:
        row = seed["stages"].get(stage)
        name = score_of(row["changes"]) if row else None
        return row["beyond"][name] if row and name else None

    failed: Any = result["failure"]
    return {
        "seeds": [seed["seed"] for seed in result["seeds"]],
        "stages": result["pooled"],
        "beyond": {s: {str(seed["seed"]): beyond(seed, s) for seed in result["seeds"]} for s in result["stages"]},
        "kept": {
            s: {str(seed["seed"]): seed["stages"][s]["kept"] for seed in result["seeds"] if s in seed["stages"]}
            for s in result["stages"]
        },
        "refused": {str(seed["seed"]): seed["refused"] for seed in result["seeds"] if seed["refused"]},
        "ablations": {
            row["name"]: brief(row["numbers"]) if "numbers" in row else {"why_not": row["why_not"]}
            for row in result["ablations"]
        },
        "failure": failed and (brief(failed["numbers"]) if "numbers" in failed else {"why_not": failed["why_not"]}),
    }


def parsed(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in named(text)], default=[1, 2, 3])
    parser.add_argument("--stages", type=named, default=list(ALIGNED), help="of dpo,ppo,grpo,grpo-arithmetic")
    parser.add_argument("--ablations", default="all", help="all, none, or names separated by commas")
    parser.add_argument("--failure", type=Path, help="a recipe whose PPO settings are known to fail")
    parser.add_argument(
        "--reuse", type=lambda text: [Path(run) for run in named(text)], default=[], help="finished runs"
    )
    parser.add_argument(
        "--judge-sources", type=named, default=[], help="preference sources of a judge of other sources"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of every recipe"
    )
    parser.add_argument("--page", type=Path, help="the .md to write; its figure stands beside it")
    parser.add_argument("--notes", type=Path, help="Markdown for the last section, written by hand")
    arguments = parser.parse_args(given)
    known = [*ALIGNED, *VARIANTS]
    if not set(arguments.stages) <= set(known):
        raise UserError(f"unknown stage in {arguments.stages}", where="--stages", mend=f"known: {', '.join(known)}")
    if not 1 <= len(arguments.seeds) <= MOST_SEEDS or len(set(arguments.seeds)) < len(arguments.seeds):
        raise UserError("not a list of seeds", where="--seeds", mend=f"give 1 to {MOST_SEEDS} different ones")
    return arguments


def main() -> None:
    try:
        arguments = parsed(sys.argv[1:])
        result = evidence(arguments)
    except UserError as error:
        print(f"alignment: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if arguments.page:
        figure = arguments.page.with_suffix(".svg")
        result["figure"] = figure.name if draw(result["seeds"], arguments.stages, figure) else None
        notes = arguments.notes.read_text(encoding="utf-8") if arguments.notes else ""
        write_text(arguments.page, page(result, notes))
    write_json(arguments.out / "alignment.json", result)
    print(json.dumps(last_line(result), ensure_ascii=False))


if __name__ == "__main__":
    main()
