from collections import Counter

import numpy as np
import pytest
from small_tokenizer import TEXTS, small_tokenizer

from mengya.corpus.records import Document
from mengya.data.loader import PackedLoader
from mengya.data.mixture import Mixture, source_weights
from mengya.data.shard_writer import write_shards
from mengya.data.shards import TokenShards
from mengya.errors import UserError

OPTIONS = {"row_length": 64, "rows_per_step": 2, "micro_batch_rows": 2, "seed": 3, "pad_id": 0}
SOURCES = ("甲", "甲", "乙", "丙")


@pytest.fixture
def shards(tmp_path):
    documents = [Document(text, SOURCES[index % 4]) for index, text in enumerate(TEXTS)]
    write_shards(documents, small_tokenizer(), tmp_path)
    return TokenShards(tmp_path)


def tokens_of_epoch(loader, shards, epoch):
    """{source: its tokens in an epoch's plans}."""
    counts = Counter()
    for window in range(loader.num_windows):
        plan = loader.plan(epoch, window)
        for document, length in zip(plan.documents.tolist(), plan.lengths.tolist(), strict=True):
            counts[shards.source_names[shards.source_ids_N[document % len(shards)]]] += length
    return counts


WINDOWS = pytest.mark.parametrize("window_examples", [10_000, 25])


@WINDOWS
def test_a_source_of_weight_two_comes_twice_an_epoch_and_of_none_never(shards, window_examples):
    once = tokens_of_epoch(PackedLoader(shards, **OPTIONS), shards, 0)
    mixture = Mixture(shards, {"甲": 2.0, "乙": 1.0, "丙": 0.0})
    mixed = PackedLoader(mixture, **OPTIONS, window_examples=window_examples)
    assert (mixed.num_windows > 1) == (window_examples == 25)
    for epoch in (0, 1):
        counts = tokens_of_epoch(mixed, shards, epoch)
        assert counts == {"甲": 2 * once["甲"], "乙": once["乙"]}


def test_copies_of_a_document_spread_over_the_windows(shards):
    mixed = PackedLoader(Mixture(shards, {"甲": 2.0, "乙": 1.0, "丙": 1.0}), **OPTIONS, window_examples=10)
    window_of = {}
    for window in range(mixed.num_windows):
        for example in mixed.plan(0, window).documents.tolist():
            window_of[example] = window
    copies = [(window_of[n], window_of[n + len(shards)]) for n in range(len(shards)) if n + len(shards) in window_of]
    assert len(copies) == len(TEXTS) // 2
    assert sum(first == second for first, second in copies) < len(copies) / 2


@WINDOWS
def test_a_fraction_is_drawn_anew_each_epoch_and_right_on_average(shards, window_examples):
    once = tokens_of_epoch(PackedLoader(shards, **OPTIONS), shards, 0)
    mixture = Mixture(shards, {"甲": 1.5, "乙": 1.0, "丙": 1.0})
    mixed = PackedLoader(mixture, **OPTIONS, window_examples=window_examples)
    epochs = [tokens_of_epoch(mixed, shards, epoch)["甲"] for epoch in range(40)]
    assert len(set(epochs)) > 1
    assert np.mean(epochs) / once["甲"] == pytest.approx(1.5, abs=0.05)


def test_two_copies_in_a_row_are_two_documents(shards):
    mixture = Mixture(shards, {"甲": 3.0, "乙": 1.0, "丙": 1.0})
    loader = PackedLoader(mixture, **{**OPTIONS, "row_length": 512})
    shared = False
    while loader.epoch == 0:
        for batch in next(loader):
            for documents, positions in zip(batch.documents_BT.tolist(), batch.positions_BT.tolist(), strict=True):
                starts = [d for d, p in zip(documents, positions, strict=True) if p == 0 and d >= 0]
                assert len(set(starts)) == len(starts)
                shared |= len({d % len(shards) for d in starts}) < len(starts)
    assert shared, "the case must occur"


@WINDOWS
def test_a_resumed_mixture_goes_on_with_the_same_batches(shards, window_examples):
    options = {**OPTIONS, "window_examples": window_examples}
    mixture = Mixture(shards, {"甲": 1.5, "乙": 0.5, "丙": 2.0})
    first = PackedLoader(mixture, **options)
    for _ in range(30):
        next(first)
    second = PackedLoader(mixture, **options)
    second.load_state_dict(first.state_dict())
    for _ in range(20):
        (a,), (b,) = next(first), next(second)
        assert a.ids_BT.equal(b.ids_BT)
        assert a.targets_BT.equal(b.targets_BT)
    other = PackedLoader(Mixture(shards, {"甲": 1.0, "乙": 1.0, "丙": 1.0}), **options)
    with pytest.raises(UserError, match="data"):
        other.load_state_dict(first.state_dict())


def test_temperature_makes_shares_follow_the_root_of_the_tokens(shards):
    tokens = {name: int(shards.lengths_N[shards.source_ids_N == i].sum()) for i, name in enumerate(shards.source_names)}
    weights = source_weights(shards, {}, temperature=2.0)
    shares = {name: weights[name] * tokens[name] for name in tokens}
    largest = max(tokens, key=tokens.__getitem__)
    assert weights[largest] == 1.0
    for name in tokens:
        assert shares[name] / shares[largest] == pytest.approx((tokens[name] / tokens[largest]) ** 0.5)
    assert source_weights(shards, {"乙": 3.0}, temperature=1.0) == {"丙": 1.0, "乙": 3.0, "甲": 1.0}


def test_an_unknown_source_and_no_weight_at_all_are_the_users_mistakes(shards):
    with pytest.raises(UserError, match="no source '丁'"):
        source_weights(shards, {"丁": 1.0}, temperature=1.0)
    with pytest.raises(UserError, match="every source has weight 0"):
        Mixture(shards, {"甲": 0.0, "乙": 0.0, "丙": 0.0})
