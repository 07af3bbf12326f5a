import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mengya.data.conversations import TokenExamples
from mengya.data.packing import IGNORE, PADDING, batch_of, pack

LENGTHS = st.lists(st.integers(0, 40), max_size=60)
PAD = 0


def rng(seed):
    return None if seed is None else np.random.default_rng(seed)


@given(LENGTHS, st.integers(1, 16), st.none() | st.integers(0, 9))
def test_every_token_stands_in_exactly_one_row_and_no_row_overflows(lengths, row_length, seed):
    plan = pack(np.array(lengths, dtype=np.int64), row_length, rng(seed))
    seen = [(d, t) for row in range(plan.num_rows) for d, s, n in plan.pieces(row) for t in range(s, s + n)]
    assert sorted(seen) == [(d, t) for d, length in enumerate(lengths) for t in range(length)]
    for row in range(plan.num_rows):
        assert 0 < sum(n for _, _, n in plan.pieces(row)) <= row_length
        documents = [d for d, _, _ in plan.pieces(row)]
        assert len(set(documents)) == len(documents), "equal ids in a row would let two pieces see each other"


@given(LENGTHS, st.integers(1, 16))
def test_no_two_rows_could_be_one(lengths, row_length):
    plan = pack(np.array(lengths, dtype=np.int64), row_length, rng(0))
    fill = sorted(sum(n for _, _, n in plan.pieces(row)) for row in range(plan.num_rows))
    assert len(fill) < 2 or fill[0] + fill[1] > row_length


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=20), min_size=1, max_size=9),
    st.integers(1, 8),
)
def test_a_batch_holds_each_piece_with_its_shifted_targets_positions_and_document(documents, row_length):
    examples = TokenExamples(([i for i, _ in doc], [t for _, t in doc]) for doc in documents)
    plan = pack(examples.num_inputs_N, row_length, rng(0))
    if not plan.num_rows:
        return
    batch = batch_of(examples, [(plan, row) for row in range(plan.num_rows)], PAD)
    for b in range(plan.num_rows):
        end = 0
        for document, start, length in plan.pieces(b):
            for t in range(length):
                token, (following, trained) = documents[document][start + t][0], documents[document][start + t + 1]
                assert batch.ids_BT[b, end + t] == token
                assert batch.targets_BT[b, end + t] == (following if trained else IGNORE)
                assert batch.positions_BT[b, end + t] == t
                assert batch.documents_BT[b, end + t] == document
            end += length
        assert (batch.ids_BT[b, end:] == PAD).all()
        assert (batch.targets_BT[b, end:] == IGNORE).all()
        assert (batch.documents_BT[b, end:] == PADDING).all()
        assert batch.positions_BT[b, end:].tolist() == list(range(row_length - end))
    assert batch.num_targets == sum(trained for doc in documents for _, trained in doc[1:])
    assert batch.num_tokens == sum(max(0, len(doc) - 1) for doc in documents)


@pytest.mark.parametrize(("mean", "row_length"), [(60, 256), (300, 512), (900, 512)])
def test_padding_of_a_corpus_is_below_one_percent_and_packing_two_million_tokens_is_quick(mean, row_length):
    lengths = np.random.default_rng(3).gamma(2.0, mean / 2, size=2_000_000 // mean).astype(np.int64) + 2
    started = time.perf_counter()
    plan = pack(lengths, row_length, rng(0))
    assert time.perf_counter() - started < 3.0  # 0.1 s on the machine it was written on
    assert plan.padding_share < 0.01


def test_another_seed_gives_other_rows_and_the_same_seed_the_same():
    lengths = np.random.default_rng(1).integers(1, 50, size=200)
    first, again, other = (pack(lengths, 64, rng(seed)) for seed in (5, 5, 6))
    assert first.documents.tolist() == again.documents.tolist() != other.documents.tolist()
