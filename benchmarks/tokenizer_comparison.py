"""Our tokenizers of several sizes beside others', on held-out real text by kind: table, JSON and plot.

    python benchmarks/tokenizer_comparison.py --data DIR --others DIR … --out DIR [--sizes 6400,16000,32000]

DIR of --data holds *.jsonl.zst files of {"text"}; each of --others is what `mengya tokenizer import` takes. A fiftieth of
the documents, by hash, is held out; ours are trained on a sample of the rest, each in a process of its own, so that peak
memory is its own. Kinds are cut from the held-out documents: code from fenced blocks, English and digits line by line.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mengya.corpus.sources import Rejects, read_rows
from mengya.files import read_json, write_json, write_jsonl
from mengya.tokenizer.compare import compare, plot_comparison, print_comparison
from mengya.tokenizer.convert import import_tokenizer
from mengya.tokenizer.encode import load_tokenizer

CLASSICAL = ("poetry", "fiction_classic")
MODERN = ("web_news_inews", "tech_articles", "life_general", "medical_modern", "encyclopedia_misc", "classics_modern")
CHARACTERS_A_KIND = 200_000
LONGEST = 3_000
TEXTS_A_FILE = 4_000
_FENCED = re.compile(r"```[^\n]*\n(.+?)```", re.DOTALL)


def held_out(text: str) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 50 == 0


def share(line: str, test: str) -> float:
    return len(re.findall(test, line)) / max(1, len(line))


def pieces(name: str, text: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of what a held-out document gives."""
    yield from (("code", block[:LONGEST]) for block in _FENCED.findall(text) if share(block, r"[\x00-\x7f]") > 0.9)
    plain = _FENCED.sub("", text)
    for line in plain.split("\n"):
        if len(line) > 80 and share(line, r"[A-Za-z ,.']") > 0.9:
            yield "english", line[:LONGEST]
        elif len(line) >= 8 and share(line, r"\d") > 0.3:
            yield "digits", line[:LONGEST]
    if name in CLASSICAL:
        yield "classical", plain[:LONGEST]
    elif name in MODERN:
        yield "chinese", plain[:LONGEST]


def split(data: Path, out: Path) -> dict[str, list[str]]:
    """The kinds' texts; what may be trained on goes to out/train/*.jsonl."""
    kinds: dict[str, list[str]] = {kind: [] for kind in ("chinese", "english", "code", "digits", "classical")}
    for file in sorted(data.glob("*.jsonl.zst")):
        name = file.name.split(".")[0]
        texts = [row["text"] for _, row in read_rows(file, Rejects())]
        write_jsonl(out / "train" / f"{name}.jsonl", ({"text": text} for text in texts if not held_out(text)))
        for text in filter(held_out, texts[: TEXTS_A_FILE * 50]):
            for kind, piece in pieces(name, text):
                if piece.strip() and sum(map(len, kinds[kind])) < CHARACTERS_A_KIND:
                    kinds[kind].append(piece)
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--others", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", default="6400,16000,32000")
    parser.add_argument("--max-characters", default="6000000")
    parser.add_argument("--model", default="0.1b")
    options = parser.parse_args()
    texts_file = options.out / "texts.json"
    if not texts_file.is_file():
        write_json(texts_file, split(options.data, options.out))
    tokenizers = {}
    for size in options.sizes.split(","):
        directory = options.out / f"ours-{size}"
        if not (directory / "training.json").is_file():
            command = ["mengya", "tokenizer", "train", options.out / "train", "--out", directory, "--vocab-size", size]
            command += ["--max-characters", options.max_characters]
            subprocess.run([sys.executable, "-m", *map(str, command)], check=True)
        tokenizers[directory.name] = (directory, load_tokenizer(directory))
    for source in options.others:
        tokenizers[source.name] = (source, import_tokenizer(source, options.out / source.name))
    result = compare(tokenizers, read_json(texts_file), options.model)
    print_comparison(result)
    write_json(options.out / "comparison.json", result)
    plot_comparison(result, options.out / "comparison.png")


if __name__ == "__main__":
    main()
