"""Which learning rate suits which width: validation loss over rate × width on real text, for the rules of `stages.dial`.

    python benchmarks/rates_sweep.py --data ../shared/data --widths 128,192,256 --tokens 1000000

For every width a model of the dial's depth is pretrained with each rate, Muon's and AdamW's in turn at the rule's value times 1/4 …
4; the same tokenizer, data, order and tokens. The corpus is cleaned once: each run goes on in a copy of it. A line a run, and at
the end one JSON object: {width: {"matrix": {rate: loss}, "adamw": {rate: loss}}}. The rule holds where the best factor
does not move with the width; that takes hours, not minutes, beyond the smallest widths.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from mengya.model.presets import depth_of
from mengya.stages.dial import rates

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def recipe_of(data: Path, width: int, tokens: int, optimizer: str, factors: dict[str, float]) -> dict:
    ruled = rates("pretrain", optimizer, width)
    names = ("encyclopedia_misc", "life_general", "medical_modern")
    return {
        "name": "rates-sweep",
        "stages": ["corpus", "tokenizer", "shards", "pretrain"],
        "corpus": {"documents": [{"path": f"{data}/pretrain/{name}.jsonl.zst", "format": "text"} for name in names]},
        "tokenizer": {"vocab_size": 6400, "max_characters": 3_000_000},
        "model": {"width": width, "num_layers": round(depth_of(width)), "num_heads": width // 64, "max_positions": 256},
        "pretrain": {
            "tokens": tokens,
            "optimizer": optimizer,
            "evaluate_every": 10_000,
            **{key: float(f"{value * factors.get(key, 1.0):.4g}") for key, value in ruled.items()},
        },
        "evaluate": {"num_prompts": 1, "num_documents": 50, "num_questions": 1, "max_new_tokens": 1},
    }


def loss_of(recipe: dict, base: Path, work: Path) -> float:
    """Validation loss at the end of pretraining in a copy of `base`, where the data stages are done."""
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    if base.exists():
        shutil.copytree(base, run)
    path = work / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "mengya", "run", str(path), "--out", str(run)], check=True, capture_output=True
    )
    if not base.exists():
        shutil.copytree(run, base, ignore=shutil.ignore_patterns("pretrain", "report.html"))
    manifest = json.loads((run / "pretrain" / "manifest.json").read_text(encoding="utf-8"))
    return float(manifest["metrics"]["pretrain.validation_loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the shared data")
    parser.add_argument("--widths", default="128,192,256,384", help="multiples of 64, separated by commas")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of each run")
    parser.add_argument("--factors", default=",".join(map(str, FACTORS)), help="of the rule's rate")
    arguments = parser.parse_args()
    factors = [float(factor) for factor in arguments.factors.split(",")]
    found: dict[int, dict[str, dict[float, float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        base, work = Path(directory) / "base", Path(directory)
        for width in map(int, arguments.widths.split(",")):
            found[width] = {}
            for name, optimizer, key in (
                ("matrix", "muon", "matrix_learning_rate"),
                ("beside", "muon", "learning_rate"),
                ("adamw", "adamw", "learning_rate"),
            ):
                losses: dict[float, float] = {}
                for factor in factors:
                    recipe = recipe_of(arguments.data.resolve(), width, arguments.tokens, optimizer, {key: factor})
                    rate = recipe["pretrain"][key]
                    losses[rate] = loss_of(recipe, base, work)
                    print(
                        f"width {width} {name} rate {rate:g} ({factor:g} of the rule): loss {losses[rate]:.4f}",
                        flush=True,
                    )
                found[width][name] = losses
    print(json.dumps(found))


if __name__ == "__main__":
    main()
