"""Where the data of a skipped step came from: in words for the terminal, in full in STAGE/skipped.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mengya.console import read_metrics
from mengya.data.packing import PADDING, PackedBatch
from mengya.data.pairs import PairBatch
from mengya.files import write_jsonl

_MOST_LISTED = 500
"""Origins looked up a step: a step of half a million tokens has thousands of documents."""
_MOST_SAID = 3


@runtime_checkable
class KnowsOrigins(Protocol):
    """A loader that can tell where an example came from: source, file, line."""

    def origin_of(self, index: int) -> str: ...


def origin(data: object, index: int) -> str:
    """Where example `index` came from, if `data` can tell; else its number."""
    return data.origin_of(index) if isinstance(data, KnowsOrigins) else f"example {index:,}"


def examples_of(batch: object) -> list[int]:
    """Indices of the examples in a micro-batch, in its order, each once; none of a batch that was not read from data."""
    if isinstance(batch, PackedBatch):
        indices = batch.documents_BT.flatten().tolist()
    elif isinstance(batch, PairBatch):
        indices = batch.indices_B.tolist()
    else:
        return []
    return [index for index in dict.fromkeys(indices) if index != PADDING]


class Incidents:
    """The skipped steps of a training, one JSON object a line: step, reason, loss, grad_norm, documents.

    Every rank writes of its own micro-batches: skipped.jsonl, and skipped-RANK.jsonl beside it.
    """

    def __init__(self, directory: Path, rank: int, data: object) -> None:
        self.path = Path(directory) / ("skipped.jsonl" if rank == 0 else f"skipped-{rank}.jsonl")
        self._data = data

    def resume(self, num_skipped: int) -> None:
        """Forget what an earlier process met after its first `num_skipped` skipped steps: it will be met again."""
        if self.path.exists():
            write_jsonl(self.path, read_metrics(self.path)[:num_skipped])

    def add(
        self,
        step: int,
        reason: str,
        loss: float,
        grad_norm: float,
        micro_batches: Sequence[object],
        losses: Sequence[float],
    ) -> str:
        """Record a skipped step; its documents in words, those of the micro-batch with the worst of `losses` first."""
        order = sorted(
            range(len(losses)), key=lambda i: losses[i] if math.isfinite(losses[i]) else math.inf, reverse=True
        )
        indices = list(dict.fromkeys(index for i in order for index in examples_of(micro_batches[i])))
        documents = [origin(self._data, index) for index in indices[:_MOST_LISTED]]
        numbers = {name: _json(value) for name, value in (("loss", loss), ("grad_norm", grad_norm))}
        row: dict[str, Any] = {"step": step, "reason": reason, **numbers}
        row |= {"num_documents": len(indices), "documents": documents}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not documents:
            return "documents unknown"
        more = len(indices) - _MOST_SAID
        return "; ".join(documents[:_MOST_SAID]) + (f"; and {more:,} more, in {self.path}" if more > 0 else "")


def _json(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
