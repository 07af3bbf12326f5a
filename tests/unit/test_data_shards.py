import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizer import TEXTS, small_tokenizer

from mengya.corpus.records import Document
from mengya.data import shard_groups, slices
from mengya.data import shard_writer as shards
from mengya.data.shard_writer import write_shards
from mengya.data.shards import TokenShards
from mengya.errors import UserError
from mengya.files import read_json, write_json

DOCUMENTS = [Document(text, source) for n, source in enumerate(("河边", "集市", "山上")) for text in TEXTS[n::3]]


def files(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    st.lists(st.tuples(st.text(max_size=40), st.sampled_from("甲乙丙")), min_size=1, max_size=30), st.integers(1, 200)
)
def test_every_document_comes_back_between_two_boundaries_whatever_the_shard_size(tmp_path, texts, shard_tokens):
    tokenizer = small_tokenizer()
    documents = [Document(text, source) for text, source in texts]
    index = write_shards(iter(documents), tokenizer, tmp_path, shard_tokens=shard_tokens)
    read = TokenShards(tmp_path)
    assert len(read) == index["documents"] == len(documents)
    for number, document in enumerate(documents):
        assert read[number].tolist() == [0, *tokenizer.encode(document.text), 0]
        assert read.source_names[read.source_ids_N[number]] == document.source
        assert read.bytes_N[number] == len(document.text.encode())
    assert read.num_tokens == index["tokens"] == read.lengths_N.sum()


def test_more_documents_than_the_probe_are_all_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_groups, "_PROBE_DOCUMENTS", 7)
    assert write_shards(DOCUMENTS, small_tokenizer(), tmp_path)["documents"] == len(DOCUMENTS)


def test_all_of_several_shards_are_read(tmp_path):
    index = write_shards(DOCUMENTS, small_tokenizer(), tmp_path, shard_tokens=300)
    assert len(index["shards"]) > 3
    read = TokenShards(tmp_path)
    assert sorted(small_tokenizer().decode(read[i][1:-1]) for i in range(len(read))) == sorted(TEXTS)


def test_the_index_counts_documents_tokens_and_bytes_of_each_source(tmp_path):
    index = write_shards(DOCUMENTS, small_tokenizer(), tmp_path, shard_tokens=300)
    for source in ("河边", "集市", "山上"):
        own = [document.text for document in DOCUMENTS if document.source == source]
        assert index["sources"][source] == {
            "documents": len(own),
            "tokens": sum(len(small_tokenizer().encode(text)) + 2 for text in own),
            "bytes": sum(len(text.encode()) for text in own),
        }


