"""Text beside the policy's own answers: its weight is the one asked for, whatever the split; the position is part of the state."""

from __future__ import annotations

import pytest
import torch

from mengya.data.conversations import TokenExamples
from mengya.data.loader import PackedLoader
from mengya.evaluate.answers import Answers
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.objectives.language_model import next_token_loss
from mengya.objectives.terms import Terms
from mengya.rl.replay import Replay, Replaying, beside, with_replay
from mengya.rl.rollout import answer_logps, lay_out, minibatches
from mengya.settings import GRPOSettings
from mengya.train.parallel import World

DEVICE = torch.device("cpu")
ANSWERS = Answers(["", "", ""], [[5, 6, 7, 8, 9], [5, 6], [7, 7, 7]], [True] * 3, [[3, 4], [3, 4, 5], [2]])


def _world(rank=0, size=1):
    return World(rank, size, DEVICE, torch.float32)


def _loader(seed=1, micro_batch_rows=1):
    generator = torch.Generator().manual_seed(7)
    texts = [torch.randint(0, 50, (length,), generator=generator).tolist() for length in range(3, 19)]
    # The first half of each text carries no loss, as a user's turn does not.
    examples = TokenExamples((text, [place >= len(text) // 2 for place in range(len(text))]) for text in texts)
    return PackedLoader(
        examples, row_length=16, rows_per_step=4, micro_batch_rows=micro_batch_rows, seed=seed, pad_id=0
    )


def _model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(50, width=16, num_layers=1, num_heads=2, ffn_width=32, max_positions=64))


def _likelihood(model, rollout):
    logps_BA, _ = answer_logps(model, rollout)
    return Terms(-logps_BA.sum(), int(rollout.mask_BA.sum()))


def _gradient(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), allow_unused=False)])


@pytest.mark.parametrize("coefficient", [0.5, 3.0])
def test_a_step_adds_the_coefficient_times_the_mean_over_the_text(coefficient):
    model, rollout = _model(), lay_out(ANSWERS, DEVICE)
    (batch,) = minibatches(rollout, GRPOSettings(epochs=1, minibatches=1, micro_batch_rows=2), 0, 1, _world())
    replay, objective = Replay([(_loader(), coefficient)], _world()), with_replay(_likelihood)
    parts = beside(batch, replay)
    terms = [objective(model, part.to(DEVICE)) for part in parts]
    assert sum(term.count for term in terms) == batch.count() == 10, "text is no part of the step's count"
    mixed = sum(term.loss_sum for term in terms) / batch.count()

    texts = [next_token_loss(model, text) for text in next(_loader())]
    text_mean = sum(term.loss_sum for term in texts) / sum(term.count for term in texts)
    apart = _likelihood(model, rollout).loss_sum / 10 + coefficient * text_mean
    torch.testing.assert_close(mixed, apart)
    torch.testing.assert_close(_gradient(model, mixed), _gradient(model, apart), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_divide_the_text_among_them(size):
    whole = Replay([(_loader(), 1.0)], _world()).parts(10)
    shares = [Replay([(_loader(), 1.0)], _world(rank, size)).parts(10) for rank in range(size)]
    assert {len(share) for share in shares} == {4 // size}
    rows = {(tuple(part.text.ids_BT.flatten().tolist()), part.weight) for share in shares for part in share}
    assert rows == {(tuple(part.text.ids_BT.flatten().tolist()), part.weight) for part in whole}


def test_a_step_of_answers_that_count_alike_counts_answers():
    (batch,) = minibatches(
        lay_out(ANSWERS, DEVICE), GRPOSettings(epochs=1, minibatches=1, micro_batch_rows=2), 0, 1, _world()
    )
    assert batch.count("sequence") == 3


def test_the_position_is_restored():
    replay = Replay([(_loader(), 1.0), (_loader(seed=2), 2.0)], _world())
    for _ in range(3):
        replay.parts(10)
    state = replay.state()
    expected = [part.text.ids_BT for part in replay.parts(10)]
    again = Replay([(_loader(), 1.0), (_loader(seed=2), 2.0)], _world())
    assert any(not torch.equal(a, part.text.ids_BT) for a, part in zip(expected, again.parts(10), strict=True))
    again.load_state(state)
    assert all(torch.equal(a, part.text.ids_BT) for a, part in zip(expected, again.parts(10), strict=True))


class _Pairs:
    """A loader of steps that are no text."""

    def __init__(self):
        self.step = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.step += 1
        return [f"pair {self.step}"]

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]

    def origin_of(self, index):
        return f"file:{index}"


def test_pairs_and_text_go_on_together_from_where_both_were():
    def replaying():
        return Replaying(_Pairs(), Replay([(_loader(), 2.0)], _world()), count=8)

    steps = replaying()
    for _ in range(3):
        next(steps)
    state = steps.state_dict()
    pair, *texts = next(steps)
    assert pair == "pair 4"
    assert sum(text.weight * text.text.num_targets for text in texts) == pytest.approx(2.0 * 8)
    again = replaying()
    again.load_state_dict(state)
    assert next(again)[0] == pair
    again.load_state_dict(state)
    for text, other in zip(texts, next(again)[1:], strict=True):
        assert torch.equal(text.text.ids_BT, other.text.ids_BT)
    assert steps.origin_of(3) == "file:3"
