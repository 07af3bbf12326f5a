"""transformers is the oracle: the same weights give the same logits, whichever side wrote them."""

import json

import pytest
import torch

from mengya.generate.inference import InferenceModel
from mengya.model.attention import AttentionMask
from mengya.model.checkpoint import load_model, save_model
from mengya.model.config import ModelConfig
from mengya.model.heads import RewardModel
from mengya.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": 97, "width": 64, "num_layers": 2, "num_heads": 4, "ffn_width": 96, "max_positions": 64}
CONFIGS = {
    "llama-tied": ModelConfig(**SHAPE),
    "llama-untied-gqa": ModelConfig(**SHAPE, num_kv_heads=2, tie_embeddings=False, rope_theta=50000.0),
    "llama-mqa-head-width": ModelConfig(**SHAPE, num_kv_heads=1, head_width=32, norm_epsilon=1e-5),
    "qwen3-tied-gqa": ModelConfig(**SHAPE, num_kv_heads=2, qk_norm=True, rope_theta=1e6),
    "qwen3-untied-head-width": ModelConfig(**SHAPE, head_width=24, qk_norm=True, tie_embeddings=False),
}
GENERATION = {"eos_token_id": [2, 0], "pad_token_id": 0}


def _random_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights far from their initial values (norms too), so that no factor can hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            base = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(base + 0.2 * torch.randn(parameter.shape, generator=generator))


def _ids(rows: int, tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 97, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_saved_here_loads_there_with_equal_logits(config, tmp_path):
    model = Transformer(config)
    _random_weights(model)
    save_model(model, tmp_path / "m", generation=GENERATION)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(report.values()), report
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM")
    assert sum(p.numel() for p in theirs.parameters()) == config.num_parameters
    ids = _ids(3, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=0)
    assert theirs.generation_config.eos_token_id == [2, 0]
    assert theirs.config.bos_token_id is None


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_saved_there_loads_here_with_equal_logits_with_and_without_cache(config, tmp_path):
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config.to_huggingface()), dtype=torch.float32
    )
    _random_weights(theirs)
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours = load_model(tmp_path)
    assert ours.config == config
    ids = _ids(2, 12)
    decoder = InferenceModel(ours)
    cache = decoder.new_cache(2, 12)
    with torch.no_grad():
        expected = theirs(ids).logits
        steps = []
        for token in range(12):
            steps.append(decoder.logits(decoder.hidden(ids[:, token : token + 1], cache)))
            cache.advance([1, 1])
        torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=1e-4, rtol=0)


def test_long_rows_take_several_attention_blocks_and_still_agree(tmp_path):
    config = ModelConfig(vocab_size=97, width=32, num_layers=1, num_heads=2, num_kv_heads=1, max_positions=300)
    model = Transformer(config)
    _random_weights(model)
    save_model(model, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    ids = _ids(1, 300)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_gradients_agree(tmp_path):
    model = Transformer(CONFIGS["qwen3-tied-gqa"])
    _random_weights(model)
    save_model(model, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    ids = _ids(2, 16)
    for logits in (model(ids), theirs(ids).logits):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama-tied", "qwen3-tied-gqa"])
def test_reward_model_scores_padded_batches_as_sequence_classification_does(name, tmp_path):
    model = RewardModel(CONFIGS[name])
    _random_weights(model)
    save_model(model, tmp_path / "m", generation=GENERATION)
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not any(report.values()), report
    ids, lengths = _ids(3, 10), torch.tensor([10, 4, 7])
    is_pad = torch.arange(10) >= lengths[:, None]
    ids[is_pad] = GENERATION["pad_token_id"]
    with torch.no_grad():
        expected = theirs(ids, attention_mask=(~is_pad).long()).logits.squeeze(-1)
        torch.testing.assert_close(model(ids, lengths), expected, atol=1e-4, rtol=0)
        every = model.scores(ids)
        torch.testing.assert_close(every[torch.arange(3), lengths - 1], expected, atol=1e-4, rtol=0)
        reloaded = load_model(tmp_path / "m", head="score")
        torch.testing.assert_close(reloaded(ids, lengths), expected, atol=1e-4, rtol=0)


def test_config_written_by_transformers_4_is_read(tmp_path):
    """4.x knows rope_theta at the top and torch_dtype, and no rope_parameters."""
    config = CONFIGS["llama-untied-gqa"].to_huggingface()
    del config["rope_parameters"], config["dtype"]
    assert ModelConfig.from_huggingface(config) == CONFIGS["llama-untied-gqa"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.rope_parameters["rope_theta"] == 50000.0


def test_packed_documents_equal_transformers_on_each_document(tmp_path):
    config = CONFIGS["llama-untied-gqa"]
    model = Transformer(config)
    _random_weights(model)
    save_model(model, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    first, second = _ids(1, 7), _ids(1, 11, seed=2)
    documents = torch.tensor([[0] * 7 + [1] * 11])
    positions = torch.cat((torch.arange(7), torch.arange(11)))[None]
    with torch.no_grad():
        packed = model(
            torch.cat((first, second), dim=1),
            positions_BT=positions,
            attention=AttentionMask.packed(documents, torch.float32),
        )
        torch.testing.assert_close(packed[:, :7], theirs(first).logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(packed[:, 7:], theirs(second).logits, atol=1e-4, rtol=0)