@pytest.mark.parametrize("links", [True, False])
def test_a_new_source_is_tokenised_alone_and_the_rest_taken_from_earlier_work(tmp_path, monkeypatch, links):
    write_shards(DOCUMENTS, small_tokenizer(), tmp_path / "old", shard_tokens=300)
    first = sum(document.source == "河边" for document in DOCUMENTS)
    new = [*DOCUMENTS[:first], Document("新来的苹果", "新"), Document("又一个", "新"), *DOCUMENTS[first:]]
    written = []
    write = shards._write_shard
    monkeypatch.setattr(shards, "_write_shard", lambda job: (written.append(job.stem.name), write(job))[1])
    if not links:
        monkeypatch.setattr(shards.os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    (tmp_path / "old" / "train-河边-00001.bin").write_bytes(b"damaged")
    write_shards(new, small_tokenizer(), tmp_path / "new", shard_tokens=300, reuse=[tmp_path / "old"])
    assert written == ["train-河边-00001", "train-新-00000"]
    write_shards(new, small_tokenizer(), tmp_path / "fresh", shard_tokens=300)
    assert files(tmp_path / "new") == files(tmp_path / "fresh")


def test_sources_whose_names_make_one_file_name_keep_apart(tmp_path):
    documents = [Document("苹果", "a/b"), Document("白菜", "a b"), Document("小船", "")]
    write_shards(documents, small_tokenizer(), tmp_path)
    read = TokenShards(tmp_path)
    found = {read.source_names[read.source_ids_N[i]]: small_tokenizer().decode(read[i][1:-1]) for i in range(3)}
    assert found == {document.source: document.text for document in documents}


def test_the_number_of_workers_does_not_change_a_byte(tmp_path):
    write_shards(iter(DOCUMENTS), small_tokenizer(), tmp_path / "one", shard_tokens=300)
    write_shards(iter(DOCUMENTS), small_tokenizer(), tmp_path / "two", shard_tokens=300, num_workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_after_a_kill_only_unfinished_shards_are_redone_and_the_result_is_the_same(tmp_path, monkeypatch):
    whole = write_shards(DOCUMENTS, small_tokenizer(), tmp_path / "whole", shard_tokens=300)
    written = []
    write = shards._write_shard

    def write_two_then_die(job):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(job.stem.name)
        return write(job)

    monkeypatch.setattr(shards, "_write_shard", write_two_then_die)
    with pytest.raises(KeyboardInterrupt):
        write_shards(DOCUMENTS, small_tokenizer(), tmp_path / "killed", shard_tokens=300)
    with pytest.raises(UserError, match="no such index"):
        TokenShards(tmp_path / "killed")
    (tmp_path / "killed" / ".train-集市-00000.bin.7.partial").write_bytes(b"half")

    monkeypatch.setattr(shards, "_write_shard", lambda job: (written.append(job.stem.name), write(job))[1])
    assert write_shards(DOCUMENTS, small_tokenizer(), tmp_path / "killed", shard_tokens=300) == whole
    assert written == [shard["name"] for shard in whole["shards"]]
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_while_shards_are_rewritten_no_reader_finds_the_old_index(tmp_path):
    write_shards(DOCUMENTS, small_tokenizer(), tmp_path)

    def dying():
        yield from DOCUMENTS[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(dying(), small_tokenizer(), tmp_path)
    with pytest.raises(UserError, match="no such index"):
        TokenShards(tmp_path)


def test_other_documents_replace_the_shards_and_leave_none_of_the_old(tmp_path):
    write_shards(DOCUMENTS, small_tokenizer(), tmp_path / "shards", shard_tokens=300)
    write_shards(DOCUMENTS, small_tokenizer(), tmp_path / "shards", name="validation")
    write_shards(DOCUMENTS[:9], small_tokenizer(), tmp_path / "shards", shard_tokens=300)
    write_shards(DOCUMENTS[:9], small_tokenizer(), tmp_path / "fresh", shard_tokens=300)
    write_shards(DOCUMENTS, small_tokenizer(), tmp_path / "fresh", name="validation")
    assert files(tmp_path / "shards") == files(tmp_path / "fresh")
    assert len(TokenShards(tmp_path / "shards", "validation")) == len(DOCUMENTS)


def test_a_vocabulary_beyond_uint16_is_stored_wider(tmp_path, monkeypatch):
    monkeypatch.setitem(small_tokenizer().__dict__, "vocab_size", 65_537)
    assert write_shards(DOCUMENTS, small_tokenizer(), tmp_path)["dtype"] == "uint32"
    assert small_tokenizer().decode(TokenShards(tmp_path)[0][1:-1]) == TEXTS[0]


@pytest.mark.parametrize("suffix", ["bin", "idx.npy", "doc.npy"])
@pytest.mark.parametrize("damage", ["absent", "cut"])
def test_a_missing_or_truncated_shard_is_named_with_its_mend(tmp_path, suffix, damage):
    write_shards(DOCUMENTS, small_tokenizer(), tmp_path, shard_tokens=300)
    file = tmp_path / f"train-河边-00001.{suffix}"
    if damage == "absent":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match=f"train-河边-00001.{suffix}.*run the shards stage again"):
        TokenShards(tmp_path)
    write_shards(DOCUMENTS, small_tokenizer(), tmp_path, shard_tokens=300)
    assert len(TokenShards(tmp_path)) == len(DOCUMENTS)


def test_no_document_at_all_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no document"):
        write_shards([], small_tokenizer(), tmp_path)


def test_targets_of_a_piece_are_the_tokens_after_its_inputs(tmp_path):
    write_shards(DOCUMENTS, small_tokenizer(), tmp_path)
    read = TokenShards(tmp_path)
    inputs, targets = read.piece(4, 3, 5)
    np.testing.assert_array_equal(inputs, read[4][3:8])
    np.testing.assert_array_equal(targets, read[4][4:9])


def test_few_files_are_open_at_once_and_none_when_the_shards_are_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "_MOST_OPEN", 3)
    write_shards(DOCUMENTS, small_tokenizer(), tmp_path, shard_tokens=300)

    def held():
        links = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        return sum(link.is_symlink() and str(tmp_path) in os.readlink(link) for link in links)

    read = TokenShards(tmp_path)
    assert len(read.index["shards"]) > 3
    for order in (range(len(read)), reversed(range(len(read)))):
        assert sorted(small_tokenizer().decode(read[i][1:-1]) for i in order) == sorted(TEXTS)
        assert 0 < held() <= 3
    del read
    assert held() == 0


def test_a_shard_that_is_cut_while_it_is_read_is_named_instead_of_killing_the_process(tmp_path):
    write_shards(DOCUMENTS, small_tokenizer(), tmp_path, shard_tokens=300)
    read = TokenShards(tmp_path)
    last = len(read) - 1
    read[last]
    os.truncate(tmp_path / f"{read.index['shards'][-1]['name']}.bin", 8)
    with pytest.raises(UserError, match=r"cut since it was opened.*run the shards stage again"):
        read[last]


def test_shards_of_several_sources_as_they_once_were_are_read(tmp_path):
    write_shards([Document(text, "甲") for text in TEXTS], small_tokenizer(), tmp_path)
    index = read_json(tmp_path / "train.index.json")
    facts = np.load(tmp_path / "train-甲-00000.doc.npy")
    facts[:, 0] = np.arange(len(facts)) // 7 % 2
    np.save(tmp_path / "train-甲-00000.doc.npy", facts)
    index["shards"][0]["sources"] = {"乙": 0, "甲": 0}
    index["sources"] = {"丙": 0, "乙": 0, "甲": 0}
    write_json(tmp_path / "train.index.json", index)
    read = TokenShards(tmp_path)
    assert read.source_ids_N.tolist() == (1 + facts[:, 0]).tolist()
    for source, name in enumerate(read.source_names):
        assert read.tokens_by_source()[name] == read.lengths_N[read.source_ids_N == source].sum()
    assert read.origin_of(8) == "甲, document 8"


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_slice_of_the_lengths_is_that_part_of_all(some_shards, first, stop):
    whole = np.asarray(some_shards.num_inputs_N)
    assert some_shards.num_inputs_N[first:stop].tolist() == whole[first:stop].tolist()


@given(st.integers(0, 2500))
def test_the_first_documents_within_a_number_of_tokens(some_shards, tokens):
    expected = sum(total <= tokens for total in np.cumsum(some_shards.lengths_N))
    assert some_shards.documents_within(tokens) == expected


@pytest.fixture(scope="module")
def some_shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    write_shards(DOCUMENTS, small_tokenizer(), directory, shard_tokens=300)
    return TokenShards(directory)
