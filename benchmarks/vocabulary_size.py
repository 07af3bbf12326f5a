"""Which vocabulary suits a parameter budget: small models of equal size, read equal bytes of text, compared in bits per byte.

    python benchmarks/vocabulary_size.py --data 'TEXTS/*.jsonl.zst' --budgets 3e6,7e6 --sizes 2000,4000,8000 --bytes 8e6

A larger vocabulary makes texts shorter, and so cheaper to read, but takes its parameters from the layers. For each
budget and vocabulary: a tokenizer, a model whose number of layers brings it nearest to the budget, one pretraining on the
same text. Bits per byte do not depend on the tokenizer, so they can be compared. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from recipe_runs import metrics, run

WIDTHS = ((2e6, 128), (5e6, 192), (12e6, 256), (30e6, 384), (1e18, 512))
"""Width of a model up to so many parameters, as in the presets; heads are 64 wide."""


def shape(budget: float, vocab_size: int) -> dict[str, int]:
    """A model's shape whose parameters come nearest to the budget, the embedding (tied) among them."""
    width = next(width for most, width in WIDTHS if budget <= most)
    ffn_width = width * 11 // 4
    layer = 4 * width * width + 3 * width * ffn_width + 2 * width
    num_layers = max(1, round((budget - vocab_size * width) / layer))
    return {"width": width, "num_layers": num_layers, "num_heads": width // 64, "ffn_width": ffn_width, "layer": layer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="file, folder or glob of documents")
    parser.add_argument("--format", default="text")
    parser.add_argument("--limit", type=int, help="rows to read")
    parser.add_argument("--budgets", default="3e6,7e6", help="parameters of the models")
    parser.add_argument("--sizes", default="2000,4000,8000", help="vocabularies")
    parser.add_argument("--bytes", type=float, default=8e6, help="of text that each model reads")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary) / "base"
        source = {"path": arguments.data, "format": arguments.format}
        source |= {"limit": arguments.limit} if arguments.limit else {}
        recipe: dict = {"name": "vocabulary", "seed": arguments.seed, "corpus": {"documents": [source]}}
        run({**recipe, "stages": ["corpus"]}, base)
        for vocab_size in map(int, arguments.sizes.split(",")):
            for budget in map(float, arguments.budgets.split(",")):
                directory = Path(temporary) / f"{vocab_size}-{budget:.0f}"
                shutil.copytree(base, directory)
                form = shape(budget, vocab_size)
                parameters = vocab_size * form["width"] + form.pop("layer") * form["num_layers"]
                tokenizer = {"vocab_size": vocab_size, "max_characters": 4_000_000}
                common = {**recipe, "tokenizer": tokenizer, "model": form}
                run({**common, "stages": ["corpus", "tokenizer", "shards"]}, directory)
                bytes_per_token = metrics(directory, "tokenizer")["tokenizer.bytes_per_token"]
                pretrain = {"tokens": int(arguments.bytes / bytes_per_token), "learning_rate": 3e-3}
                stages = ["corpus", "tokenizer", "shards", "pretrain"]
                run({**common, "pretrain": pretrain, "stages": stages}, directory)
                found = metrics(directory, "pretrain")
                rows.append(
                    {
                        "budget": budget,
                        "vocab_size": vocab_size,
                        "parameters": parameters,
                        "num_layers": form["num_layers"],
                        "embedding_share": round(vocab_size * form["width"] / parameters, 3),
                        "bytes_per_token": round(bytes_per_token, 3),
                        "bits_per_byte": round(found["pretrain.bits_per_byte"], 4),
                        "seconds": round(found["pretrain.seconds"], 1),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    best = {}
    for budget in sorted({row["budget"] for row in rows}):
        best[f"{budget:.0f}"] = min(
            (row for row in rows if row["budget"] == budget), key=lambda row: row["bits_per_byte"]
        )["vocab_size"]
    print(json.dumps({"rows": rows, "best": best}))


if __name__ == "__main__":
    main()
