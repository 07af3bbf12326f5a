"""`inspect` says what a path holds; `doctor` says what is missing."""

import json
from types import SimpleNamespace

import pytest
from synthetic_run import interrupt, make_run

from mengya.errors import UserError
from mengya.files import read_json, write_json, write_jsonl
from mengya.serve import doctor
from mengya.serve.inspect import inspect, stage_state


def test_a_run_shows_what_is_done_interrupted_and_not_run(tmp_path, capsys):
    run = make_run(tmp_path / "r", ("corpus", "tokenizer", "pretrain"))
    interrupt(run, "pretrain")
    inspect(run.directory)
    out = capsys.readouterr().out
    states = {line.split()[0]: line.split()[1] for line in out.splitlines() if line.startswith(("c", "t", "p", "s"))}
    assert states["corpus"] == states["tokenizer"] == "done"
    assert states["pretrain"] == "interrupted"
    assert states["sft"] == "not"
    assert "characters per token 1.710" in out


def test_a_stage_is_stale_when_its_section_of_the_recipe_or_its_input_changed(tmp_path):
    run = make_run(tmp_path / "r", ("corpus", "tokenizer", "shards"))
    recipe = run.recipe()
    paths = {name: run.directory / name / "manifest.json" for name in ("corpus", "tokenizer", "shards")}
    manifests = {name: read_json(path) for name, path in paths.items()}
    manifests["corpus"]["outputs"] = {"corpus/documents": "aaaa"}
    manifests["tokenizer"] |= {
        "inputs": {"corpus/documents": "aaaa"},
        "settings": {"tokenizer": recipe.model_dump(mode="json")["tokenizer"]},
    }
    manifests["shards"]["inputs"] = {"corpus/documents": "bbbb"}
    for name, path in paths.items():
        write_json(path, manifests[name])
    assert stage_state(run, "tokenizer") == "done"
    assert stage_state(run, "shards") == "stale: corpus/documents changed"
    run.save_recipe(recipe.model_copy(update={"tokenizer": recipe.tokenizer.model_copy(update={"vocab_size": 512})}))
    assert stage_state(run, "tokenizer") == "stale: the recipe's tokenizer changed"
    write_json(paths["corpus"], manifests["corpus"] | {"outputs": {"corpus/gone": "cccc"}})
    assert stage_state(run, "corpus") == "stale: corpus/gone is missing"


def test_a_stage_shows_its_metrics_with_intervals(tmp_path, capsys):
    run = make_run(tmp_path / "r", ("sft",))
    inspect(run.directory / "sft")
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("sft.qa_accuracy"))
    assert line.split() == ["sft.qa_accuracy", "88.0%", "[84.3%,", "91.7%]", "300"]


def test_a_model_directory_shows_shape_weights_and_tokenizer(tmp_path, capsys):
    from mengya.model.checkpoint import save_model
    from mengya.model.config import ModelConfig
    from mengya.model.transformer import Transformer
    from mengya.tokenizer.train import save_tokenizer, train_tokenizer

    save_tokenizer(train_tokenizer(["你好，世界。"] * 4, 270, max_characters=1000, seed=1), tmp_path / "tokenizer")
    model = Transformer(ModelConfig(vocab_size=270, width=16, num_layers=1, num_heads=2, qk_norm=True))
    save_model(model, tmp_path / "model", tokenizer_dir=tmp_path / "tokenizer")
    inspect(tmp_path / "model")
    out = capsys.readouterr().out
    assert f"Qwen3ForCausalLM · {sum(p.numel() for p in model.parameters()):,} parameters" in out
    assert f"model.safetensors · {len(model.state_dict())} tensors · F32" in out
    assert "270 tokens" in out


def test_records_are_shown_as_what_they_are_with_markup_as_plain_text(tmp_path, capsys):
    rows = [
        {"text": "[red]一篇[/red]文章", "source": "a"},
        {"messages": [{"role": "user", "content": "问？"}, {"role": "assistant", "content": "答。"}], "source": "b"},
        {"prompt": [{"role": "user", "content": "谁？"}], "chosen": "好的", "rejected": "坏的", "source": "c"},
        {"prefix": "猫是", "choices": ["动物", "植物"], "answer": 0},
        {"step": 3, "loss": 1.5},
        {"text": "第六行"},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    inspect(tmp_path / "rows.jsonl", sample=6)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for expected in ("[red]一篇[/red]文章", "user  问？", "assistant  答。", "user  谁？"):
        assert expected in lines
    assert "prefix  猫是" in lines
    assert json.dumps(rows[4]) in lines
    assert any(line.split() == ["好的", "坏的"] for line in lines)
    assert any("6 of 6 rows" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent", None, "no such file or directory"),
        ("notes.md", "你好", "neither a run"),
        ("empty.jsonl", "", "an empty file"),
        ("broken.jsonl", '{"a"\n', r"broken.jsonl: no row can be read \(invalid_json 1\)"),
    ],
)
def test_the_users_mistakes_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        inspect(tmp_path / name)


def test_the_doctor_names_a_missing_package_and_how_to_get_it(monkeypatch, capsys):
    requires = ["numpy>=2", "surely-not-installed>=1", 'also-not-installed; extra == "dev"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: requires)
    assert doctor.doctor() is False
    lines = capsys.readouterr().out.splitlines()
    assert "!!  packages     1 of 2 present — pip install surely-not-installed" in lines
    assert "--  [dev]        without also-not-installed — pip install 'mengya[dev]', if wanted" in lines
    assert any(line.startswith("ok  torch") for line in lines)


def test_the_doctor_wants_disk_and_memory(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: 2**15)
    assert doctor._disk().ok is False
    assert doctor._memory().ok is False
