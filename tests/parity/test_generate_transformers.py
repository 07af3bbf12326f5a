"""Greedy text through transformers' generate and through ours is the same, token by token."""

import random

import pytest
import torch

from mengya.generate.engine import generate
from mengya.generate.sampling import Sampling, adjust
from mengya.model.checkpoint import save_model
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

EOS, PAD = [2, 5, 6, 7], 0


def _model(**changes) -> Transformer:
    config = ModelConfig(
        **{"vocab_size": 60, "width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "max_positions": 48}
        | changes
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_generation_is_the_same_token_by_token(qk_norm, penalty, tmp_path):
    model = _model(qk_norm=qk_norm)
    save_model(model, tmp_path / "m", generation={"eos_token_id": EOS, "pad_token_id": PAD})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    rng = random.Random("0:prompts")
    prompts = [[rng.randrange(8, 60) for _ in range(rng.randrange(1, 12))] for _ in range(9)]
    ours = generate(
        model,
        prompts,
        max_new_tokens=20,
        stop_ids=EOS,
        sampling=Sampling(temperature=0, repetition_penalty=penalty),
        batch_size=4,
    )
    assert {generation.finished for generation in ours} == {True, False}, "the test should see both endings"
    for prompt, generation in zip(prompts, ours, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, repetition_penalty=penalty
        )[0, len(prompt) :].tolist()
        assert generation.tokens == expected
        assert generation.finished == (expected[-1] in EOS)


def test_the_sampled_distribution_is_that_of_transformers_warpers():
    logits = 3 * torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    prompt = torch.randint(0, 40, (5, 6), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(5, 40, dtype=torch.bool).scatter_(1, prompt, True)
    ours = adjust(logits, Sampling(temperature=0.7, top_k=12, top_p=0.8, repetition_penalty=1.2), seen)
    theirs = logits
    for process in (
        transformers.RepetitionPenaltyLogitsProcessor(1.2),
        transformers.TemperatureLogitsWarper(0.7),
        transformers.TopKLogitsWarper(12),
        transformers.TopPLogitsWarper(0.8),
    ):
        theirs = process(prompt, theirs)
    torch.testing.assert_close(ours, theirs)
