"""A damaged, foreign or ill-fitting model directory is one clear line; a good one comes back bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mengya.errors import UserError
from mengya.model.checkpoint import check_tokenizer, load_config, load_model, save_model
from mengya.model.config import ModelConfig
from mengya.model.heads import RewardModel
from mengya.model.presets import PRESETS, describe, preset
from mengya.model.transformer import Transformer

CONFIG = ModelConfig(vocab_size=40, width=32, num_layers=1, num_heads=4, num_kv_heads=2, tie_embeddings=False)


@pytest.fixture
def saved(tmp_path):
    save_model(Transformer(CONFIG), tmp_path / "model", generation={"eos_token_id": [2], "pad_token_id": 0})
    return tmp_path / "model"


def _change_weights(directory, change):
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _change_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_comes_back_bit_for_bit(tmp_path, qk_norm, tied):
    model = Transformer(
        ModelConfig(vocab_size=40, width=32, num_layers=2, num_heads=4, qk_norm=qk_norm, tie_embeddings=tied)
    )
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert sum(parameter.numel() for parameter in loaded.parameters()) == model.config.num_parameters


def test_half_precision_weights_are_read_as_float32(tmp_path):
    model = Transformer(CONFIG)
    save_model(model, tmp_path / "model", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == "bfloat16"
    for name, tensor in load_model(tmp_path / "model").state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].bfloat16().float())


def test_the_tokenizer_travels_with_the_model(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").write_text("{}")
    save_model(Transformer(CONFIG), tmp_path / "model", tokenizer_dir=tmp_path / "tokenizer")
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_a_failed_save_leaves_the_old_model(saved, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mengya.model.checkpoint.save_file", no_space)
    with pytest.raises(OSError, match="No space"):
        save_model(Transformer(CONFIG), saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_missing_tensor_is_named(saved):
    _change_weights(saved, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(UserError, match=r"'model\.norm\.weight' \[32\] is missing"):
        load_model(saved)


def test_an_unexpected_tensor_is_named(saved):
    _change_weights(saved, lambda weights: weights.update({"model.extra": torch.zeros(3)}))
    with pytest.raises(UserError, match=r"unexpected tensor 'model\.extra' \[3\]"):
        load_model(saved)


def test_a_mis_shaped_tensor_is_named_with_both_shapes_and_its_file(saved):
    name = "model.layers.0.self_attn.k_proj.weight"
    _change_weights(saved, lambda weights: weights.update({name: torch.zeros(32, 32)}))
    with pytest.raises(UserError, match=r"model\.safetensors: tensor .*k_proj.* \[32, 32\].* \[16, 32\]"):
        load_model(saved)


def test_a_config_that_does_not_fit_the_weights_is_told(saved):
    _change_config(saved, tie_word_embeddings=True)
    with pytest.raises(UserError, match="tie_word_embeddings is true"):
        load_model(saved)


@pytest.mark.parametrize("num_bytes", [0, 5, 300, 5000])
def test_a_truncated_file_is_told(saved, num_bytes):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_model(saved)


def test_a_pickle_is_refused_unread(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle"):
        load_model(saved)


def test_a_missing_shard_is_named_and_none_is_read_outside_the_directory(saved):
    (saved / "model.safetensors").rename(saved.parent / "elsewhere.safetensors")
    for file in ("model-00001-of-00002.safetensors", "../elsewhere.safetensors"):
        (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
        with pytest.raises(UserError, match="is missing"):
            load_model(saved)


def test_a_directory_without_a_model_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gpt2"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rope_scaling": {"rope_type": "linear", "factor": 2}, "rope_parameters": None},
        {"num_key_value_heads": 3},
        {"hidden_size": "32"},
    ],
)
def test_a_config_that_we_cannot_honour_is_refused_with_its_file(saved, changes):
    _change_config(saved, **changes)
    with pytest.raises(UserError, match=r"config\.json: "):
        load_config(saved)


def test_the_wrong_kind_of_model_is_told_as_such(saved, tmp_path):
    with pytest.raises(UserError, match="give a reward model"):
        load_model(saved, head="score")
    save_model(RewardModel(CONFIG), tmp_path / "reward")
    with pytest.raises(UserError, match="give a language model"):
        load_model(tmp_path / "reward")


def test_a_new_reward_model_has_the_language_models_trunk_and_scores_zero():
    model = Transformer(CONFIG)
    reward_model = RewardModel.from_language_model(model)
    ids = torch.randint(0, 40, (2, 5))
    assert torch.equal(reward_model.model(ids), model.hidden(ids))
    assert not reward_model.scores(ids).any()
    with torch.no_grad():
        reward_model.model.norm.weight.add_(1)
    assert not torch.equal(reward_model.model(ids), model.hidden(ids))


def test_a_tokenizer_larger_than_the_embedding_is_refused_and_a_smaller_one_not():
    check_tokenizer(CONFIG, 40, "tokenizer.json")
    check_tokenizer(CONFIG, 39, "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizer has 41 tokens"):
        check_tokenizer(CONFIG, 41, "tokenizer.json")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_heads": 5}, "model.num_heads"),
        ({"num_kv_heads": 8}, "model.num_kv_heads"),
        ({"num_kv_heads": 3}, "model.num_kv_heads"),
        ({"width": 12}, "model.head_width"),
        ({"num_layers": 0}, "model.num_layers"),
    ],
)
def test_an_impossible_shape_names_its_key_and_a_mend(changes, key):
    with pytest.raises(UserError) as error:
        ModelConfig(**{"vocab_size": 40, "width": 32, "num_layers": 1, "num_heads": 4} | changes)
    assert error.value.where == key
    assert error.value.mend


@pytest.mark.parametrize("size", PRESETS)
def test_a_preset_has_about_the_parameters_that_its_name_says(size):
    vocab_size = {"3m": 3000, "50m": 8000}.get(size, 6400 if size.endswith("m") else 32000)
    config = preset(size, vocab_size)
    named = float(size[:-1]) * {"m": 1e6, "b": 1e9}[size[-1]]
    assert config.num_parameters == pytest.approx(named, rel=0.45 if size == "0.1b" else 0.15)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Transformer(config).parameters()) == config.num_parameters
    assert f"{config.num_heads} heads" in describe(config)


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean '26m'"):
        preset("26mm", 100)
