"""The one dial: shapes of any size, and the rates, batch and horizon that follow from it."""

import math

import pytest

from mengya.errors import UserError
from mengya.model.presets import PRESETS, parse_size, preset, sized
from mengya.settings import PretrainSettings, Recipe
from mengya.stages.check import model_config
from mengya.stages.dial import REFERENCE_WIDTH, batch_tokens, rates, with_dial

VOCABULARY = {"3m": 3000, "7m": 6400, "12m": 6400, "26m": 6400, "50m": 8192}


@pytest.mark.parametrize("name", VOCABULARY)
def test_presets_up_to_50m_are_what_the_rules_give(name):
    assert sized(name, VOCABULARY[name]) == preset(name, VOCABULARY[name])


@pytest.mark.parametrize(
    ("size", "vocab_size"), [("1m", 3000), ("5m", 6400), ("40m", 6400), ("0.1b", 16000), ("0.3b", 32000), ("2b", 64000)]
)
def test_any_size_is_met(size, vocab_size):
    config = sized(size, vocab_size)
    assert config.num_parameters == pytest.approx(parse_size(size), rel=0.07)
    assert config.head_width == 64
    assert 20 <= config.width / config.num_layers <= 120


def test_width_and_depth_grow_with_size():
    shapes = [sized(f"{millions}m", 6400) for millions in (5, 20, 80, 300, 1200)]
    assert [shape.width for shape in shapes] == sorted({shape.width for shape in shapes})
    depths = [shape.num_layers for shape in shapes]
    assert depths == sorted(depths)
    assert depths[-1] > depths[0]


def test_what_is_said_of_the_shape_stays():
    config = sized("40m", 6400, num_layers=16, tie_embeddings=False)
    assert (config.num_layers, config.tie_embeddings) == (16, False)
    assert config.num_parameters == pytest.approx(40e6, rel=0.15)


@pytest.mark.parametrize("size", ["", "big", "40 tons", "12"])
def test_no_size(size):
    with pytest.raises(UserError, match="model"):
        parse_size(size)


def test_a_vocabulary_larger_than_the_model_is_refused():
    with pytest.raises(UserError, match="vocabulary"):
        sized("3m", 64000)


def test_unknown_presets_point_to_the_dial():
    with pytest.raises(UserError, match=r"model\.size"):
        preset("40m", 6400)


def test_preset_and_size_together_are_refused():
    recipe = Recipe(name="x", model={"preset": "3m", "size": "40m"})
    with pytest.raises(UserError, match="leave one out"):
        model_config(recipe, 6400)


def test_batch_follows_the_power_law_of_deepseek():
    # Bi et al. 2024, figure 3: about 1 M tokens at 1e20 FLOPs.
    assert batch_tokens(1e20) == 1 << 20
    # At the compute of the quickstart, its own batch.
    assert batch_tokens(6 * 2.8e6 * 1.3e6) == 8192
    assert batch_tokens(1e6) == 4096


def test_rates_follow_the_width():
    narrow, wide = rates("pretrain", "adamw", 192), rates("pretrain", "adamw", 768)
    assert narrow["learning_rate"] == pytest.approx(4 * wide["learning_rate"])
    narrow, wide = rates("pretrain", "muon", 192), rates("pretrain", "muon", 768)
    assert narrow["learning_rate"] == pytest.approx(2 * wide["learning_rate"])
    assert narrow["matrix_learning_rate"] == wide["matrix_learning_rate"]
    # The quickstart's own rates at its own width.
    assert rates("pretrain", "muon", 192) == {"learning_rate": 1.2e-2, "matrix_learning_rate": 0.02}
    assert rates("sft", "muon", 192) == {"learning_rate": 1e-3, "matrix_learning_rate": 0.01}


def test_the_dial_sets_what_is_not_said_and_nothing_else():
    recipe = Recipe(
        name="x",
        model={"size": "26m"},
        pretrain={"learning_rate": 7e-3, "sequence_length": 128},
        dpo={"micro_batch": 4},
    )
    turned = with_dial(recipe)
    parameters = preset("26m", 6400).num_parameters
    assert turned.pretrain.tokens == 20 * parameters
    assert turned.pretrain.batch_tokens == batch_tokens(
        model_config(turned, 6400).flops_per_token(128) * turned.pretrain.tokens
    )
    assert math.log2(turned.pretrain.batch_tokens).is_integer()
    assert (turned.pretrain.learning_rate, turned.pretrain.sequence_length) == (7e-3, 128)
    assert turned.pretrain.micro_batch_tokens == "auto"
    assert turned.dpo.micro_batch_pairs == 4
    assert turned.sft.learning_rate == pytest.approx(5e-4 * 192 / 512, rel=1e-2)
    assert turned.sft.epochs == recipe.sft.epochs
    assert with_dial(turned) == turned


def test_a_stored_recipe_is_read_back_as_it_was_turned():
    turned = with_dial(Recipe(name="x", model={"size": "5m"}, pretrain={"tokens": 1000}))
    again = Recipe.model_validate(turned.model_dump(mode="json"))
    assert with_dial(again) == turned


def test_recipes_without_a_size_are_untouched():
    recipe = Recipe(name="x", model={"preset": "26m"})
    assert with_dial(recipe) is recipe


def test_every_preset_is_a_shape():
    assert all(preset(name, 32000).num_parameters > 0 for name in PRESETS)


def test_without_the_dial_pretrainings_rate_is_the_one_that_suits_its_optimizer():
    assert PretrainSettings().learning_rate == rates("pretrain", "muon", REFERENCE_WIDTH)["learning_rate"]
    assert PretrainSettings(optimizer="adamw").learning_rate == 1e-3
    assert PretrainSettings(optimizer="adamw", learning_rate=2e-3).learning_rate == 2e-3
    assert "learning_rate" not in PretrainSettings(optimizer="adamw").model_fields_set, (
        "what nobody said, the dial may set"
    )
