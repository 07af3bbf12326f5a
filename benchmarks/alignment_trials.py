"""The page's sections on PPO with each detail switched off, and on settings that are known to fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alignment_numbers import METRICS, better_of, score_of
from alignment_words import change, words, yes
from mengya.report.words import as_value, shown
from results_page import cell, table

Row = dict[str, Any]


def ablations(result: Row) -> Iterator[str]:
    """Each detail of PPO off: where the policy was at the last look, and what the guard handed over instead."""
    if not result["ablations"]:
        return
    yield f"## PPO with each detail switched off, seed {result['seeds'][0]['seed']}"
    yield ""
    yield (
        "Last look: the guard's prompts, the policy as training left it. Handed over: of that stage's model on the prompts of the "
        "tables above. Saved: the guard's score of what was handed over less that of the last look."
    )
    yield ""
    columns = ["score", "reward", "KL", "repetition", "ended", "length"]
    yield from table(
        [
            "",
            "settings",
            *(f"last look: {c}" for c in columns),
            "over-optimised",
            "handed over",
            "its score against SFT",
            "saved",
        ],
        (ablation_row(row) for row in result["ablations"] if "numbers" in row),
    )
    left_out = [row for row in result["ablations"] if "numbers" not in row]
    for row in left_out:
        yield f"- Left out: {row['words']} (`{' '.join(row['overrides'])}`): {row['why_not']}"
    if left_out:
        yield ""


def ablation_row(row: Row) -> list[str]:
    numbers = row["numbers"]
    name = score_of(numbers["changes"])
    settings = "<br>".join(f"`{override}`" for override in row["overrides"]) or "all on"
    looks = numbers["looks"]
    last = look_cells(looks[-1]) if looks else [""] * 6
    peak = numbers["over_optimised"]
    return [
        row["words"], settings, *last,
        f"from step {peak['step']}" if peak else "no",
        handed(numbers),
        change(name, numbers["changes"].get(name)) if name else "",
        "" if numbers["saved"] is None else f"{numbers['saved']:+.3f}",
    ]  # fmt: skip


def handed(numbers: Row) -> str:
    if numbers["sft_handed_back"]:
        return "SFT"
    if not numbers["looks"]:
        return "its last policy, unguarded"
    return "not said" if numbers["handed_over"] is None else f"step {numbers['handed_over']}"


def look_cells(look: Row) -> list[str]:
    reward = look.get("reward")
    return [
        f"{look['score']:.3f}" + (f" ± {1.96 * look['error']:.3f}" if look.get("error") else ""),
        "" if reward is None else f"{reward:+.2f}",
        f"{look['kl']:.2f}",
        shown("repetition", look["repetition"]),
        shown("end_rate", look["end_rate"]),
        f"{look.get('length', 0.0):.1f}",
    ]


def failure(result: Row) -> Iterator[str]:
    """The settings that failed: every look, what the guard did, and SFT beside what was handed over."""
    found = result["failure"]
    if not found:
        return
    yield "## Settings that are known to fail"
    yield ""
    yield f"`{found['recipe']}`, on the SFT and reward model of seed {result['seeds'][0]['seed']}."
    yield ""
    if "numbers" not in found:
        yield f"It did not run: {found['why_not']}"
        yield ""
        return
    numbers = found["numbers"]
    yield from table(
        ["step", "score ± 95%", "training reward", "KL", "repetition", "ended", "length", "refusals", "the guard"],
        (
            [str(look["step"]), *look_cells(look), shown("refusal_rate", look.get("refusals", 0.0)), why(look)]
            for look in numbers["looks"]
        ),
    )
    peak = numbers["over_optimised"]
    yield f"- The guard: {numbers['verdict']}" + (f"; {numbers['stopped_early']}" if numbers["stopped_early"] else "")
    where = f"from step {peak['step']}, {peak['kl']:.2f} nats" if peak else "not reached"
    yield f"- Over-optimisation: {where}"
    yield f"- Handed over: {handed(numbers)}" + (
        f"; its score on the guard's prompts is {numbers['saved']:+.3f} against the last look's"
        if numbers["saved"] is not None
        else ""
    )
    yield ""
    held = [m for m in METRICS if as_value(numbers["metrics"].get(m))]
    before = result["seeds"][0]["sft"]["metrics"]
    yield from table(
        ["", "SFT", "handed over", "change", "not worse"],
        (
            [
                words(m), cell(m, before.get(m)), cell(m, numbers["metrics"][m]), change(m, numbers["changes"].get(m)),
                yes(not_worse(m, numbers["changes"].get(m))),
            ]
            for m in held
        ),
    )  # fmt: skip


def not_worse(metric: str, found: Row | None) -> bool | None:
    """Whether the change's interval reaches 0 or the better side: not worse beyond the interval."""
    if found is None or metric in ("answer_tokens", "kl_to_sft"):
        return None
    return bool(found["high"] >= 0 if better_of(metric) == "higher" else found["low"] <= 0)


def why(look: Row) -> str:
    """The guard's words on a look: start, kept, or why it was not."""
    return str(look.get("why_not") or look.get("mark") or "")
