"""Token shards on disk, and the reader of them; `data.shard_writer` writes them.

    NAME-SOURCE-00000.bin          tokens, raw little-endian uint16 (uint32 when the vocabulary needs it)
    NAME-SOURCE-00000.idx.npy      int64 (documents + 1): where each document begins, in tokens
    NAME-SOURCE-00000.doc.npy      int64 (documents, 2): source id within this shard, UTF-8 bytes of the text
    NAME-SOURCE-00000.json         written last of a shard: its input's hash, counts, source names, SHA-256 of the files
    NAME.index.json                written last of all: dtype, totals, the shards
    .NAME-SOURCE-00000.origins.zst where the documents came from (`data.origins`), for the eye alone

A document is stored as [<|endoftext|> t1 … tn <|endoftext|>], so that its inputs are doc[:-1] and its targets doc[1:].
A shard holds documents of one source, so that another source beside it changes nothing in it.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from mengya.data.origins import named, read_origin
from mengya.data.slices import FileReader, npy_start
from mengya.data.token_source import TokenSource
from mengya.errors import UserError
from mengya.files import read_json, sha256_of

FILES = ("bin", "idx.npy", "doc.npy")
_MEND = "run the shards stage again"
_INT64 = np.dtype("<i8")


class TokenShards(TokenSource):
    """All documents of all shards of one name: `shards[i]` is document i's stored tokens, read when asked for.

    `lengths_N` counts a document's stored tokens (both boundaries in), `bytes_N` its text's UTF-8 bytes, `source_ids_N`
    points into `source_names`. A missing or truncated shard is a UserError that names the file.
    """

    def __init__(self, directory: Path, name: str = "train") -> None:
        self._directory = Path(directory)
        index_file = self._directory / f"{name}.index.json"
        if not index_file.is_file():
            raise UserError("no such index of token shards", where=index_file, mend=_MEND)
        self.index: dict[str, Any] = read_json(index_file)
        self.vocab_size: int = self.index["vocab_size"]
        self.source_names: list[str] = list(self.index["sources"])
        self._dtype = np.dtype(self.index["dtype"]).newbyteorder("<")
        self._shards: list[dict[str, Any]] = self.index["shards"]
        self._first = [0, *accumulate(shard["documents"] for shard in self._shards)]
        files: list[Path] = []
        self._index_start: list[int] = []
        self._facts_start: list[int] = []
        for shard in self._shards:
            own = [self._directory / f"{shard['name']}.{suffix}" for suffix in FILES]
            for file in own:
                if not file.is_file():
                    raise UserError("this part of the token shards is missing", where=file, mend=_MEND)
            size, expected = own[0].stat().st_size, shard["tokens"] * self._dtype.itemsize
            if size != expected:
                raise UserError(f"{size} bytes where the index says {expected}", where=own[0], mend=_MEND)
            self._index_start.append(npy_start(own[1], (shard["documents"] + 1,), _MEND))
            self._facts_start.append(npy_start(own[2], (shard["documents"], 2), _MEND))
            files += own
        self._reader = FileReader(files, _MEND)

    def __len__(self) -> int:
        return self._first[-1]

    def _locate(self, document: int) -> tuple[int, int]:
        """(shard, number within it)."""
        shard = bisect_right(self._first, document) - 1
        return shard, document - self._first[shard]

    def _offsets(self, shard: int, first: int, stop: int) -> np.ndarray:
        return self._reader.numbers(3 * shard + 1, _INT64, self._index_start[shard], first, stop)

    def _facts(self, shard: int) -> np.ndarray:
        """(documents, 2): source id within the shard, bytes."""
        numbers = self._reader.numbers(
            3 * shard + 2, _INT64, self._facts_start[shard], 0, 2 * self._shards[shard]["documents"]
        )
        return numbers.reshape(-1, 2)

    def lengths(self, first: int, stop: int) -> np.ndarray:
        found = []
        while first < stop:
            shard, own = self._locate(first)
            count = min(stop - first, self._shards[shard]["documents"] - own)
            found.append(np.diff(self._offsets(shard, own, own + count + 1)))
            first += count
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def stored(self, document: int, start: int, length: int) -> np.ndarray:
        shard, own = self._locate(document)
        begin, end = self._offsets(shard, own, own + 2).tolist()
        begin += start
        return self._reader.numbers(3 * shard, self._dtype, 0, begin, min(begin + length, end))

    def _source_ids(self, shard: int) -> np.ndarray:
        """The sources of a shard's documents, as they are numbered over all shards."""
        global_ids = [self.source_names.index(source) for source in self._shards[shard]["sources"]]
        return np.array(global_ids)[self._facts(shard)[:, 0]]

    def runs(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for number, shard in enumerate(self._shards):
            if len(shard["sources"]) == 1:
                (source,) = shard["sources"]
                own = [(self.source_names.index(source), shard["documents"])]
            else:  # shards of format 1 hold several sources
                ids = self._source_ids(number)
                starts = np.flatnonzero(np.diff(ids, prepend=-1))
                counts = np.diff(starts, append=len(ids))
                own = list(zip(ids[starts].tolist(), counts.tolist(), strict=True))
            for source_id, count in own:
                if found and found[-1][0] == source_id:
                    found[-1] = (source_id, found[-1][1] + count)
                else:
                    found.append((source_id, count))
        return found

    def tokens_by_source(self) -> dict[str, int]:
        totals = dict.fromkeys(self.source_names, 0)
        for number, shard in enumerate(self._shards):
            if len(shard["sources"]) == 1:
                totals[next(iter(shard["sources"]))] += shard["tokens"]
            else:
                lengths = self.lengths(self._first[number], self._first[number + 1])
                counts = np.bincount(self._source_ids(number), lengths, len(self.source_names))
                for name, tokens in zip(self.source_names, counts, strict=True):
                    totals[name] += int(tokens)
        return totals

    def origin_of(self, index: int) -> str:
        shard, own = self._locate(index)
        sources = list(self._shards[shard]["sources"])
        source = sources[0] if len(sources) == 1 else self.source_names[self._source_ids(shard)[own]]
        return named(source, read_origin(self._directory, self._shards[shard]["name"], own), index)

    @cached_property
    def bytes_N(self) -> np.ndarray:
        return np.concatenate([self._facts(shard)[:, 1] for shard in range(len(self._shards))])

    @property
    def num_tokens(self) -> int:
        return sum(shard["tokens"] for shard in self._shards)

    @property
    def fingerprint(self) -> str:
        return sha256_of([shard["key"] for shard in self._shards])
