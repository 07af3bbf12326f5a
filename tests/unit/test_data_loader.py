import itertools
import json
import threading
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
from mengya.data.packing import PADDING, pack
from mengya.data.prefetch import Prefetch
from mengya.data.shard_writer import write_shards
from mengya.data.shards import TokenShards
from mengya.data.windows import Windows
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


@settings(max_examples=40)
@given(st.integers(0, 25), st.sampled_from([1, 4, 6]), st.sampled_from([7, 40]), st.booleans(), st.booleans())
def test_a_loader_restored_at_any_step_goes_on_as_if_never_stopped(steps, rows_per_step, window, ahead, skipped):
    def made(ahead):
        own = loader(rows_per_step=rows_per_step, window_examples=window)
        return Prefetch(own, depth=2) if ahead else own

    expected = [rows(step) for step in itertools.islice(made(False), steps + 8)][steps:]
    stopped = made(ahead)
    if skipped:
        stopped.skip(steps)
    else:
        for _ in range(steps):
            next(stopped)
    restored = made(ahead)
    restored.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert [rows(step) for step in itertools.islice(restored, 8)] == expected


def test_a_corpus_of_one_window_keeps_the_order_that_it_had_before_there_were_windows():
    data = examples()
    each = loader(data, rows_per_step=1, micro_batch_rows=1)
    for epoch in range(2):
        plan = pack(data.num_inputs_N, ROW, np.random.default_rng([3, epoch]))
        for row in range(plan.num_rows):
            (batch,) = next(each)
            expected = [d for d, _, n in plan.pieces(row) for _ in range(n)]
            assert [d for d in batch.documents_BT[0].tolist() if d != PADDING] == expected
    before = {"epoch": 1, "row": 3, "seed": 3, "data": data.fingerprint, "row_length": ROW}
    each.load_state_dict(before)
    assert (each.epoch, each.window, each.row) == (1, 0, 3)


def test_a_thread_ahead_gives_its_error_at_its_step_and_ends_when_closed(monkeypatch):
    data = examples()
    ahead = Prefetch(loader(data))
    first = rows(next(ahead))
    assert first == rows(next(loader(data)))
    next(ahead)
    ahead.close()
    monkeypatch.setattr(TokenExamples, "piece", lambda *_: (_ for _ in ()).throw(UserError("this file has been cut")))
    broken = Prefetch(loader(data))
    with pytest.raises(UserError, match="cut"):
        next(broken)
    broken.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


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


@pytest.mark.parametrize(("window", "windows"), [(40, 1), (39, 2), (12, 4), (1, 40)])
def test_each_epoch_gives_every_token_once_and_in_another_order(window, windows):
    data = examples()
    each = loader(data, rows_per_step=1, micro_batch_rows=1, window_examples=window)
    assert each.num_windows == windows
    epochs = []
    for epoch in range(3):
        epochs.append([rows(next(each))[0] for _ in range(each.num_rows(epoch))])
        assert (each.epoch, each.window, each.row) == (epoch + 1, 0, 0)
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


def test_windows_are_other_choices_of_examples_in_every_epoch():
    each = loader(window_examples=12)
    held = [[set(each.plan(epoch, window).documents.tolist()) for window in range(4)] for epoch in range(2)]
    for windows in held:
        assert not set.intersection(*windows)
        assert set.union(*windows) == set(np.flatnonzero(examples().num_inputs_N).tolist())
    assert held[0] != held[1]


def test_a_state_of_other_windows_is_refused():
    several = loader(window_examples=12)
    for _ in range(3):
        next(several)
    for other in (loader(), loader(window_examples=9)):
        with pytest.raises(UserError, match="made with windows"):
            other.load_state_dict(several.state_dict())


def test_going_to_a_place_reads_the_lengths_of_its_window_alone(tmp_path, monkeypatch):
    write_shards([Document(text, "河边") for text in TEXTS * 4], small_tokenizer(), tmp_path, shard_tokens=300)
    shards = TokenShards(tmp_path)
    options = {"window_examples": 24, "rows_per_step": 2}
    stopped = loader(shards, **options)
    stopped.skip(30)
    assert 0 < stopped.window < stopped.num_windows - 1
    restored = loader(shards, **options)
    asked = []
    lengths = TokenShards.lengths
    monkeypatch.setattr(
        TokenShards, "lengths", lambda self, first, stop: (asked.append(stop - first), lengths(self, first, stop))[1]
    )
    restored.load_state_dict(stopped.state_dict())
    assert rows(next(restored)) == rows(next(stopped))
    assert sum(asked) <= 3 * 24, "the window's, and the next one's if the step ends it"


@pytest.mark.parametrize(
    ("documents", "tokens"),
    [(1, 50), (262_144, 10**8), (262_145, 10**8), (20_000_000, 10**10), (3 * 10**9, 10**12)],
)
def test_windows_cover_any_corpus_and_stay_small(documents, tokens):
    windows = Windows.of(documents, tokens)
    window = windows.blocks * windows.block_size
    assert (windows.num_windows - 1) * window < documents <= windows.num_windows * window
    assert (windows.num_windows == 1) == (documents <= 262_144)
    assert windows.blocks * windows.block_size <= 2 * 262_144 or windows.num_windows == 1
    assert -(-documents // max(1, windows.block_size)) <= 1 << 21


def test_what_packing_costs_is_counted():
    data = TokenExamples((list(range(9, 9 + n)), [True] * n) for n in (10, 10, ROW + 1, ROW + 2, 3 * ROW + 1))
    found = loader(data).packing()
    plan = loader(data).plan()
    assert found["split_documents"] == 2
    assert found["cropped_tokens"] == 0
    assert found["padding_share"] == round(1 - int(data.num_inputs_N.sum()) / (plan.num_rows * ROW), 5)


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
