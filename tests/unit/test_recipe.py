"""Every mistake in a recipe is one line that says what, where and how to mend it; nothing has run by then."""

import pytest

from mengya.errors import UserError
from mengya.recipe import load_recipe
from mengya.stages.check import check_recipe

GOOD = """\
name: small
pretrain:
  learning_rate: 1e-3
  tokens: 1e6
corpus:
  documents: [playground]
  conversations: [playground]
  preferences: [playground]
"""


@pytest.fixture
def recipe_file(tmp_path):
    def write(text=GOOD):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_numbers_in_scientific_notation_are_numbers(recipe_file):
    recipe = load_recipe(recipe_file())
    assert recipe.pretrain.learning_rate == 0.001
    assert recipe.pretrain.tokens == 1_000_000


@pytest.mark.parametrize(
    ("override", "read"),
    [("sft.epochs=3", lambda r: r.sft.epochs == 3), ("dpo.beta=2e-1", lambda r: r.dpo.beta == 0.2)],
)
def test_set_overrides_a_key(recipe_file, override, read):
    assert read(load_recipe(recipe_file(), [override]))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (GOOD + "sfft: {}\n", ["recipe.yaml:9", "sfft", "did you mean 'sft'"]),
        (GOOD.replace("learning_rate", "lerning_rate"), ["recipe.yaml:3", "did you mean 'learning_rate'"]),
        (GOOD.replace("1e-3", "fast"), ["recipe.yaml:3", "pretrain.learning_rate", "'fast'"]),
        (GOOD.replace("1e-3", "-1"), ["recipe.yaml:3", "greater than 0"]),
        (GOOD.replace("name: small\n", ""), ["'name' is missing"]),
        (GOOD + "seed: 1\nseed: 2\n", ["recipe.yaml:10", "twice"]),
        (GOOD + "stages: [corpus, traine]\n", ["recipe.yaml:9", "'traine'"]),
        ("- a\n- b\n", ["mapping of keys"]),
        ("name: [a\n", ["recipe.yaml:", "not valid YAML"]),
        (GOOD + "identity: {name: '${MENGYA_NOT_SET}'}\n", ["MENGYA_NOT_SET"]),
    ],
)
def test_a_mistake_names_the_line_and_the_mend(recipe_file, text, parts):
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_file(text))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sft.epoch=3", ["--set sft.epoch", "did you mean 'epochs'"]),
        ("sft.epochs", ["not KEY=VALUE"]),
        ("=3", ["not KEY=VALUE"]),
        ("seed=abc", ["--set seed", "'abc'"]),
        ("name.x=1", ["no keys inside"]),
        ("corpus.documents.7=1", ["list of 1"]),
        ("corpus.documents.0=[", ["not valid YAML"]),
    ],
)
def test_a_bad_override_is_named_as_such(recipe_file, override, parts):
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_file(), [override])
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model={preset: 3m, num_heads: 5}", "model.num_heads"),
        ("model={preset: 3m, num_kv_heads: 6}", "model.num_kv_heads"),
        ("model={preset: 3m, num_kv_heads: 2}", "model.num_kv_heads"),
        ("model={preset: 3mm}", "3m"),
        ("model={width: 64}", "model.num_layers"),
        ("sft.sequence_length=4096", "sft.sequence_length"),
        ("pretrain.micro_batch_tokens=100", "pretrain.micro_batch_tokens"),
        ("pretrain.batch_tokens=5000", "pretrain.batch_tokens"),
        ("ppo.max_new_tokens=256", "ppo.max_new_tokens"),
        ("corpus.documents=[{path: /nowhere/a.jsonl}]", "/nowhere/a.jsonl"),
        ("corpus.documents=[{format: text}]", "without a path"),
        ("corpus.conversations=[]", "corpus.conversations"),
        ("stages=[corpus, corpus]", "twice"),
    ],
)
def test_impossible_combinations_are_refused_before_anything_runs(recipe_file, override, key):
    with pytest.raises(UserError) as caught:
        check_recipe(load_recipe(recipe_file(), [override]))
    assert key in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16"])
def test_a_recipe_in_another_encoding(tmp_path, encoding):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("name: 萌芽\n".encode(encoding))
    with pytest.raises(UserError, match="UTF-8"):
        load_recipe(path)
