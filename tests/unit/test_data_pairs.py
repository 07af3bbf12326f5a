import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizer import small_tokenizer

from mengya.corpus.records import Message, PreferencePair
from mengya.data.packing import PADDING
from mengya.data.pairs import PairLoader, narrow_rows, pair_batch, render_pairs
from mengya.errors import UserError
from mengya.evaluate.likelihood import sequence_logps
from mengya.model.config import ModelConfig
from mengya.model.heads import RewardModel
from mengya.model.transformer import Transformer
from mengya.objectives.preference import packed_logps
from mengya.objectives.reward import reward_loss

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
    for number, pair in enumerate(pairs):
        prompt = tokenizer.render(pair.prompt, add_generation_prompt=True)[0]
        for side, text in ((0, pair.chosen), (1, pair.rejected)):
            sequence = side * len(pairs) + number
            own = batch.documents_BT == sequence
            answer = [*tokenizer.encode(text), tokenizer.end_id]
            assert batch.ids_BT[own].tolist() == prompt + answer
            assert batch.ids_BT[own & batch.completion_BT].tolist() == answer
            assert batch.positions_BT[own].tolist() == list(range(len(prompt + answer)))
            assert batch.completion_lengths_S[sequence] == len(answer)
            assert own.flatten().nonzero()[-1].item() == batch.last_S[sequence]
            assert own.any(1).sum() == 1, "a sequence stands in one row"
    padding = batch.documents_BT == PADDING
    assert (batch.ids_BT[padding] == 0).all()
    assert not batch.completion_BT[padding].any()
    assert batch.num_tokens == int((~padding).sum()) == sum(len(p.chosen) + len(p.rejected) for p in rendered)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "initializer_range": 0.3}
    return Transformer(ModelConfig(vocab_size=370, max_positions=400, **shape))


@torch.no_grad()
def test_packed_pairs_are_scored_as_each_text_alone(model):
    pairs = token_pairs(12)
    batch = pair_batch(pairs, [3, 0, 7, 11, 5], pad_id=0)
    sides = [pairs[i].chosen for i in (3, 0, 7, 11, 5)] + [pairs[i].rejected for i in (3, 0, 7, 11, 5)]
    assert len(batch.ids_BT) < len(sides), "several sequences share a row"

    reward = RewardModel.from_language_model(model)
    torch.nn.init.normal_(reward.score.weight)
    alone = torch.cat([reward(torch.from_numpy(ids)[None], torch.tensor([len(ids)])) for ids in sides])
    expected = -torch.nn.functional.logsigmoid(alone[:5] - alone[5:]).sum()
    torch.testing.assert_close(reward_loss()(reward, batch).loss_sum, expected, rtol=1e-4, atol=1e-4)

    # GRM's term: −log p a token of the chosen answers, by the language model that the trunk still is.
    chosen_starts = [pairs[i].prompt_length for i in (3, 0, 7, 11, 5)]
    chosen = zip(
        sequence_logps(model, [ids.tolist() for ids in sides[:5]], chosen_starts), sides, chosen_starts, strict=False
    )
    nll = sum(-logp / (len(ids) - start) for logp, ids, start in chosen)
    torch.testing.assert_close(reward_loss(0.3)(reward, batch).loss_sum, expected + 0.3 * nll, rtol=1e-4, atol=1e-4)

    starts = [pairs[i].prompt_length for i in (3, 0, 7, 11, 5)] * 2
    logps = torch.tensor(sequence_logps(model, [ids.tolist() for ids in sides], starts))
    torch.testing.assert_close(packed_logps(model, batch), logps, rtol=1e-4, atol=1e-3)


@given(st.lists(st.integers(1, 300), min_size=2, max_size=128))
def test_rows_of_pairs_hold_every_sequence_whole_with_less_than_five_percent_of_padding(lengths):
    plan = narrow_rows(np.array(lengths))
    assert sorted(zip(plan.documents.tolist(), plan.lengths.tolist(), strict=True)) == list(enumerate(lengths))
    assert not plan.starts.any()
    assert plan.row_length == max(sum(n for _, _, n in plan.pieces(row)) for row in range(plan.num_rows))
    # Two rows of unequal sequences cannot always be even; what is left then is less than the difference.
    assert plan.padding_share < 0.05 or plan.num_rows == 1


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


def test_the_padding_of_pairs_is_below_five_percent_and_reported():
    pairs = token_pairs(600)
    batches = [batch for step in itertools.islice(loader(pairs), 50) for batch in step]
    padding = 1 - sum(b.num_tokens for b in batches) / sum(b.ids_BT.numel() for b in batches)
    assert padding < 0.05
    assert loader(pairs).packing()["padding_share"] == pytest.approx(padding, abs=1e-5)


def test_pairs_of_like_length_come_together():
    pairs = token_pairs(600)
    lengths = np.array([pair.length for pair in pairs])
    spreads = [np.ptp(lengths[batch]) for step in itertools.islice(loader(pairs), 50) for batch in indices(step)]
    shuffled = np.random.default_rng(0).permutation(600).reshape(150, 4)
    assert np.mean(spreads) < 0.5 * np.mean([np.ptp(lengths[row]) for row in shuffled])


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


def test_pairs_are_named_by_their_origins():
    pairs = [
        PreferencePair((Message("user", "苹"),), "果" * n, "明", "来源", origin=f"a.jsonl:{n}" if n != 3 else "")
        for n in range(1, 7)
    ]
    rendered, _ = render_pairs(pairs, small_tokenizer(), max_tokens=100)
    own = loader(rendered, pairs_per_step=6, micro_batch_pairs=6)
    names = [own.origin_of(index) for index in range(6)]
    assert names == ["来源 a.jsonl:1", "来源 a.jsonl:2", "来源, document 2", *(f"来源 a.jsonl:{n}" for n in (4, 5, 6))]
