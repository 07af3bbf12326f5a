"""`mengya tokenizer compare`: tokenizers measured on texts by kind, as a table, a plot and JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mengya.corpus.playground import Playground, generate_documents
from mengya.corpus.sources import Rejects, list_files, read_rows
from mengya.errors import UserError
from mengya.files import atomic_path, read_json
from mengya.model.presets import preset
from mengya.tokenizer.bulk import BulkEncoder
from mengya.tokenizer.encode import ChatTokenizer

_TEXTS_A_KIND = 2_000
_SLICE = 20_000
"""Characters of a text that are measured: one long book must not outweigh all else."""
_DIGITS_CHARACTERS = 20_000


def default_texts() -> dict[str, list[str]]:
    """{"chinese", "digits"} from the embedded world, for a comparison without any file."""
    planted = generate_documents(Playground(seed=0, num_people=40, num_characters=200_000))
    documents = [plant.document.text for plant in planted if plant.dirt is None]
    lines = [line for text in documents for line in text.split("\n") if line]

    def digits(line: str) -> float:
        return sum(character.isdigit() for character in line) / len(line)

    return {
        "chinese": documents[:_TEXTS_A_KIND],
        "digits": [line for line in lines if digits(line) > 0.3][: _DIGITS_CHARACTERS // 10],
    }


def read_texts(arguments: Sequence[str]) -> dict[str, list[str]]:
    """{kind: texts} of `KIND=FILE` arguments: lines of .txt, "text" of .jsonl and the like, other files whole."""
    found: dict[str, list[str]] = {}
    for argument in arguments:
        kind, equals, path = argument.partition("=")
        if not (kind and equals and path):
            raise UserError("not KIND=FILE", where=f"--text {argument}", mend="write for example chinese=news.jsonl")
        rejects = Rejects()
        texts: list[str] = []
        for file in list_files(path):
            rows = islice(read_rows(file, rejects), _TEXTS_A_KIND - len(texts))
            texts += [str(row["text"])[:_SLICE] for _, row in rows if row.get("text")]
        if not texts:
            raise UserError("no text in it", where=f"--text {argument}", mend='give rows with a "text", or plain text')
        found.setdefault(kind, []).extend(texts)
    return found


def partial_ids(tokenizer: ChatTokenizer) -> np.ndarray:
    """Which ids hold only a part of a character: byte fallback, or bytes that are no whole UTF-8; bool (V,)."""
    from tokenizers import pre_tokenizers

    # The byte of each character of a byte-level token: the printable Latin-1 ones are themselves, the others follow
    # from U+0100 on (Radford et al. 2019, GPT-2's bytes_to_unicode).
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    printable = [byte for byte in range(256) if chr(byte) in alphabet]
    others = [byte for byte in range(256) if byte not in set(printable)]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    byte_level = '"ByteLevel"' in tokenizer.backend.to_str()
    special = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()}
    found = np.zeros(tokenizer.vocab_size, dtype=bool)
    for token, index in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if token in special:
            continue
        if byte_level:
            raw = bytes(byte_of[character] for character in token)
            found[index] = not _is_utf8(raw)
        else:
            found[index] = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return found


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def measure_kind(
    tokenizer: ChatTokenizer, texts: Sequence[str], partial: np.ndarray, encoder: BulkEncoder
) -> dict[str, float]:
    """What `tokenizer` makes of `texts`; shares are of tokens, `round_trip` is of texts, speed is in bytes of UTF-8."""
    characters, size = sum(map(len, texts)), sum(len(text.encode()) for text in texts)
    began = time.perf_counter()
    ids, lengths = encoder.encode(texts)
    seconds = time.perf_counter() - began
    unknown = getattr(tokenizer.backend.model, "unk_token", None)
    unknown_id = None if unknown is None else tokenizer.backend.token_to_id(unknown)
    split = np.split(ids, np.cumsum(lengths)[:-1])
    same = sum(tokenizer.decode(own.tolist()) == text for own, text in zip(split, texts, strict=True))
    return {
        "texts": len(texts),
        "characters": characters,
        "tokens": len(ids),
        "characters_per_token": characters / max(1, len(ids)),
        "bytes_per_token": size / max(1, len(ids)),
        "unknown_share": float((ids == unknown_id).mean()) if unknown_id is not None else 0.0,
        "partial_share": float(partial[ids].mean()),
        "round_trip": same / len(texts),
        "megabytes_per_second": size / 1e6 / max(seconds, 1e-9),
    }


def compare(
    tokenizers: Mapping[str, tuple[Path, ChatTokenizer]], texts: Mapping[str, Sequence[str]], model: str
) -> Any:
    """{"model", "tokenizers": {name: {"vocab_size", "embedding_share", "training", "encoder", "kinds": {kind: …}}}}.

    `embedding_share` is the embeddings' part of the parameters of preset `model` with this vocabulary. `training` is
    what `mengya tokenizer train` left beside the tokenizer: characters, seconds, peak memory; absent elsewhere.
    """
    found: dict[str, Any] = {}
    for name, (directory, tokenizer) in tokenizers.items():
        config = preset(model, tokenizer.vocab_size)
        tables = 1 if config.tie_embeddings else 2
        encoder, partial = BulkEncoder(tokenizer.backend), partial_ids(tokenizer)
        encoder.check([text for own in texts.values() for text in own[:16]])
        record = directory / "training.json"
        found[name] = {
            "vocab_size": tokenizer.vocab_size,
            "embedding_share": tables * tokenizer.vocab_size * config.width / config.num_parameters,
            "training": read_json(record) if record.is_file() else None,
            "encoder": encoder.name,
            "kinds": {kind: measure_kind(tokenizer, own, partial, encoder) for kind, own in texts.items()},
        }
    return {"model": model, "tokenizers": found}


def print_comparison(result: Mapping[str, Any]) -> None:
    """One table: a row for each tokenizer and kind of text."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"embedding share: of the preset {result['model']}")
    columns = (
        "tokenizer",
        "vocabulary",
        "embedding",
        "text",
        "chars/token",
        "bytes/token",
        "unknown",
        "part of a char",
    )
    for column in (*columns, "round trip", "MB/s"):
        table.add_column(column, justify="left" if column in ("tokenizer", "text") else "right")
    for name, own in result["tokenizers"].items():
        for index, (kind, row) in enumerate(own["kinds"].items()):
            first = [name, f"{own['vocab_size']:,}", f"{own['embedding_share']:.1%}"] if index == 0 else ["", "", ""]
            rates = [f"{row['characters_per_token']:.3f}", f"{row['bytes_per_token']:.3f}"]
            shares = [f"{row[key]:.2%}" for key in ("unknown_share", "partial_share", "round_trip")]
            table.add_row(*first, kind, *rates, *shares, f"{row['megabytes_per_second']:.1f}")
        table.add_section()
    console = Console()
    console.print(table)
    for name, own in result["tokenizers"].items():
        done = own["training"]
        if done:
            console.print(
                f"{name}: trained on {done['characters']:,} characters in {done['seconds']:.0f} s "
                f"({done['characters'] / max(done['seconds'], 1e-9) / 1e6:.2f} M/s), "
                f"peak memory {done['peak_memory_bytes'] / 2**30:.2f} GiB"
            )
    encoders = [f"{name} by {own['encoder']}" for name, own in result["tokenizers"].items()]
    console.print(f"Encoded: {', '.join(encoders)}")


def plot_comparison(result: Mapping[str, Any], file: Path) -> None:
    """Characters per token as bars, grouped by kind of text; PNG or SVG by the file's name."""
    from matplotlib.figure import Figure

    names, kinds = list(result["tokenizers"]), _kinds(result["tokenizers"].values())
    figure = Figure(figsize=(1.6 + 1.7 * len(kinds), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        own = result["tokenizers"][name]
        heights = [own["kinds"][kind]["characters_per_token"] for kind in kinds]
        places = np.arange(len(kinds)) + (index - (len(names) - 1) / 2) * width
        axes.bar(places, heights, width, label=f"{name} ({own['vocab_size']:,})")
    axes.set_xticks(np.arange(len(kinds)), kinds)
    axes.set_ylabel("characters per token")
    axes.legend(fontsize="small")
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format=file.suffix.removeprefix("."), dpi=150)


def _kinds(tokenizers: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(kind for own in tokenizers for kind in own["kinds"]))
