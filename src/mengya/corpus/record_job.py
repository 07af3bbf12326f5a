"""What all phases of building conversations or pairs share: the job, and where they leave what the next ones need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mengya.corpus import records
from mengya.corpus.contamination import Contamination, load_index
from mengya.corpus.messages import Talk
from mengya.corpus.parts import PartIndex, list_parts
from mengya.settings import CorpusSettings

COPIES, NEAR, UNBALANCED = "copies.npz", "near.npz", "unbalanced.npz"


@dataclass(frozen=True)
class Job:
    """What every phase needs to know; it travels to the workers."""

    work: Path
    settings: CorpusSettings
    seed: int
    unit: str
    """"conversations" or "pairs"."""
    copies: Mapping[str, int] = field(default_factory=dict)
    """How often a source's training records are written."""
    balanced: tuple[str, ...] = ()
    """Sources whose better answers may not be the longer ones."""
    grams: Path | None = None
    """npz of the evaluation sets' 13-grams; None where the recipe names no set."""

    def contamination(self) -> Contamination | None:
        """An empty count against the evaluation sets."""
        if self.grams is None:
            return None
        return Contamination(load_index(self.grams), self.settings.min_contaminated_grams)

    @property
    def parts(self) -> list[Path]:
        return list_parts(self.work / "read")

    def of_row(self, row: dict[str, Any]) -> Talk:
        return records.preference_pair(row) if self.unit == "pairs" else records.conversation(row)

    def index(self) -> PartIndex[Talk]:
        return PartIndex.of_records(self.parts, self.of_row)


def lost_in(job: Job, file: str, numbers: slice) -> dict[int, tuple[Any, ...]]:
    """{number: further columns} of what a step before found among these records; nothing where it was not asked for."""
    if not (job.work / file).exists():
        return {}
    with np.load(job.work / file) as found:
        low, high = np.searchsorted(found["index"], (numbers.start, numbers.stop))
        columns = [found[name][low:high].tolist() for name in found.files if name != "index"]
        rows = list(zip(*columns, strict=True)) or [()] * int(high - low)
        return dict(zip(found["index"][low:high].tolist(), rows, strict=True))
