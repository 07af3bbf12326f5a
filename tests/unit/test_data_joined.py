"""Documents beside conversations: what is chosen, and that a batch cannot tell where an example came from."""

from __future__ import annotations

import numpy as np
import pytest
from small_tokenizer import TEXTS, small_tokenizer

from mengya.corpus.records import Document
from mengya.data.conversations import TokenExamples
from mengya.data.joined import Chosen, Joined
from mengya.data.loader import PackedLoader
from mengya.data.packing import IGNORE
from mengya.data.shard_writer import write_shards
from mengya.data.shards import TokenShards


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    rows = [Document(f"{text}{n}", "a", origin=f"a.jsonl:{n + 1}") for n, text in enumerate(TEXTS * 3)]
    write_shards(rows, small_tokenizer(), directory, name="train", shard_tokens=64)
    return TokenShards(directory, "train")


def answers():
    """Three examples of which only the last token is learnt; ids from 900 on tell them from documents."""
    return TokenExamples((list(range(900, 900 + n)), [False] * (n - 1) + [True]) for n in (3, 5, 4))


def test_as_many_documents_are_chosen_as_hold_the_tokens_and_others_with_another_seed(documents):
    whole = int((documents.lengths_N - 1).sum())
    for wanted in (1, whole // 3, whole // 2):
        chosen = Chosen.at_random(documents, wanted, seed=1)
        lengths = chosen.num_inputs_N
        assert lengths.sum() >= wanted > lengths.sum() - lengths[-1]
    assert len(Chosen.at_random(documents, 2 * whole, seed=1).num_inputs_N) == len(documents)
    assert len(Chosen.at_random(documents, 0, seed=1).num_inputs_N) == 0
    prints = [Chosen.at_random(documents, whole / 2, seed).fingerprint for seed in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


def test_a_chosen_document_is_the_document(documents):
    chosen = Chosen(documents, np.array([4, 0]))
    for index, number in enumerate((4, 0)):
        ids, targets = chosen.piece(index, 1, 3)
        expected_ids, expected_targets = documents.piece(number, 1, 3)
        assert ids.tolist() == expected_ids.tolist()
        assert targets.tolist() == expected_targets.tolist()
        assert chosen.origin_of(index) == documents.origin_of(number) == f"a a.jsonl:{number + 1}"


def test_every_example_of_every_part_is_trained_on_once_an_epoch_and_named_by_its_part(documents):
    parts = [answers(), Chosen(documents, np.arange(5, 9)), Chosen(documents, np.array([], dtype=np.int64)), answers()]
    joined = Joined(parts)
    assert joined.num_inputs_N.tolist() == [n for part in parts for n in part.num_inputs_N]
    loader = PackedLoader(joined, row_length=16, rows_per_step=1, micro_batch_rows=1, seed=1, pad_id=0)
    learnt = {}
    for _ in range(loader.num_rows()):
        for batch in next(loader):
            for document, target in zip(batch.documents_BT.flatten(), batch.targets_BT.flatten(), strict=True):
                if target != IGNORE:
                    learnt.setdefault(int(document), []).append(int(target))
    assert {index: learnt[index] for index in (0, 1, 2, 7, 8, 9)} == {
        0: [902],
        1: [904],
        2: [903],
        7: [902],
        8: [904],
        9: [903],
    }
    for index, number in enumerate(range(5, 9), start=3):
        assert sorted(learnt[index]) == sorted(documents[number].tolist()[1:])
        assert joined.origin_of(index) == f"a a.jsonl:{number + 1}"
    assert joined.origin_of(9) == "conversations, example 2"
    assert joined.fingerprint != Joined([parts[1], parts[0], parts[2], parts[3]]).fingerprint
