"""Precision and recall of "drop" on 200 hand-labelled pages of dirty web text: `python benchmarks/cleaning.py DATA_DIR`.

DATA_DIR holds pretrain/web_news_inews.jsonl.zst. The labels, their criteria and how the pages were drawn stand in
tests/data/web_news_labels.json; they name texts by hash. Printed for the default settings and for the rule set `web`:
each stratum, and an estimate for the whole source in which each stratum counts by its size (95% intervals: Wilson's for
the strata, stratified bootstrap for the whole), then the speed of one process. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mengya.corpus.clean import clean
from mengya.corpus.sources import Rejects, read_rows
from mengya.evaluate.score import proportion
from mengya.settings import RULE_SETS, CleaningSettings

LABELS = Path(__file__).parents[1] / "tests" / "data" / "web_news_labels.json"
SOURCE = Path("pretrain") / "web_news_inews.jsonl.zst"
_RESAMPLES = 2000

Judged = tuple[bool, bool]
"""(whether the page should be dropped, whether it is)"""
Estimate = dict[str, float]


def text_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def confusion(pages: Iterable[Judged]) -> tuple[int, int, int]:
    """(rightly dropped, wrongly dropped, wrongly kept)"""
    counts = Counter(pages)
    return counts[True, True], counts[False, True], counts[True, False]


def precision_and_recall(pages: Sequence[Judged]) -> dict[str, Estimate]:
    hits, wrong, missed = confusion(pages)
    return {"precision": proportion(hits, hits + wrong), "recall": proportion(hits, hits + missed)}


def whole_source(strata: Sequence[tuple[int, Sequence[Judged]]]) -> dict[str, Estimate]:
    """Precision and recall on a source of strata (number of documents, sampled pages), and its share to be dropped."""

    def estimate(samples: Sequence[Sequence[Judged]]) -> tuple[float, float, float]:
        weights = [size / len(pages) for (size, _), pages in zip(strata, samples, strict=True)]
        hits, wrong, missed = (
            sum(weight * part for weight, part in zip(weights, parts, strict=True))
            for parts in zip(*map(confusion, samples), strict=True)
        )
        nothing = float("nan")
        return (
            hits / (hits + wrong) if hits + wrong else nothing,
            hits / (hits + missed) if hits + missed else nothing,
            (hits + missed) / sum(size for size, _ in strata),
        )

    rng = random.Random(0)
    drawn = [estimate([rng.choices(pages, k=len(pages)) for _, pages in strata]) for _ in range(_RESAMPLES)]
    found: dict[str, Estimate] = {}
    for place, (name, value) in enumerate(
        zip(("precision", "recall", "to_drop"), estimate([pages for _, pages in strata]), strict=True)
    ):
        ordered = sorted(values[place] for values in drawn if values[place] == values[place])
        low, high = ordered[int(0.025 * len(ordered))], ordered[int(0.975 * len(ordered)) - 1]
        found[name] = {"value": value, "low": low, "high": high}
    return found


def score(labels: dict[str, Any], drops: Callable[[str], bool]) -> dict[str, dict[str, Estimate]]:
    """Both strata, and the whole source; `drops` says of a hash whether its page is dropped."""
    judged = {
        name: {page: (label == "drop", drops(page)) for page, label in labels[name].items()}
        for name in ("random", "near")
    }
    in_near = set(labels["in_near"])
    near = [*judged["near"].values(), *(pair for page, pair in judged["random"].items() if page in in_near)]
    far = [pair for page, pair in judged["random"].items() if page not in in_near]
    num_near = labels["num_near"]
    return {
        "random": precision_and_recall(list(judged["random"].values())),
        "near": precision_and_recall(list(judged["near"].values())),
        "whole": whole_source([(num_near, near), (labels["num_documents"] - num_near, far)]),
    }


def _shown(estimate: Estimate) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    labels = json.loads(LABELS.read_text(encoding="utf-8"))
    texts = [row["text"] for _, row in read_rows(parser.parse_args().data / SOURCE, Rejects())]
    pages = {text_hash(text): text for text in texts}
    missing = [page for name in ("random", "near") for page in labels[name] if page not in pages]
    assert not missing, f"{len(missing)} labelled pages are not in {SOURCE}: another version of it?"

    result: dict[str, Any] = {}
    for name, rules in (("default", {}), ("web", RULE_SETS["web"])):
        settings = CleaningSettings(**rules)
        clean(texts[0], settings)  # tables are made on the first call
        begin = time.perf_counter()
        cleaned = {page: clean(text, settings) for page, text in pages.items()}
        seconds = time.perf_counter() - begin
        scores = score(labels, lambda page, cleaned=cleaned: cleaned[page].reason is not None)  # type: ignore[misc]
        reasons = Counter(page.reason for page in cleaned.values() if page.reason)
        megabytes = sum(len(text.encode()) for text in pages.values()) / 1e6
        print(f"{name}: {sum(reasons.values())} of {len(pages)} dropped; {megabytes / seconds:.1f} MB/s, one process")
        for part, estimates in scores.items():
            print(f"  {part:7} " + "  ".join(f"{key} {_shown(value)}" for key, value in estimates.items()))
        for reason, count in reasons.most_common():
            print(f"  {count:6} {reason}")
        result[name] = {
            "dropped": dict(reasons.most_common()),
            "mb_per_second": round(megabytes / seconds, 2),
            **scores,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
