"""Decoding with a cache equals reading the whole text again, whoever else is in the batch."""

import pytest
import torch

from mengya.generate.engine import Session, generate, stream
from mengya.generate.inference import InferenceModel
from mengya.generate.sampling import GREEDY, Sampling
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer

torch.set_num_threads(1)
STOPS = {1, 2, 3, 4}


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(5)
    return Transformer(
        ModelConfig(
            vocab_size=50, width=32, num_layers=2, num_heads=4, num_kv_heads=2, initializer_range=0.4, max_positions=40
        )
    )


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (24,), generator=generator).tolist()
    return [torch.randint(5, 50, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def _greedy_without_cache(model, prompt, max_new_tokens) -> tuple[list[int], list[float]]:
    tokens, logps = list(prompt), []
    while len(tokens) - len(prompt) < max_new_tokens and len(tokens) <= model.config.max_positions:
        logits = model(torch.tensor([tokens]))[0, -1]
        tokens.append(int(logits.argmax()))
        logps.append(float(logits.log_softmax(-1)[tokens[-1]]))
        if tokens[-1] in STOPS:
            break
    return tokens[len(prompt) :], logps


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_greedy_answers_do_not_depend_on_the_batch(model, prompts, batch_size):
    results = generate(model, prompts, max_new_tokens=25, stop_ids=STOPS, batch_size=batch_size)
    assert {result.finished for result in results} == {True, False}
    for prompt, result in zip(prompts, results, strict=True):
        tokens, logps = _greedy_without_cache(model, prompt, 25)
        assert result.tokens == tokens
        assert result.finished == (tokens[-1] in STOPS)
        torch.testing.assert_close(result.logps, logps, atol=1e-4, rtol=1e-4)


def test_sampled_logps_are_those_of_a_forward_pass(model, prompts):
    sampling = Sampling(temperature=0.8, top_k=20, repetition_penalty=1.2)
    results = generate(model, prompts, max_new_tokens=8, stop_ids=STOPS, sampling=sampling, seed=3, batch_size=8)
    for prompt, result in zip(prompts, results, strict=True):
        ids = torch.tensor([prompt + result.tokens])
        with torch.no_grad():
            logp = model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[0, len(prompt) - 1 :, 0]
        torch.testing.assert_close(torch.tensor(result.logps), logp, atol=1e-4, rtol=1e-4)


def test_the_same_seed_gives_the_same_text_and_another_another(model, prompts):
    def texts(seed):
        return [
            g.tokens for g in generate(model, prompts, max_new_tokens=8, stop_ids=STOPS, sampling=Sampling(), seed=seed)
        ]

    assert texts(1) == texts(1) != texts(2)


def test_sampled_answers_do_not_depend_on_the_batch_and_a_stream_says_the_same(model, prompts):
    settings = {"max_new_tokens": 8, "stop_ids": STOPS, "sampling": Sampling(top_p=0.95), "seed": 4}
    whole, split = (generate(model, prompts, batch_size=size, **settings) for size in (64, 5))
    assert [generation.tokens for generation in whole] == [generation.tokens for generation in split]
    assert list(stream(model, prompts[0], **settings)) == whole[0].tokens


def test_an_answer_ends_unfinished_where_the_positions_end(model):
    prompts = [[5] * 38, [5] * 40, [5] * 41, [5] * 10]
    results = generate(model, prompts, max_new_tokens=100, stop_ids=(), batch_size=4)
    assert [len(result.tokens) for result in results] == [3, 1, 0, 31]
    assert not any(result.finished for result in results)
    assert [len(list(stream(model, p, max_new_tokens=100, stop_ids=()))) for p in prompts] == [3, 1, 0, 31]


def test_a_session_of_several_turns_equals_fresh_streams(model):
    session, history = Session(model), [7, 8, 9]
    for user in ([10, 11], [12], [13, 14, 15]):
        history = history + user
        settings = {"max_new_tokens": 5, "stop_ids": STOPS, "sampling": GREEDY}
        answer = list(session.stream(history, **settings))
        assert answer == list(stream(model, history, **settings))
        history = history + answer
    edited = [7, 8, 20, 21]  # the conversation is reset in the middle of what the cache holds
    assert list(session.stream(edited, **settings)) == list(stream(model, edited, **settings))


@torch.inference_mode()
def test_compacted_and_truncated_rows_go_on_as_if_alone(model):
    ids = torch.randint(5, 50, (4, 12))
    lengths = [12, 3, 9, 6]
    decoder = InferenceModel(model)
    cache = decoder.new_cache(4, 20)
    decoder.hidden(ids, cache)
    cache.advance(lengths)
    cache.compact([3, 1])
    assert cache.lengths == [6, 3]
    cache.truncate(5)
    new = torch.tensor([[30, 31], [32, 33]])
    logits = decoder.logits(decoder.hidden(new, cache))
    for row, (old, length) in enumerate([(3, 5), (1, 3)]):
        alone = model(torch.cat((ids[old, :length], new[row]))[None])
        torch.testing.assert_close(logits[row], alone[0, -2:], atol=1e-5, rtol=1e-4)


def test_generation_leaves_the_model_trainable_and_its_weights_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.compute_dtype = torch.bfloat16
    try:
        generate(model, [[5, 6, 7]], max_new_tokens=4, stop_ids=STOPS)
    finally:
        model.compute_dtype = torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter, before[name])
    model(torch.tensor([[5, 6]])).sum().backward()
