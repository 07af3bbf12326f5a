"""Continuous batching: who is decoded when and beside whom changes no text, and nothing is read twice or kept."""

import gc
import weakref

import pytest
import torch

from mengya.evaluate.answers import Answers
from mengya.generate import batching, inference
from mengya.generate.engine import generate
from mengya.generate.inference import InferenceModel
from mengya.generate.sampling import Sampling
from mengya.model.cache import KVCache
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.rl.rollout import answer_logps, lay_out

torch.set_num_threads(1)
SHAPE = {"vocab_size": 50, "width": 32, "num_layers": 2, "num_heads": 4, "initializer_range": 0.4, "max_positions": 80}


def _model(**changes) -> Transformer:
    torch.manual_seed(5)
    model = Transformer(ModelConfig(**(SHAPE | {"num_kv_heads": 2} | changes)))
    with torch.no_grad():  # else a norm's weight that is left out would not be missed
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return _model()


def _prompts(lengths, beginning=()) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [[*beginning, *torch.randint(5, 50, (n,), generator=generator).tolist()] for n in lengths]


@torch.no_grad()
def _alone(model, prompt, num_tokens) -> list[int]:
    """The likeliest tokens, the whole text read again for each."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.fixture
def read(monkeypatch):
    """The shapes (rows, tokens) that the model was given."""
    shapes, whole = [], InferenceModel.hidden

    def hidden(self, ids_BT, cache):
        shapes.append(tuple(ids_BT.shape))
        return whole(self, ids_BT, cache)

    monkeypatch.setattr(InferenceModel, "hidden", hidden)
    return shapes


@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": True, "head_width": 16}, {"tie_embeddings": False, "num_kv_heads": 4}]
)
@pytest.mark.parametrize("packs", [True, False])
def test_the_packed_weights_compute_what_the_model_computes(changes, packs, monkeypatch):
    if not packs:  # as on a processor without oneDNN's kernels, and on CUDA
        monkeypatch.setattr(inference, "_onednn_packs", lambda dtype, device: False)
    model = _model(**changes)
    ids = torch.randint(5, 50, (3, 20))
    with torch.no_grad():
        expected = model(ids)
    packed = InferenceModel(model)
    cache = packed.new_cache(3, 20)
    parts = []
    for start, stop in ((0, 7), (7, 8), (8, 20)):
        parts.append(packed.hidden(ids[:, start:stop], cache))
        cache.advance([stop - start] * 3)
    logits = packed.logits(torch.cat(parts, 1).flatten(0, 1)).view(3, 20, 50)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)


def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_trainer_is():
    model = _model()
    ids = torch.randint(5, 50, (8, 30))
    with torch.no_grad():
        exact = model(ids).log_softmax(-1)
        model.compute_dtype = torch.bfloat16
        trainers = model(ids).float().log_softmax(-1)
    packed = InferenceModel(model)
    ours = packed.logits(packed.hidden(ids, packed.new_cache(8, 30)).flatten(0, 1)).view(8, 30, 50).log_softmax(-1)
    assert (ours - exact).abs().mean() < 1.2 * (trainers - exact).abs().mean()


def test_weights_that_generation_does_not_know_are_not_left_out():
    model = _model()
    model.model.layers[0].self_attn.q_proj.lora = torch.nn.Linear(32, 2)
    with pytest.raises(AssertionError, match=r"q_proj\.lora"):
        InferenceModel(model)


@pytest.mark.parametrize("batch_size", [1, 3, 16, 100])
def test_each_prompt_gets_its_own_number_of_tokens_whoever_is_beside_it(model, batch_size):
    prompts = _prompts([1, 30, 2, 17, 17, 40, 5, 9, 9, 33, 3, 60] * 2)
    limits = [1, 7, 20, 3, 9, 2, 14, 6, 1, 8, 11, 30] * 2
    answers = generate(model, prompts, max_new_tokens=limits, stop_ids=(), batch_size=batch_size)
    for prompt, limit, answer in zip(prompts, limits, answers, strict=True):
        assert answer.tokens == _alone(model, prompt, min(limit, 81 - len(prompt)))


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_sampled_text_does_not_depend_on_the_batch_that_it_came_in(model, penalty):
    prompts = _prompts([20, 3, 3, 50, 11, 8, 40, 1, 27] * 4)
    settings = {"max_new_tokens": 25, "stop_ids": {1, 2, 3}, "seed": 2}
    sampling = Sampling(temperature=0.9, repetition_penalty=penalty)
    texts = [
        [answer.tokens for answer in generate(model, prompts, sampling=sampling, batch_size=size, **settings)]
        for size in (1, 5, 16, 64)
    ]
    assert all(text == texts[0] for text in texts)


def test_the_log_probabilities_are_those_of_the_trainer(model):
    prompts = _prompts([20, 3, 3, 50, 11, 8, 40, 1, 27])
    answers = generate(model, prompts, max_new_tokens=25, stop_ids={1, 2}, sampling=Sampling(), seed=3, batch_size=4)
    rollout = lay_out(
        Answers([], [a.tokens for a in answers], [a.finished for a in answers], prompts), torch.device("cpu")
    )
    with torch.no_grad():
        expected_BA, _ = answer_logps(model, rollout)
    ours = torch.tensor([logp for answer in answers for logp in answer.logps])
    torch.testing.assert_close(ours, expected_BA[rollout.mask_BA], atol=1e-4, rtol=0)


def test_the_batch_stays_full(model, read):
    limits = [2, 30] * 20
    generate(model, _prompts([4] * 40), max_new_tokens=limits, stop_ids=(), batch_size=8)
    steps = [rows for rows, tokens in read if tokens == 1]
    assert (
        sum(steps) == sum(limits) - 40
    )  # the first token of an answer is the prompt's, the others are read one by one
    # In batches of eight that wait for their longest answer it would be 5 x 29.
    assert len(steps) < sum(limits) / 8 + 30
    assert max(steps) == 8


def test_equal_prompts_are_read_once_and_so_is_what_all_begin_with(model, read):
    beginning = _prompts([30])[0]
    different = _prompts([3, 7, 12, 12], beginning)
    prompts = [prompt for prompt in different for _ in range(8)]
    settings = {"max_new_tokens": 10, "stop_ids": {1}, "sampling": Sampling(), "seed": 1}
    answers = generate(model, prompts, batch_size=4, **settings)
    prefill = [shape for shape in read if shape[1] > 1]
    assert prefill[0] == (1, 30)
    assert sum(rows for rows, _ in prefill[1:]) == 4
    assert max(tokens for _, tokens in prefill[1:]) == 12
    assert len({tuple(answer.tokens) for answer in answers[:8]}) > 1
    # The same chance, and the text of each prompt as if no other had been there.
    apart = [generate(model, [[5]] * n + [prompts[n]], **settings)[n] for n in (0, 9, 31)]
    assert [answer.tokens for answer in apart] == [answers[n].tokens for n in (0, 9, 31)]


def test_a_prompt_that_is_the_beginning_of_all_others_still_predicts(model):
    beginning = _prompts([25])[0]
    prompts = [beginning, *_prompts([1, 4], beginning)]
    answers = generate(model, prompts, max_new_tokens=6, stop_ids=())
    assert [answer.tokens for answer in answers] == [_alone(model, prompt, 6) for prompt in prompts]


def test_many_prompts_are_read_in_groups_of_bounded_size(model, read, monkeypatch):
    monkeypatch.setattr(batching, "_READ_TOKENS", 100)
    prompts = _prompts([70, 60, 50, 30, 30, 30, 4, 3, 2])
    answers = generate(model, prompts, max_new_tokens=3, stop_ids=())
    groups = [(rows, tokens) for rows, tokens in read if tokens > 1]
    assert all(rows == 1 or rows * tokens <= 100 for rows, tokens in groups)
    assert sum(rows for rows, _ in groups) == len(prompts)
    assert [answer.tokens for answer in answers] == [_alone(model, prompt, 3) for prompt in prompts]


def test_the_cache_holds_a_batch_of_the_longest_texts_and_no_more(model, monkeypatch):
    sizes, whole = [], KVCache.reserve

    def reserve(self, num_new):
        slots = whole(self, num_new)
        sizes.append((self.keys_LBKSD.shape[1], slots))
        return slots

    monkeypatch.setattr(KVCache, "reserve", reserve)
    generate(model, _prompts([1, 2, 3, 60] * 9), max_new_tokens=9, stop_ids=(), batch_size=5)
    assert max(rows for rows, _ in sizes) == 5
    assert max(slots for _, slots in sizes) <= 68


def test_an_interrupt_between_two_steps_leaves_nothing_behind(model, monkeypatch):
    prompts = _prompts([4, 9, 2, 6])
    settings = {"max_new_tokens": 9, "stop_ids": (), "sampling": Sampling(), "batch_size": 2}
    expected = generate(model, prompts, **settings)
    batches, whole = [], batching.Batch.step

    def step(self):
        batches.append(weakref.ref(self))
        if len(batches) == 5:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(batching.Batch, "step", step)
    with pytest.raises(KeyboardInterrupt):
        generate(model, prompts, **settings)
    gc.collect()
    assert [batch() for batch in batches] == [None] * 5
    monkeypatch.undo()
    assert generate(model, prompts, **settings) == expected


@torch.no_grad()
def test_rows_of_another_cache_go_on_beside_old_ones_and_memory_follows_the_longest():
    model = _model(max_positions=400)
    packed = InferenceModel(model)
    texts = _prompts([300, 5, 20, 7])
    cache = packed.new_cache(4, 400)
    cache.compact([])
    for prompt in texts:
        one = packed.new_cache(1, len(prompt))
        packed.hidden(torch.tensor([prompt]), one)
        one.advance([len(prompt)])
        cache.append(one, [0])
    assert cache.reserve(1) >= 301
    cache.compact([3, 1, 2])
    assert cache.reserve(1) <= 64
    x_BTC = packed.hidden(torch.tensor([[30], [31], [32]]), cache)
    cache.advance([1, 1, 1])
    logits = packed.logits(x_BTC[:, -1])
    for place, (text, token) in enumerate([(3, 30), (1, 31), (2, 32)]):
        alone = model(torch.tensor([[*texts[text], token]]))[0, -1]
        torch.testing.assert_close(logits[place], alone, atol=1e-4, rtol=1e-4)
