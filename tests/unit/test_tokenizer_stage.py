"""The stages tokenizer and shards with an imported tokenizer, token files and a source that is added later."""

import json

import numpy as np
import pytest
import yaml
from small_tokenizer import TEXTS, small_tokenizer

from mengya.data.shards import TokenShards
from mengya.data.token_files import TokenFiles
from mengya.errors import UserError
from mengya.recipe import load_recipe
from mengya.run import Run
from mengya.stages import STAGES
from mengya.stages.check import check_recipe, model_config, vocab_size
from mengya.stages.runner import run_recipe
from mengya.tokenizer.encode import load_tokenizer
from mengya.tokenizer.train import save_tokenizer


@pytest.fixture
def imported(tmp_path):
    save_tokenizer(small_tokenizer().backend, tmp_path / "imported")
    return tmp_path / "imported"


@pytest.fixture
def token_file(tmp_path):
    """Forty documents of the small tokenizer in two files, each closed by its end of text."""
    for half in range(2):
        ids = [i for text in TEXTS[half * 20 : half * 20 + 20] for i in [*small_tokenizer().encode(text), 0]]
        np.array(ids, "<u2").tofile(tmp_path / f"part{half}.bin")
    return str(tmp_path / "part*.bin")


def source(path, name, texts):
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (path / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    return {"path": str(path / f"{name}.jsonl"), "name": name, "format": "text"}


def recipe(tmp_path, **changes):
    shape = {"width": 64, "num_layers": 1, "num_heads": 1, "ffn_width": 64, "max_positions": 256}
    content = {
        "name": "t",
        "stages": ["corpus", "tokenizer", "shards"],
        "corpus": {"documents": [], "num_processes": 1, "near_duplicate_threshold": 1.0},
        "shards": {"num_workers": 1},
        "model": shape,
    }
    content |= changes
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return load_recipe(tmp_path / "t.yaml")


def test_token_files_alone_make_the_shards_and_hold_documents_out(tmp_path, imported, token_file):
    shards = {"token_files": [token_file], "held_out_documents": 4, "num_workers": 1}
    asked = recipe(tmp_path, tokenizer={"path": str(imported)}, shards=shards)
    run = run_recipe(asked, tmp_path / "run")
    assert load_tokenizer(tmp_path / "run/tokenizer/model").fingerprint == small_tokenizer().fingerprint
    train = TokenFiles(tmp_path / "run/shards/tokens")
    seen = [small_tokenizer().decode(train[i][1:-1]) for i in range(len(train))]
    validation = TokenShards(tmp_path / "run/shards/tokens", "validation")
    held = [small_tokenizer().decode(validation[i][1:-1]) for i in range(len(validation))]
    assert len(held) == 4
    assert sorted(seen + held) == sorted(TEXTS[:40])
    counts = run.manifest("shards")["counts"]
    assert (counts["token_files"]["files"], counts["token_files"]["documents"]) == (2, 36)
    again = tmp_path / "part0.bin"
    again.write_bytes(again.read_bytes()[: -2 * 3])
    assert "part0.bin changed" in str(Run(tmp_path / "run").why_stale(asked, STAGES["shards"]))


def test_the_imported_vocabulary_rules_the_models_before_anything_runs(tmp_path, imported):
    asked = recipe(tmp_path, tokenizer={"path": str(imported)}, corpus={"documents": ["playground"]})
    check_recipe(asked)
    assert model_config(asked, vocab_size(asked)).vocab_size == 370
    with pytest.raises(UserError, match=r"5000 tokens are asked for, but .* has 370"):
        check_recipe(recipe(tmp_path, tokenizer={"path": str(imported), "vocab_size": 5000}))


def test_what_an_import_lacks_is_said_before_anything_runs(tmp_path, imported, token_file):
    with pytest.raises(UserError, match="without the tokenizer that made them"):
        check_recipe(recipe(tmp_path, shards={"token_files": [token_file]}))
    with pytest.raises(UserError, match=r"no such file: .*none\.bin"):
        check_recipe(
            recipe(tmp_path, tokenizer={"path": str(imported)}, shards={"token_files": [str(tmp_path / "none.bin")]})
        )
    with pytest.raises(UserError, match=r"no tokenizer\.json here"):
        check_recipe(recipe(tmp_path, tokenizer={"path": str(tmp_path)}))
    (imported / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")
    with pytest.raises(UserError, match="no chat template"):
        check_recipe(recipe(tmp_path, tokenizer={"path": str(imported)}, stages=["corpus", "tokenizer", "sft"]))


@pytest.mark.parametrize(("section", "key"), [("pretrain", "weights"), ("tokenizer", "shares")])
def test_a_weight_or_share_of_no_source_is_said_before_anything_runs(tmp_path, section, key):
    corpus = {"documents": ["playground"]}
    check_recipe(recipe(tmp_path, corpus=corpus, **{section: {key: {"playground": 0.5}}}))
    with pytest.raises(UserError, match=rf"{section}\.{key}: no source '集市'"):
        check_recipe(recipe(tmp_path, corpus=corpus, **{section: {key: {"集市": 0.5}}}))


def test_a_source_added_to_a_run_leaves_the_others_shards_as_they_are(tmp_path, imported):
    sources = [source(tmp_path, "河边", TEXTS), source(tmp_path, "集市", [text[::-1] for text in TEXTS])]
    corpus = {"documents": sources[:1], "num_processes": 1, "near_duplicate_threshold": 1.0, "validation_fraction": 0.1}
    settings = {"tokenizer": {"path": str(imported)}}
    run_recipe(recipe(tmp_path, corpus=corpus, **settings), tmp_path / "run")
    tokens = tmp_path / "run/shards/tokens"
    before = (tokens / "train-河边-00000.bin").stat().st_ino
    run_recipe(recipe(tmp_path, corpus=corpus | {"documents": sources[::-1]}, **settings), tmp_path / "run")
    assert (tokens / "train-河边-00000.bin").stat().st_ino == before, "the very same file, not one made again"
    assert set(TokenShards(tokens).source_names) == {"河边", "集市"}
