"""The S-curve of deduplication, as computed and as measured: `python benchmarks/dedup_curve.py docs/deduplication.svg`.

The curve is the probability that a pair of texts becomes a candidate, from bands and rows alone. Each point is the share of
2,000 pairs of random texts, of one exact Jaccard similarity, that the bands did propose. datatrove's bands beside it.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np

from dedup_documents import HAN
from mengya.corpus.dedup import NGRAM, NUM_BANDS, NUM_ROWS, band_keys
from mengya.corpus.lsh import proposal_probability

PAIRS = 2000
LENGTH = 404  # 400 5-grams


def share_proposed(num_edits: int) -> tuple[float, float]:
    """(Jaccard, share of pairs proposed) where `num_edits` characters, 5 or more apart, were replaced."""
    rng = random.Random(num_edits)
    originals = ["".join(rng.choices(HAN, k=LENGTH)) for _ in range(PAIRS)]
    step = (LENGTH - 8) / num_edits
    places = {4 + int(step * number) for number in range(num_edits)}
    # Characters that no original holds: no changed 5-gram is another's by chance.
    copies = ["".join("甲乙丙丁"[rng.randrange(4)] if k in places else c for k, c in enumerate(t)) for t in originals]
    total = LENGTH - NGRAM + 1
    a, b = band_keys(originals), band_keys(copies)
    return (total - 5 * num_edits) / (total + 5 * num_edits), float((a == b).any(axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("figure", type=Path, help="the .svg to write")
    arguments = parser.parse_args()
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mengya"  # the same picture is the same file
    from matplotlib import pyplot

    points = [share_proposed(num_edits) for num_edits in (2, 4, 6, 8, 9, 11, 14, 18, 22, 27, 33, 41)]
    for similarity, share in points:
        measured = {"jaccard": similarity, "measured": share, "computed": proposal_probability(similarity)}
        print(json.dumps({name: round(value, 4) for name, value in measured.items()}))
    curve = np.linspace(0, 1, 201)
    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    axes.plot(curve, [proposal_probability(s) for s in curve], label=f"Mengya, {NUM_BANDS} bands of {NUM_ROWS} rows")
    axes.plot(curve, [proposal_probability(s, 14, 8) for s in curve], "--", label="datatrove, 14 bands of 8 rows")
    axes.plot(*zip(*points, strict=True), "o", markersize=4, label=f"measured, {PAIRS:,} pairs each")
    axes.axvline(0.8, color="grey", linewidth=0.8)
    axes.set_xlabel("exact Jaccard similarity of two documents (character 5-grams)")
    axes.set_ylabel("probability of being compared")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(arguments.figure, metadata={"Date": None})


if __name__ == "__main__":
    main()
