"""Time to a loss: Mengya's defaults of pretraining against plain AdamW with a cosine, what the peers do.

    python benchmarks/time_to_loss.py [--data 'TEXTS/*.jsonl.zst'] [--preset 3m] [--tokens 1.5e6] [--seeds 1,2,3]

Same data, tokenizer, shape, batch and machine. The baseline trains on all tokens, at the best of a few peak rates (chosen
with the first seed: an ill-tuned baseline would prove nothing). Mengya, at the rates of the dial, trains on a share of the
tokens, its schedule that long, the shares in ascending order until its validation loss is not above the baseline's. Time is
tokens by the median speed of the run's own log, so that a pause of the machine does not count. Without --data, the embedded
corpus. The last line is one JSON object; `time_ratio` is the mean over seeds of Mengya's time by the baseline's, null for a
seed where no share was enough.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from mengya.model.presets import PRESETS
from mengya.stages.dial import rates
from recipe_runs import log_lines, metrics, run

STAGES = ["corpus", "tokenizer", "shards", "pretrain"]
BASELINE = {"optimizer": "adamw", "schedule": "cosine", "warmup_fraction": 0.03, "final_fraction": 0.1}
RATES = (1e-3, 2e-3, 4e-3)


def trained(recipe: dict[str, Any], pretrain: dict[str, Any], base: Path) -> tuple[float, float]:
    """(validation loss, seconds) of a pretraining that starts from the data of `base`."""
    directory = base.with_name(f"{base.name}-run")
    shutil.copytree(base, directory)
    run({**recipe, "pretrain": pretrain, "stages": STAGES}, directory)
    loss = metrics(directory, "pretrain")["pretrain.validation_loss"]
    lines = log_lines(directory, "pretrain")
    speed = statistics.median(line["tokens_per_second"] for line in lines)
    shutil.rmtree(directory)
    return loss, lines[-1]["tokens"] / speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", help="file, folder or glob of documents (JSON lines with `text`); absent: the embedded corpus"
    )
    parser.add_argument("--limit", type=int, help="rows to read of --data")
    parser.add_argument("--preset", default="3m")
    parser.add_argument("--vocab-size", type=int, default=4000)
    parser.add_argument("--tokens", type=float, default=1.5e6, help="that the baseline trains on")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--shares", default="0.2,0.25,0.3,0.4,0.5,0.6,0.8,1.0", help="of the tokens, that Mengya tries")
    parser.add_argument("--seeds", default="1,2,3")
    arguments = parser.parse_args()
    source: Any = "playground"
    if arguments.data:
        source = {"path": arguments.data, "format": "text"} | ({"limit": arguments.limit} if arguments.limit else {})
    rows, rate = [], None
    rule = rates("pretrain", "muon", PRESETS[arguments.preset]["width"])
    for seed in map(int, arguments.seeds.split(",")):
        recipe = {
            "name": "time-to-loss",
            "seed": seed,
            "corpus": {"documents": [source], "max_digit_share": 0.5},
            "playground": {"num_characters": 2_500_000},
            "tokenizer": {"vocab_size": arguments.vocab_size, "max_characters": 4_000_000},
            "model": {"preset": arguments.preset},
            # What is measured beside the loss costs time and is not looked at here.
            "evaluate": {"num_questions": 2, "num_prompts": 2, "num_documents": 20, "max_new_tokens": 2},
        }
        common = {"sequence_length": arguments.sequence_length, "log_every": 5, "evaluate_every": 1_000_000}
        tokens = int(arguments.tokens)
        with tempfile.TemporaryDirectory() as temporary:
            base = Path(temporary) / "base"
            run({**recipe, "stages": STAGES[:-1]}, base)
            plain = {**common, **BASELINE, "tokens": tokens}
            if rate is None:
                tried = {r: trained(recipe, {**plain, "learning_rate": r}, base) for r in RATES}
                rate = min(tried, key=lambda r: tried[r][0])
                print(
                    f"baseline: validation loss by peak rate { ({r: round(v[0], 4) for r, v in tried.items()}) }",
                    flush=True,
                )
                loss, seconds = tried[rate]
            else:
                loss, seconds = trained(recipe, {**plain, "learning_rate": rate}, base)
            row: dict[str, Any] = {"seed": seed, "baseline_loss": round(loss, 4), "baseline_seconds": round(seconds, 1)}
            row |= {"share": None, "loss": None, "seconds": None, "ratio": None}
            for share in map(float, arguments.shares.split(",")):
                ours, ours_seconds = trained(recipe, {**common, **rule, "tokens": int(tokens * share)}, base)
                print(f"seed {seed}: {share:.0%} of the tokens: loss {ours:.4f}, baseline {loss:.4f}", flush=True)
                if ours <= loss:
                    row |= {"share": share, "loss": round(ours, 4), "seconds": round(ours_seconds, 1)}
                    row["ratio"] = round(ours_seconds / seconds, 3)
                    break
        rows.append(row)
        print(json.dumps(row), flush=True)
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    mean = round(statistics.fmean(ratios), 3) if len(ratios) == len(rows) else None
    print(json.dumps({"time_ratio": mean, "seeds": len(rows), "baseline_rate": rate, "rows": rows}))


if __name__ == "__main__":
    main()
