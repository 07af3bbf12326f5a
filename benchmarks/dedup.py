"""Near-duplicate search of Mengya, datasketch and datatrove on the same documents: CPU time, recall and precision.

    python benchmarks/dedup.py [--data FOLDER] [--documents 12000]         (pip install -e '.[bench]')

All see the same 5-grams of the same canonical forms, and use 20 bands of 6 rows, on one core.
Mengya: signatures to disk, candidates, exact Jaccard, clusters.
datasketch: MinHash.generator with xxhash (its default, SHA-1, is slower), then LSH; a text is dropped when the index holds
one that the exact Jaccard of sets finds alike, the job that Mengya does; "unverified": when it holds any candidate.
datatrove: signature, buckets, cluster, called directly, without an executor's processes; it verifies nothing.

The truth is the exact Jaccard of all pairs of texts, from the product of the sparse matrix of texts and 5-grams.
Recall: the share of pairs of Jaccard ≥ 0.8 of which a text was dropped. Precision: the share of dropped texts that have
another text of Jaccard ≥ 0.8. The last line is one JSON object.
"""

from __future__ import annotations

import os

os.environ["RAYON_NUM_THREADS"] = "1"  # before rensa is imported: the others have one core too

import argparse
import json
import struct
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dedup_documents import Synthetic, data_folder, real, with_near_copies
from mengya.corpus.dedup import NGRAM, NUM_BANDS, NUM_ROWS, canonical, find_duplicates, write_signatures

THRESHOLD = 0.8
Dropped = set[int]


def mengya(texts: list[str]) -> Dropped:
    with tempfile.TemporaryDirectory() as name:
        stem = Path(name) / "part"
        write_signatures(texts, stem)
        found = find_duplicates([stem], texts.__getitem__, threshold=THRESHOLD, directory=Path(name))
        return {duplicate.index for duplicate in found}


def datasketch_unverified(texts: list[str], verified: bool = False) -> Dropped:
    import xxhash
    from datasketch import MinHash, MinHashLSH

    @lru_cache(maxsize=50_000)
    def grams_of(number: int) -> set[str]:
        text = canonical(texts[number])
        return {text[place : place + NGRAM] for place in range(len(text) - NGRAM + 1)}

    def is_copy(number: int, other: int) -> bool:
        common = len(grams_of(number) & grams_of(other))
        return common >= THRESHOLD * (len(grams_of(number)) + len(grams_of(other)) - common)

    index = MinHashLSH(num_perm=NUM_BANDS * NUM_ROWS, params=(NUM_BANDS, NUM_ROWS))
    grams = (
        [text[place : place + NGRAM].encode() for place in range(len(text) - NGRAM + 1)]
        for text in map(canonical, texts)
    )
    dropped = set()
    minhashes = MinHash.generator(grams, num_perm=NUM_BANDS * NUM_ROWS, hashfunc=xxhash.xxh32_intdigest)
    for number, minhash in enumerate(minhashes):
        like = index.query(minhash)
        if any(is_copy(number, other) for other in sorted(like)) if verified else like:
            dropped.add(number)
        else:
            index.insert(number, minhash, check_duplication=False)
    return dropped


def datasketch(texts: list[str]) -> Dropped:
    return datasketch_unverified(texts, verified=True)


