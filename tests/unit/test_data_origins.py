"""Every training example can be named: source, file and line."""

import numpy as np
import pytest
from small_tokenizer import TEXTS, small_tokenizer

from mengya.corpus.records import Conversation, Document, Message
from mengya.data import origins
from mengya.data.conversations import TokenExamples, render_conversations
from mengya.data.loader import PackedLoader
from mengya.data.mixture import Mixture
from mengya.data.shard_writer import write_shards
from mengya.data.shards import TokenShards
from mengya.data.token_files import index_token_files, open_tokens
from mengya.files import sha256

OPTIONS = {"row_length": 64, "rows_per_step": 2, "micro_batch_rows": 2, "seed": 3, "pad_id": 0}


def documents(file="数据/河 边.jsonl.zst"):
    return [Document(text, "甲" if n < 30 else "乙", f"{file}:{n + 1}") for n, text in enumerate(TEXTS)]


def write(directory, texts, **options):
    write_shards(texts, small_tokenizer(), directory, shard_tokens=300, **options)
    return TokenShards(directory)


@pytest.mark.parametrize("frame", [1, 4, 1024])
def test_every_document_of_every_shard_is_named_by_its_source_file_and_line(tmp_path, monkeypatch, frame):
    monkeypatch.setattr(origins, "_FRAME", frame)
    shards = write(tmp_path, documents())
    assert len(shards.index["shards"]) > 3
    by_text = {document.text: f"{document.source} {document.origin}" for document in documents()}
    for index in range(len(shards)):
        assert shards.origin_of(index) == by_text[small_tokenizer().decode(shards[index][1:-1])]


def test_a_file_name_of_broken_bytes_or_with_a_new_line_is_kept(tmp_path):
    names = [b"\xff\xfe.txt:1".decode("utf-8", "surrogateescape"), "two\nlines.txt:2", "", '"quoted".txt:4']
    shards = write(tmp_path, [Document(text, "甲", name) for text, name in zip(TEXTS, names, strict=False)])
    assert [shards.origin_of(n) for n in range(4)] == [
        f"甲 {names[0]}",
        f"甲 {names[1]}",
        "甲, document 2",
        f"甲 {names[3]}",
    ]


def test_documents_without_an_origin_and_shards_of_before_are_named_by_number(tmp_path):
    shards = write(tmp_path / "none", [Document(text, "甲") for text in TEXTS])
    assert shards.origin_of(57) == "甲, document 57"
    write(tmp_path / "old", documents())
    for file in (tmp_path / "old").glob(".*"):
        file.unlink()
    assert TokenShards(tmp_path / "old").origin_of(3) == "甲, document 3"


def test_origins_follow_a_file_that_moved_and_change_no_hash(tmp_path):
    first = write(tmp_path / "first", documents())
    before = sha256(tmp_path / "first")
    moved = write(tmp_path / "moved", documents("elsewhere.jsonl"), reuse=[tmp_path / "first"])
    assert moved.origin_of(4) == "甲 elsewhere.jsonl:5"
    again = write(tmp_path / "first", documents("elsewhere.jsonl"))
    assert again.origin_of(4) == "甲 elsewhere.jsonl:5"
    assert sha256(tmp_path / "first") == before == sha256(tmp_path / "moved")
    assert first.fingerprint == moved.fingerprint
    write(tmp_path / "first", documents()[:5])
    assert len(list((tmp_path / "first").glob(".train-*"))) == 1, "no origins of shards that are gone"


def test_token_files_and_mixtures_name_their_documents_too(tmp_path):
    file = tmp_path / "others.bin"
    np.array([8, 9, 7, 10, 11, 12, 7], "<u2").tofile(file)
    index_token_files([file], tmp_path, end_id=7, vocab_size=370)
    write(tmp_path, documents())
    both = open_tokens(tmp_path)
    assert both.origin_of(0) == f"token_files {file}, token 0"
    assert both.origin_of(1) == f"token_files {file}, token 3"
    assert both.origin_of(2 + 5) == "甲 数据/河 边.jsonl.zst:6"
    mixture = Mixture(both, {"token_files": 2.0, "甲": 3.0, "乙": 1.0})
    assert mixture.origin_of(2 * len(both) + 7) == both.origin_of(7)
    assert PackedLoader(mixture, **OPTIONS).origin_of(len(both) + 1) == both.origin_of(1)


def test_conversations_are_named_also_behind_one_that_was_dropped():
    def talk(text, line):
        return Conversation((Message("user", text), Message("assistant", "好")), "问答", origin=f"a.json:{line}")

    examples, counts = render_conversations(
        [talk("苹果", 1), talk("小明看见" * 99, 2), talk("白菜", 3)], small_tokenizer(), max_tokens=40
    )
    assert counts["dropped"] == 1
    assert [examples.origin_of(n) for n in range(2)] == ["问答 a.json:1", "问答 a.json:3"]
    assert TokenExamples([([1, 2], [True, True])]).origin_of(0) == "conversations, example 0"
