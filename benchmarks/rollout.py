"""Answer tokens a second of Mengya's `generate` and of transformers': the same 31 M model, prompts and answer lengths.

    python benchmarks/rollout.py [--batch 1,16,64] [--rounds 3] [--repeats 3]      (pip install -e '.[dev]')

On a machine that has other work, `--threads 1 --clock cpu` counts seconds of the processor.

Random weights; `rounds` × `batch` prompts of 16 to 128 tokens, sampled at temperature 1 from the whole vocabulary. The
length of each answer is drawn beforehand, the same for both sides:
    ended    the end has the chance 1/64 at every token, and 256 is the limit: `vs_transformers`
    uniform  from 16 to 128 tokens
    equal    72 for all: what is left is the speed of the forward pass
A batch of transformers runs until its longest answer ends; tokens after an answer's end do not count. Prompts go to it in
batches of similar length, left-padded. The best of its settings (dtype and attention) by answer tokens a second is what
the best dtype of Mengya is compared with. The sides take turns; numbers are medians. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from mengya.generate.engine import generate
from mengya.generate.sampling import Sampling
from mengya.model.checkpoint import save_model
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer

SHAPE = {"vocab_size": 8192, "width": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 4, "ffn_width": 1664}
SHORTEST, LONGEST = 16, 128
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Job = tuple[list[list[int]], list[int]]  # prompts, the number of tokens to answer each with


def job(num_prompts: int, kind: str) -> Job:
    rng = random.Random(f"{num_prompts}:{kind}")
    prompts = [
        [rng.randrange(SHAPE["vocab_size"]) for _ in range(rng.randint(SHORTEST, LONGEST))] for _ in range(num_prompts)
    ]
    lengths: dict[str, Callable[[], int]] = {
        "ended": lambda: min(1 + int(math.log(1 - rng.random()) / math.log(1 - 1 / 64)), 256),
        "uniform": lambda: rng.randint(SHORTEST, LONGEST),
        "equal": lambda: (SHORTEST + LONGEST) // 2,
    }
    return prompts, [lengths[kind]() for _ in prompts]


class Ends(transformers.StoppingCriteria):
    """Row b is done when it has so many tokens; the batch runs until all are."""

    def __init__(self, num_tokens_B: torch.Tensor) -> None:
        self.num_tokens_B = num_tokens_B

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.num_tokens_B


@torch.inference_mode()
def theirs(model: Any, work: Job, batch: int) -> None:
    order = sorted(range(len(work[0])), key=lambda index: len(work[0][index]))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        longest = max(len(work[0][row]) for row in rows)
        padding = [longest - len(work[0][row]) for row in rows]
        ids_BT = torch.tensor([[0] * pad + work[0][row] for pad, row in zip(padding, rows, strict=True)])
        mask_BT = torch.arange(longest) >= torch.tensor(padding)[:, None]
        limits = [work[1][row] for row in rows]
        out_BT = model.generate(
            ids_BT,
            attention_mask=mask_BT.long(),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max(limits),
            stopping_criteria=[Ends(longest + torch.tensor(limits))],
            eos_token_id=None,
            pad_token_id=0,
        )
        assert out_BT.shape[1] == longest + max(limits)


def ours(model: Transformer, dtype: torch.dtype, work: Job, batch: int) -> None:
    model.compute_dtype = dtype
    answers = generate(model, work[0], max_new_tokens=work[1], stop_ids=(), sampling=Sampling(), batch_size=batch)
    assert [len(answer.tokens) for answer in answers] == work[1]


def measure(
    sides: dict[str, Callable[[Job, int], None]],
    kinds: list[str],
    batch: int,
    rounds: int,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Tokens a second of each side, and how many times the best of transformers Mengya's best is."""
    result: dict[str, Any] = {}
    for kind in kinds:
        work = job(rounds * batch, kind)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, run in sides.items():
                start = clock()
                run(work, batch)
                seconds[name].append(clock() - start)
        rates = {name: round(sum(work[1]) / statistics.median(times), 1) for name, times in seconds.items()}
        best = {who: max(rate for name, rate in rates.items() if name.startswith(who)) for who in ("mengya", "transf")}
        ratio = round(best["mengya"] / best["transf"], 2)
        print(f"batch {batch}, {kind} lengths, {len(work[0])} prompts: {rates}, ratio {ratio}", flush=True)
        if kind == kinds[0]:
            result |= {"vs_transformers": ratio, "tokens_per_second": best["mengya"]}
        result[kind] = {"vs_transformers": ratio, **rates}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=3, help="prompts are so many times the batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--lengths", default="ended,uniform,equal")
    parser.add_argument("--settings", default="fp32/sdpa,bf16/sdpa", help="of transformers: DTYPE/ATTENTION,...")
    parser.add_argument("--dtypes", default="fp32,bf16", help="of Mengya")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    transformers.logging.set_verbosity_error()

    torch.manual_seed(0)
    model = Transformer(ModelConfig(**SHAPE))
    sides: dict[str, Callable[[Job, int], None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "model")
        for setting in arguments.settings.split(","):
            dtype, attention = setting.split("/")
            oracle = transformers.AutoModelForCausalLM.from_pretrained(
                Path(folder) / "model", dtype=DTYPES[dtype], attn_implementation=attention
            ).eval()
            sides[f"transformers {setting}"] = lambda work, batch, oracle=oracle: theirs(oracle, work, batch)
    for dtype in arguments.dtypes.split(","):
        sides[f"mengya {dtype}"] = lambda work, batch, dtype=dtype: ours(model, DTYPES[dtype], work, batch)
    for run in sides.values():  # everything is loaded and allocated once
        run(([[1] * SHORTEST] * 2, [4, 4]), 2)
    result = {
        str(batch): measure(sides, arguments.lengths.split(","), batch, arguments.rounds, arguments.repeats, clock)
        for batch in map(int, arguments.batch.split(","))
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
