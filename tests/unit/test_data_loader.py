import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizer import TEXTS, small_tokenizer

from mengya.corpus.records import Document
from mengya.data.conversations import TokenExamples
from mengya.data.loader import PackedLoader, one_pass
from mengya.data.packing import PADDING
from mengya.data.shard_writer import write_shards
from mengya.data.shards import TokenShards
from mengya.errors import UserError

ROW = 24


def examples(count=40):
    lengths = np.random.default_rng(0).integers(2, 60, size=count)
    return TokenExamples((list(range(9, 9 + n)), [True] * n) for n in lengths)


def loader(data=None, **changes):
    settings = {"row_length": ROW, "rows_per_step": 6, "micro_batch_rows": 2, "seed": 3, "pad_id": 0, **changes}
    return PackedLoader(data if data is not None else examples(), **settings)


def rows(step):
    """A step's rows, each as one hashable value."""
    return [
        (tuple(ids.tolist()), tuple(targets.tolist()), tuple(documents.tolist()))
        for batch in step
        for ids, targets, documents in zip(batch.ids_BT, batch.targets_BT, batch.documents_BT, strict=True)
    ]


@settings(max_examples=30)
@given(st.integers(0, 25), st.sampled_from([1, 4, 6]))
def test_a_loader_restored_at_any_step_goes_on_as_if_never_stopped(steps, rows_per_step):
    uninterrupted = loader(rows_per_step=rows_per_step)
    expected = [rows(step) for step in itertools.islice(uninterrupted, steps + 8)][steps:]
    stopped = loader(rows_per_step=rows_per_step)
    for _ in range(steps):
        next(stopped)
    restored = loader(rows_per_step=rows_per_step)
    restored.load_state_dict(stopped.state_dict())
    assert [rows(step) for step in itertools.islice(restored, 8)] == expected


def test_restoring_seeks_and_reads_no_earlier_row(monkeypatch):
    data = examples()
    stopped = loader(data)
    for _ in range(20):
        next(stopped)
    restored = loader(data)
    restored.load_state_dict(stopped.state_dict())
    read = []
    piece = TokenExamples.piece
    monkeypatch.setattr(TokenExamples, "piece", lambda self, *place: (read.append(place), piece(self, *place))[1])
    step = next(restored)
    pieces = sum(len(set(documents.tolist()) - {PADDING}) for batch in step for documents in batch.documents_BT)
    assert len(read) == pieces


@given(st.integers(0, 3), st.sampled_from([(1, 6), (2, 1), (3, 2), (6, 1)]))
def test_the_union_of_the_ranks_is_the_single_ranks_step(skipped, ranks):
    world, micro_batch_rows = ranks
    single = [Counter(rows(step)) for step in itertools.islice(loader(), skipped + 3)]
    many = [loader(rank=rank, world=world, micro_batch_rows=micro_batch_rows) for rank in range(world)]
    for expected in single:
        parts = [next(rank) for rank in many]
        assert len({len(part) for part in parts}) == 1, "ranks must run the same number of micro-batches"
        assert sum((Counter(rows(part)) for part in parts), Counter()) == expected


def test_a_state_saved_on_one_rank_goes_on_on_three_with_other_micro_batches():
    single = loader()
    for _ in range(5):
        next(single)
    many = [loader(rank=rank, world=3, micro_batch_rows=1) for rank in range(3)]
    for rank in many:
        rank.load_state_dict(single.state_dict())
    assert sum((Counter(rows(next(rank))) for rank in many), Counter()) == Counter(rows(next(single)))


def test_each_epoch_gives_every_token_once_and_in_another_order():
    data = examples()
    each = loader(data, rows_per_step=1, micro_batch_rows=1)
    epochs = []
    for epoch in range(3):
        epochs.append([rows(next(each))[0] for _ in range(each.plan(epoch).num_rows)])
        assert (each.epoch, each.row) == (epoch + 1, 0)
        tokens = Counter()
        for _, _, documents in epochs[-1]:
            tokens.update(d for d in documents if d != PADDING)
        assert tokens == {d: n for d, n in enumerate(data.num_inputs_N.tolist()) if n}
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_steps_run_across_epochs_full_and_without_loss():
    data = examples(9)
    several = loader(data, rows_per_step=10, micro_batch_rows=3)
    one = loader(data, rows_per_step=1, micro_batch_rows=1)
    for step in itertools.islice(several, 5):
        assert rows(step) == [rows(next(one))[0] for _ in range(10)]
        assert [len(batch.ids_BT) for batch in step] == [3, 3, 3, 1]


@pytest.mark.parametrize(("key", "value"), [("seed", 4), ("row_length", 32), ("data", examples(39))])
def test_a_state_of_another_order_is_refused(key, value):
    with pytest.raises(UserError, match=f"made with {key}"):
        loader(**{key: value}).load_state_dict(loader().state_dict())


def test_no_example_at_all_is_the_users_mistake():
    with pytest.raises(UserError, match="no example is left"):
        loader(TokenExamples([([5], [True])]))


def test_rows_that_do_not_divide_among_the_ranks_are_the_users_mistake():
    with pytest.raises(UserError, match="use a multiple of 4"):
        loader(world=4)


def test_one_pass_reads_shards_whole_in_order_over_any_number_of_ranks(tmp_path):
    write_shards([Document(text, "河边") for text in TEXTS], small_tokenizer(), tmp_path, shard_tokens=300)
    shards = TokenShards(tmp_path)

    def targets(**ranks):
        batches = one_pass(shards, row_length=ROW, micro_batch_rows=4, pad_id=0, **ranks)
        pairs = [torch.stack([batch.documents_BT, batch.targets_BT], -1)[batch.documents_BT >= 0] for batch in batches]
        return Counter(map(tuple, torch.cat(pairs).tolist()))

    expected = Counter((d, t) for d in range(len(shards)) for t in shards[d][1:].tolist())
    assert targets() == expected
    assert targets(rank=0, world=2) + targets(rank=1, world=2) == expected
