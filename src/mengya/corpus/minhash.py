"""Signatures of texts: exact key, keys of MinHash bands, length, number of shingles; in memory, or a folder a part.

MinHash-LSH (Broder 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.3–3.4): 20 bands of 6 rows.
rensa takes the permutations' minima over one flat array of hashes; bands, files and everything else are numpy.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rensa

from mengya.corpus.shingles import (
    NGRAM,
    Hashes,
    Offsets,
    batches,
    canonical_codes,
    count_shingles,
    exact_keys,
    padded_shingles,
)
from mengya.errors import UserError
from mengya.files import atomic_directory, read_json, write_json

NUM_BANDS, NUM_ROWS = 20, 6
_ROW = struct.Struct(f"<{NUM_BANDS * NUM_ROWS}I")
_SEED = 1
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1 << 14  # texts whose band keys are turned around at a time
SETTINGS = {"format": 2, "ngram": NGRAM, "bands": NUM_BANDS, "rows": NUM_ROWS, "seed": _SEED}

Counts = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Signatures:
    """Of n texts: exact keys uint64 [n, 2], band keys [20, n], canonical lengths [n], numbers of distinct 5-grams [n].

    The numbers are those of `count_shingles`. Texts that share a key of any band are candidates. A text of fewer than 5
    characters has no 5-gram; its band keys are 0, and it is a candidate of nothing.
    """

    exact: Hashes
    bands: Hashes
    lengths: Counts
    num_shingles: Counts


def _band_keys(hashes: Hashes, offsets: Offsets, seed: int) -> Hashes:
    """[num_texts, NUM_BANDS], from the shingles of texts end to end, in any order and number."""
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, offsets.astype(np.uint64), NUM_BANDS * NUM_ROWS, seed
    )
    # struct packs lists of integers twice as fast as numpy reads them.
    rows = b"".join(starmap(_ROW.pack, matrix.to_rows()))
    minima = np.frombuffer(rows, dtype="<u4").reshape(-1, NUM_BANDS, NUM_ROWS)
    keys = np.zeros((len(offsets) - 1, NUM_BANDS), dtype=np.uint64)
    for row in range(NUM_ROWS):
        keys += minima[:, :, row]
        keys += np.uint64(1)
        keys *= _MULTIPLIER
        keys ^= keys >> np.uint64(31)
    return keys


def signatures(texts: Iterable[str], seed: int = _SEED) -> Iterator[Signatures]:
    """Signatures of `texts` in order, a batch of at most 4,096 at a time. They do not depend on the batch."""
    for batch in batches(texts):
        codes, borders = canonical_codes(batch)
        hashes = padded_shingles(codes, borders)
        num_shingles = count_shingles(hashes, borders)
        keys = _band_keys(hashes, borders, seed)
        keys[num_shingles == 0] = 0
        yield Signatures(
            np.frombuffer(exact_keys(batch, codes, borders), dtype="<u8").reshape(-1, 2),
            keys.T,
            np.diff(borders).astype(np.uint32),
            num_shingles,
        )


def signatures_in_memory(texts: Iterable[str], seed: int = _SEED) -> Signatures:
    """`signatures` of all texts at once: 184 bytes a text."""
    found = list(signatures(texts, seed)) or [
        Signatures(
            np.zeros((0, 2), np.uint64),
            np.zeros((NUM_BANDS, 0), np.uint64),
            np.zeros(0, np.uint32),
            np.zeros(0, np.uint32),
        )
    ]
    return Signatures(
        np.concatenate([batch.exact for batch in found]),
        np.concatenate([batch.bands for batch in found], axis=1),
        np.concatenate([batch.lengths for batch in found]),
        np.concatenate([batch.num_shingles for batch in found]),
    )


def band_keys(texts: Iterable[str], seed: int = _SEED) -> Hashes:
    """[num_texts, NUM_BANDS] hashes of MinHash bands: texts that share a key in any column are candidates."""
    return signatures_in_memory(texts, seed).bands.T


def signature_path(stem: Path) -> Path:
    """The folder of the signatures of the part that is called `stem`."""
    return stem.with_name(f"{stem.name}.sig")


def write_signatures(texts: Iterable[str], stem: Path) -> int:
    """The number of a part's documents, whose signatures are written to the folder STEM.sig, whole or not at all.

    184 bytes a document in exact.npy, bands.npy, lengths.npy, num_shingles.npy; signatures.json says with which
    settings. Memory does not grow with the band keys: they pass through a file. rensa uses as many threads as
    RAYON_NUM_THREADS allows: set it to 1 where parts are worked on side by side.
    """
    small: list[tuple[Hashes, Counts, Counts]] = []
    with atomic_directory(signature_path(stem)) as directory:
        by_document = directory / "bands.raw"
        with open(by_document, "wb") as file:
            for batch in signatures(texts):
                file.write(np.ascontiguousarray(batch.bands.T, dtype="<u8").tobytes())
                small.append((batch.exact, batch.lengths, batch.num_shingles))
        count = sum(len(exact) for exact, _, _ in small)
        columns = [np.concatenate(column) for column in zip(*small, strict=True)] or [
            np.zeros(shape, np.uint32) for shape in ((0, 2), 0, 0)
        ]
        for name, column in zip(("exact", "lengths", "num_shingles"), columns, strict=True):
            np.save(directory / f"{name}.npy", column)
        _turn_around(by_document, directory / "bands.npy", count)
        os.unlink(by_document)
        write_json(directory / "signatures.json", {**SETTINGS, "documents": count})
    return count


def _turn_around(by_document: Path, by_band: Path, count: int) -> None:
    """Band keys [count, NUM_BANDS] of a raw file as .npy of [NUM_BANDS, count], so that one band lies in one piece."""
    with open(by_document, "rb") as source, open(by_band, "wb") as file:
        header = {"descr": "<u8", "fortran_order": False, "shape": (NUM_BANDS, count)}
        np.lib.format.write_array_header_1_0(file, header)
        body = file.tell()
        for start in range(0, count, _BLOCK):
            block = np.frombuffer(source.read(_BLOCK * NUM_BANDS * 8), dtype="<u8").reshape(-1, NUM_BANDS)
            for band in range(NUM_BANDS):
                file.seek(body + 8 * (band * count + start))
                file.write(np.ascontiguousarray(block[:, band]).tobytes())


class SignatureFiles:
    """Signatures of the documents of many parts, numbered through the parts in order; read from disk when asked for.

    UserError where a part's signatures are absent or were made with other settings.
    """

    def __init__(self, stems: Sequence[Path]) -> None:
        self._paths = [signature_path(stem) for stem in stems]
        self.counts: list[int] = []
        for path in self._paths:
            if not (path / "signatures.json").is_file():
                raise UserError("these signatures were never written", where=str(path), mend="write them first")
            settings = read_json(path / "signatures.json")
            self.counts.append(settings.pop("documents"))
            if settings != SETTINGS:
                raise UserError(
                    "these signatures were made with other settings, by another version",
                    where=str(path),
                    mend="delete the folder, and they are made anew",
                )
        self.num_documents = sum(self.counts)

    def _joined(self, name: str) -> npt.NDArray[np.generic]:
        return np.concatenate([np.load(path / f"{name}.npy", mmap_mode="r") for path in self._paths])

    def exact(self) -> Hashes:
        return self._joined("exact").astype(np.uint64, copy=False)

    def bands(self, bands: range) -> Hashes:
        """[len(bands), num_documents] of successive bands."""
        parts = (np.load(path / "bands.npy", mmap_mode="r") for path in self._paths)
        joined = np.concatenate([part[bands.start : bands.stop] for part in parts], axis=1)
        return joined.astype(np.uint64, copy=False)

    def lengths(self) -> Counts:
        return self._joined("lengths").astype(np.uint32, copy=False)

    def num_shingles(self) -> Counts:
        return self._joined("num_shingles").astype(np.uint32, copy=False)
