"""What all phases of building documents share: the job, and where they leave what the next ones need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mengya.corpus.contamination import Contamination, load_index
from mengya.corpus.parts import list_parts
from mengya.settings import CleaningSettings, CorpusSettings

DUPLICATES, SENTENCES = "duplicates.npz", "sentences.npy"
SHOWN = 20  # recurring lines and sentences shown
KINDS = ("", "exact_duplicate", "near_duplicate")


@dataclass(frozen=True)
class Job:
    """What every phase needs to know; it travels to the workers."""

    work: Path
    settings: CorpusSettings
    seed: int
    grams: Path | None = None
    """npz of the evaluation sets' 13-grams, a set an array under its name; None where the recipe names no set."""

    rules: Mapping[str, CleaningSettings] = field(default_factory=dict)
    """How each source is cleaned, by its name."""

    def contamination(self) -> Contamination | None:
        """An empty count against the evaluation sets."""
        if self.grams is None:
            return None
        return Contamination(load_index(self.grams), self.settings.min_contaminated_grams)

    def clean_directory(self, task: int) -> Path:
        return self.work / "clean" / f"{task:05d}"

    @property
    def cleaned(self) -> list[Path]:
        return list_parts(self.work / "clean")

    @property
    def signed(self) -> list[Path]:
        return list_parts(self.work / "sign")


def twins_in(job: Job, numbers: slice) -> dict[int, tuple[int, str, float]]:
    """{number of a document that is a copy: (of which, its kind, their likeness)} of a part's documents."""
    with np.load(job.work / DUPLICATES) as found:
        low, high = np.searchsorted(found["index"], (numbers.start, numbers.stop))
        mine = [found[name][low:high].tolist() for name in ("index", "of", "kind", "similarity")]
    return {index: (of, KINDS[kind], similarity) for index, of, kind, similarity in zip(*mine, strict=True)}
