import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizer import small_tokenizer

from mengya.corpus.records import Message, PreferencePair
from mengya.data.pairs import PairLoader, one_pass_of_pairs, pair_batch, render_pairs
from mengya.errors import UserError

ANSWER = st.text("小明看见苹果", max_size=20)


def prompt_of(texts):
    """Questions of the user, each but the last answered."""
    turns = [message for text in texts[:-1] for message in (Message("user", text), Message("assistant", "好"))]
    return (*turns, Message("user", texts[-1]))


PROMPT = st.lists(ANSWER, min_size=1, max_size=3).map(prompt_of)
PAIRS = st.lists(st.builds(PreferencePair, PROMPT, ANSWER, ANSWER, st.just("test")), min_size=1, max_size=5)


def token_pairs(count=60):
    rng = np.random.default_rng(0)
    pairs = [
        PreferencePair((Message("user", "苹" * int(n)),), "果" * int(c), "明" * int(r), "test")
        for n, c, r in rng.integers(0, 60, size=(count, 3))
    ]
    return render_pairs(pairs, small_tokenizer(), max_tokens=10_000)[0]


def loader(pairs=None, **changes):
    return PairLoader(
        pairs or token_pairs(), **{"pairs_per_step": 12, "micro_batch_pairs": 4, "seed": 1, "pad_id": 0, **changes}
    )


@given(PAIRS)
def test_a_batch_holds_prompt_answer_end_and_marks_the_answer_with_its_end(pairs):
    tokenizer = small_tokenizer()
    rendered, counts = render_pairs(pairs, tokenizer, max_tokens=10_000)
    assert counts == {"examples": len(pairs), "dropped": 0, "turns_dropped": 0}
    batch = pair_batch(rendered, range(len(pairs)), pad_id=0)
    for side, name in ((batch.chosen, "chosen"), (batch.rejected, "rejected")):
        for b, pair in enumerate(pairs):
            prompt = tokenizer.render(pair.prompt, add_generation_prompt=True)[0]
            answer = [*tokenizer.encode(getattr(pair, name)), tokenizer.end_id]
            length = len(prompt) + len(answer)
            assert side.lengths_B[b] == length
            assert side.ids_BT[b].tolist() == prompt + answer + [0] * (side.ids_BT.shape[1] - length)
            assert side.ids_BT[b][side.completion_BT[b]].tolist() == answer
    assert batch.both.ids_BT.tolist() == batch.chosen.ids_BT.tolist() + batch.rejected.ids_BT.tolist()


@given(PAIRS, st.integers(3, 60))
def test_over_long_pairs_lose_leading_turns_alike_or_are_counted_as_dropped(pairs, max_tokens):
    tokenizer = small_tokenizer()
    rendered, counts = render_pairs(pairs, tokenizer, max_tokens=max_tokens)
    assert counts["examples"] + counts["dropped"] == len(pairs)
    assert counts["examples"] == len(rendered)
    assert all(pair.length <= max_tokens for pair in rendered)
    kept = iter(rendered)
    for pair in pairs:
        shortest = [
            tokenizer.render((pair.prompt[-1], Message("assistant", a)))[0] for a in (pair.chosen, pair.rejected)
        ]
        if max(map(len, shortest)) <= max_tokens:
            token_pair = next(kept)
            for ids, least in zip((token_pair.chosen, token_pair.rejected), shortest, strict=True):
                assert ids[-len(least) :].tolist() == least
            prompt = token_pair.chosen[: token_pair.prompt_length].tolist()
            assert prompt == token_pair.rejected[: token_pair.prompt_length].tolist()


def indices(step):
    return [batch.indices_B.tolist() for batch in step]


@settings(max_examples=20)
@given(st.integers(0, 20))
def test_a_pair_loader_restored_at_any_step_goes_on_as_if_never_stopped(steps):
    pairs = token_pairs(50)
    expected = [indices(step) for step in itertools.islice(loader(pairs), steps + 6)][steps:]
    stopped = loader(pairs)
    for _ in range(steps):
        next(stopped)
    restored = loader(pairs)
    restored.load_state_dict(stopped.state_dict())
    assert [indices(step) for step in itertools.islice(restored, 6)] == expected


def test_an_epoch_holds_every_pair_once_and_two_ranks_share_it():
    pairs = token_pairs(60)
    steps = list(itertools.islice(loader(pairs), 5))
    assert Counter(i for step in steps for batch in indices(step) for i in batch) == Counter(range(60))
    ranks = [loader(pairs, rank=rank, world=2) for rank in range(2)]
    for step in steps:
        shared = [i for rank in ranks for batch in indices(next(rank)) for i in batch]
        assert sorted(shared) == sorted(i for batch in indices(step) for i in batch)


def test_pairs_of_like_length_come_together():
    pairs = token_pairs(600)

    def padded(batches):
        return sum(b.both.ids_BT.numel() - int(b.both.lengths_B.sum()) for b in batches)

    bucketed = padded(batch for step in itertools.islice(loader(pairs), 50) for batch in step)
    order = np.random.default_rng(0).permutation(600).reshape(150, 4)
    assert bucketed < 0.6 * padded(pair_batch(pairs, row.tolist(), 0) for row in order)


def test_within_a_step_pairs_of_like_length_share_a_micro_batch():
    pairs = token_pairs(60)
    for step in itertools.islice(loader(pairs), 5):
        lengths = [pairs[index].length for batch in indices(step) for index in batch]
        assert lengths == sorted(lengths)


def test_a_state_of_other_pairs_is_refused():
    with pytest.raises(UserError, match="data"):
        loader(token_pairs(59)).load_state_dict(loader().state_dict())


def test_no_pair_at_all_is_the_users_mistake():
    with pytest.raises(UserError, match="no pair is left"):
        PairLoader([], pairs_per_step=2, micro_batch_pairs=1, seed=0, pad_id=0)


def test_one_pass_gives_every_pair_once():
    batches = list(one_pass_of_pairs(token_pairs(30), micro_batch_pairs=8, pad_id=0))
    assert sorted(i for batch in batches for i in batch.indices_B.tolist()) == list(range(30))
