"""Twenty training steps reproduce a committed curve.

The text is a frozen excerpt of the playground, one token a byte, so that only the numerics of model, packing, loop and
optimizers are seen: neither the playground's wordings nor the tokenizer. Processors and PyTorch versions round
differently, hence the tolerance: with AVX2 or SSE4 in place of AVX-512 the losses differ by 7e-5 and the gradient norms
by 9e-3 with Muon, whose iteration is in bf16, and by 1e-7 and 3e-5 with AdamW.
curve.json may move only together with an entry in docs/LOG.md that says why: `python tests/golden/test_golden.py`
writes it anew.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mengya.data.loader import PackedLoader
from mengya.files import read_jsonl
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.settings import PretrainSettings
from mengya.train.loop import fit
from mengya.train.parallel import World

HERE = Path(__file__).parent
CURVE, TEXT = HERE / "curve.json", HERE / "playground.txt"
END = 256
STEPS = 20
CONFIGS = {"llama_muon": ("muon", False), "qwen3_adamw": ("adamw", True)}


class Bytes:
    """The documents of the excerpt (its lines), a token a byte between two boundaries."""

    fingerprint = "bytes of playground.txt"

    def __init__(self) -> None:
        lines = TEXT.read_text(encoding="utf-8").splitlines()
        self.documents = [np.array([END, *line.encode(), END], dtype=np.int64) for line in lines]

    def origin_of(self, index):
        return f"numbers:{index}"

    @property
    def num_inputs_N(self) -> np.ndarray:
        return np.array([len(document) - 1 for document in self.documents])

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = self.documents[document]
        return tokens[start : start + length], tokens[start + 1 : start + length + 1]


def curve(name: str, directory: Path) -> list[dict[str, float]]:
    """Loss and gradient norm of every step."""
    optimizer, qk_norm = CONFIGS[name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(7)
        model = Transformer(
            ModelConfig(
                vocab_size=257,
                width=64,
                num_layers=2,
                num_heads=4,
                num_kv_heads=2,
                ffn_width=128,
                max_positions=128,
                qk_norm=qk_norm,
            )
        )
        fit(
            model,
            PackedLoader(Bytes(), row_length=128, rows_per_step=8, micro_batch_rows=4, seed=7, pad_id=END),
            next_token_loss,
            PretrainSettings(optimizer=optimizer, learning_rate=3e-3, log_every=1),
            num_steps=STEPS,
            directory=directory,
            world=World(0, 1, torch.device("cpu"), torch.float32),
        )
    finally:
        torch.set_num_threads(threads)
    return [{key: row[key] for key in ("loss", "grad_norm")} for row in read_jsonl(directory / "metrics.jsonl")]


@pytest.mark.parametrize("name", CONFIGS)
def test_twenty_steps_reproduce_the_committed_curve(name, tmp_path):
    expected = json.loads(CURVE.read_text())[name]
    found = curve(name, tmp_path)
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-3)
    assert [row["grad_norm"] for row in found] == pytest.approx([row["grad_norm"] for row in expected], rel=3e-2)
    assert found[-1]["loss"] < found[0]["loss"] - 1, "a curve that learns nothing would compare nothing"


if __name__ == "__main__":
    curves = {}
    for each in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            curves[each] = curve(each, Path(folder))
    CURVE.write_text(json.dumps(curves, indent=1) + "\n")
    sys.stdout.write(f"{CURVE}\n")