def datatrove(texts: list[str]) -> Dropped:
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature, minhash
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer
    from loguru import logger

    class Characters(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return list(text)

        sent_tokenize = span_tokenize = None

    logger.remove()
    as_it_is = TextNormConfig(False, False, False, False, False)
    config = MinhashConfig(n_grams=NGRAM, num_buckets=NUM_BANDS, hashes_per_bucket=NUM_ROWS, norm_config=as_it_is)
    with tempfile.TemporaryDirectory() as name:
        # Its tokenizers of Chinese are spaCy's; to take the characters is faster, and makes n-grams equal to ours.
        minhash.load_word_tokenizer = lambda language: Characters()
        signature = MinhashDedupSignature(f"{name}/signatures", config)
        signature.run(Document(text=canonical(text), id=str(number)) for number, text in enumerate(texts))
        for bucket in range(NUM_BANDS):
            step = MinhashDedupBuckets(f"{name}/signatures", f"{name}/buckets", config=config)
            step.run(rank=bucket, world_size=NUM_BANDS)
        MinhashDedupCluster(f"{name}/buckets", f"{name}/remove", config).run()
        removed = Path(name, "remove/000000.remove")
        return {number for (number,) in struct.iter_unpack("<I", removed.read_bytes())} if removed.exists() else set()


def true_pairs(texts: list[str]) -> npt.NDArray[np.int64]:
    """[num_pairs, 2] pairs i < j of exact Jaccard ≥ THRESHOLD, of sets of strings: no hash, no band."""
    from scipy.sparse import csr_array

    numbers: dict[str, int] = {}
    columns: list[int] = []
    starts = [0]
    for text in map(canonical, texts):
        grams = {text[place : place + NGRAM] for place in range(len(text) - NGRAM + 1)}
        columns += sorted(numbers.setdefault(gram, len(numbers)) for gram in grams)
        starts.append(len(columns))
    shape = (len(texts), len(numbers))
    matrix = csr_array((np.ones(len(columns), np.int32), columns, starts), shape=shape)
    common = (matrix @ matrix.T).tocoo()
    sizes = np.diff(starts)
    union = sizes[common.row] + sizes[common.col] - common.data
    alike = (common.row < common.col) & (common.data >= THRESHOLD * union)
    return np.stack([common.row[alike], common.col[alike]], axis=1).astype(np.int64)


def measured(find: Callable[[list[str]], Dropped], texts: list[str], runs: int) -> tuple[Dropped, float]:
    """(dropped, the median CPU seconds of `runs` runs)."""
    find(texts[:50])  # imports and tables are not what is measured
    seconds = []
    for _ in range(runs):
        before = time.process_time()
        dropped = find(texts)
        seconds.append(time.process_time() - before)
    return dropped, float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=data_folder(), help="a folder with pretrain/*.jsonl.zst")
    parser.add_argument("--documents", type=int, default=12_000, help="of which a quarter are planted near copies")
    parser.add_argument("--characters", type=int, default=500, help="read from the beginning of a document")
    arguments = parser.parse_args()
    count = arguments.documents * 3 // 4
    synthetic = Synthetic()
    originals = (
        list(islice(real(arguments.data, arguments.characters), count))
        if arguments.data
        else [synthetic(number) for number in range(count)]
    )
    texts = with_near_copies(originals)
    pairs = true_pairs(texts)
    twins = set(pairs.ravel().tolist())
    length = np.mean([len(text) for text in texts])
    source = "of real Chinese text" if arguments.data else "made of random characters"
    print(
        f"{len(texts):,} documents {source}, {length:.0f} characters each; {len(pairs):,} pairs of Jaccard ≥ {THRESHOLD}"
    )
    print(f"{'':20}{'documents/s':>12}{'CPU s':>9}{'dropped':>9}{'recall':>9}{'precision':>11}")
    figures: dict[str, tuple[float, float, float]] = {}
    for find, runs in ((mengya, 5), (datasketch, 3), (datasketch_unverified, 3), (datatrove, 1)):
        dropped, seconds = measured(find, texts, runs)
        recall = float(np.mean([i in dropped or j in dropped for i, j in pairs.tolist()]))
        precision = len(dropped & twins) / len(dropped)
        figures[find.__name__] = (seconds, recall, precision)
        print(
            f"{find.__name__:20}{len(texts) / seconds:12,.0f}{seconds:9.2f}{len(dropped):9,}{recall:9.4f}{precision:11.4f}",
            flush=True,
        )
    ours = figures["mengya"]
    faster = {
        f"vs_{name}": round(seconds / ours[0], 1) for name, (seconds, _, _) in figures.items() if name != "mengya"
    }
    quality = {
        f"{measure}{'' if name == 'mengya' else f'_{name}'}": round(value, 4)
        for name, (_, recall, precision) in figures.items()
        for measure, value in (("recall", recall), ("precision", precision))
    }
    print(json.dumps({**faster, **quality, "documents": len(texts)}))


if __name__ == "__main__":
    main()
