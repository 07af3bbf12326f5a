"""Token shards on disk, and the memory-mapped reader of them; `data.shard_writer` writes them.

    NAME-SOURCE-00000.bin          tokens, raw little-endian uint16 (uint32 when the vocabulary needs it)
    NAME-SOURCE-00000.idx.npy      int64 (documents + 1): where each document begins, in tokens
    NAME-SOURCE-00000.doc.npy      int64 (documents, 2): source id within this shard, UTF-8 bytes of the text
    NAME-SOURCE-00000.json         written last of a shard: its input's hash, counts, source names, SHA-256 of the files
    NAME.index.json                written last of all: dtype, totals, the shards

A document is stored as [<|endoftext|> t1 … tn <|endoftext|>], so that its inputs are doc[:-1] and its targets doc[1:].
A shard holds documents of one source, so that another source beside it changes nothing in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mengya.errors import UserError
from mengya.files import read_json, sha256_of

FILES = ("bin", "idx.npy", "doc.npy")


class TokenShards:
    """All documents of all shards of one name, memory-mapped: `shards[i]` is document i's stored tokens.

    `lengths_N` counts a document's stored tokens (both boundaries in), `bytes_N` its text's UTF-8 bytes, `source_ids_N`
    points into `source_names`. A missing or truncated shard is a UserError that names the file.
    """

    def __init__(self, directory: Path, name: str = "train") -> None:
        directory = Path(directory)
        index_file = directory / f"{name}.index.json"
        mend = "run the shards stage again"
        if not index_file.is_file():
            raise UserError("no such index of token shards", where=index_file, mend=mend)
        self.index: dict[str, Any] = read_json(index_file)
        self.vocab_size: int = self.index["vocab_size"]
        self.source_names: list[str] = list(self.index["sources"])
        global_id = {source: index for index, source in enumerate(self.source_names)}
        dtype = np.dtype(self.index["dtype"]).newbyteorder("<")
        self._tokens: list[np.ndarray] = []
        offsets: list[np.ndarray] = []
        shard_of: list[np.ndarray] = []
        facts: list[np.ndarray] = []
        for number, shard in enumerate(self.index["shards"]):
            files = {suffix: directory / f"{shard['name']}.{suffix}" for suffix in FILES}
            for file in files.values():
                if not file.is_file():
                    raise UserError("this part of the token shards is missing", where=file, mend=mend)
            size, expected = files["bin"].stat().st_size, shard["tokens"] * dtype.itemsize
            if size != expected:
                raise UserError(f"{size} bytes where the index says {expected}", where=files["bin"], mend=mend)
            self._tokens.append(np.memmap(files["bin"], dtype=dtype, mode="r"))
            offsets.append(_load_npy(files["idx.npy"], (shard["documents"] + 1,), mend))
            shard_facts = _load_npy(files["doc.npy"], (shard["documents"], 2), mend).copy()
            global_ids = np.array([global_id[source] for source in shard["sources"]])
            shard_facts[:, 0] = global_ids[shard_facts[:, 0]]
            facts.append(shard_facts)
            shard_of.append(np.full(shard["documents"], number, dtype=np.int32))
        self._shard_of_N = np.concatenate(shard_of)
        self._start_N = np.concatenate([offset[:-1] for offset in offsets])
        self.lengths_N = np.concatenate([np.diff(offset) for offset in offsets])
        all_facts = np.concatenate(facts)
        self.source_ids_N, self.bytes_N = all_facts[:, 0], all_facts[:, 1]

    def __len__(self) -> int:
        return len(self.lengths_N)

    def __getitem__(self, document: int) -> np.ndarray:
        start = self._start_N[document]
        return self._tokens[self._shard_of_N[document]][start : start + self.lengths_N[document]]

    @property
    def num_tokens(self) -> int:
        return int(self.lengths_N.sum())

    # What the packed loader asks of its examples (data.packing.Examples).

    @property
    def num_inputs_N(self) -> np.ndarray:
        return self.lengths_N - 1

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a piece of a document: every token is learnt but the first."""
        begin = self._start_N[document] + start
        tokens = self._tokens[self._shard_of_N[document]][begin : begin + length + 1].astype(np.int64)
        return tokens[:-1], tokens[1:]

    @property
    def fingerprint(self) -> str:
        return sha256_of([shard["key"] for shard in self.index["shards"]])


def _load_npy(file: Path, shape: tuple[int, ...], mend: str) -> np.ndarray:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"damaged ({error})", where=file, mend=mend) from error
    if array.shape != shape:
        raise UserError(f"shape {array.shape} where the index says {shape}", where=file, mend=mend)
    return array
