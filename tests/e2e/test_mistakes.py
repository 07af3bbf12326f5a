"""The user's mistakes through the command line: one clear line, exit code 2, no traceback; or counted rejects."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from mengya.corpus.parts import read_documents
from mengya.tokenizer.train import save_tokenizer, train_tokenizer
from road import TINY, is_done, manifests, mengya, the_only_line

PLACES = ("河边", "山脚下", "村口", "学校里", "菜园旁", "桥头", "码头", "祠堂前")
DEEDS = ("唱歌", "放风筝", "钓鱼", "看书", "种白菜", "下棋", "画画", "讲故事", "喂小羊")


def _line(number):
    text = f"第{number}天的日记。" + "".join(
        f"{PLACES[(number + k) % 8]}有{(number * 31 + k * 17) % 97}个人在{DEEDS[(number * 5 + k * k) % 9]}，大家都很高兴。"
        for k in range(5)
    )
    return json.dumps({"text": text}, ensure_ascii=False)


LINES = [_line(number) for number in range(60)]


@pytest.fixture
def corpus_of(tmp_path):
    """A function: file content → the finished `mengya corpus` on it; `fields` go into the source."""

    def build(content, *arguments, fields="format: text", name="docs.jsonl"):
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        recipe = tmp_path / "own.yaml"
        recipe.write_text(
            f"name: own\nseed: 1\nstages: [corpus]\n"
            f"corpus:\n  documents: [{{path: '{file}', {fields}}}]\n  validation_fraction: 0.2\n",
            encoding="utf-8",
        )
        return mengya("run", recipe, "--out", tmp_path / "run", *arguments)

    return build


# ----------------------------------------------------------------------------------------------------- broken inputs


def test_a_missing_file(corpus_of, tmp_path):
    line = the_only_line(corpus_of(None))
    assert "corpus.documents.0.path: no such file" in line
    assert str(tmp_path / "docs.jsonl") in line
    assert not (tmp_path / "run").exists(), "it is found before anything is made"


def test_an_empty_file(corpus_of, tmp_path):
    assert f"{tmp_path / 'docs.jsonl'}: the file is empty" in the_only_line(corpus_of(""))


def test_a_few_invalid_lines_are_counted_and_said_never_fatal(corpus_of, tmp_path):
    done = corpus_of("\n".join([*LINES[:10], '{"text": "断了', *LINES[10:], "[1, 2"]))
    assert done.returncode == 0, done.stderr
    assert "2 of 62 rows rejected (invalid_json 2)" in done.stderr
    manifest = json.loads((tmp_path / "run" / "corpus" / "manifest.json").read_text())
    assert manifest["counts"]["rejects"] == {"invalid_json": 2}
    rows = [json.loads(line) for line in (tmp_path / "run" / "corpus" / "rejects.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in rows] == [
        (str(tmp_path / "docs.jsonl"), 11),
        (str(tmp_path / "docs.jsonl"), 62),
    ]


def test_many_invalid_lines_are_fatal_until_the_recipe_allows_them(corpus_of, tmp_path):
    content = "\n".join([*LINES, *["{not json"] * 20])
    line = the_only_line(corpus_of(content))
    assert f"{tmp_path / 'docs.jsonl'}:61: 20 of 80 rows rejected (25.0%, allowed 5.0%)" in line
    assert "invalid_json" in line
    assert "corpus.max_reject_share" in line
    assert (tmp_path / "run" / "corpus" / "rejects.jsonl").read_text().count("\n") == 20
    assert corpus_of(content, "--set", "corpus.max_reject_share=0.3").returncode == 0


def test_a_gb18030_file_is_read_as_what_it_is(corpus_of, tmp_path):
    def kept():
        folder = tmp_path / "run" / "corpus" / "documents"
        return sorted(document.text for split in ("train", "validation") for document in read_documents(folder, split))

    assert corpus_of("\n".join(LINES)).returncode == 0
    expected = kept()
    assert corpus_of("\n".join(LINES).encode("gb18030")).returncode == 0
    assert kept() == expected
    manifest = json.loads((tmp_path / "run" / "corpus" / "manifest.json").read_text())
    assert manifest["counts"]["encodings"] == {"gb18030": 1}


def test_lines_in_two_encodings_are_counted(corpus_of, tmp_path):
    done = corpus_of("\n".join(LINES).encode() + b"\n" + LINES[0].encode("gb18030") + b"\n")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "corpus" / "manifest.json").read_text())["counts"]["rejects"] == {
        "undecodable": 1
    }


@pytest.mark.parametrize("fields", ["format: text", "name: mine"])
def test_a_wrong_field_is_named(corpus_of, fields):
    line = the_only_line(corpus_of("\n".join(LINES).replace('"text"', '"body"'), fields=fields))
    assert "body" in line
    assert "columns" in line, "the mend is to say which column is meant"
    assert "'text'" in line or "layout" in line


def test_renamed_columns_mend_it(corpus_of):
    content = "\n".join(LINES).replace('"text"', '"body"')
    done = corpus_of(content, fields="format: text, columns: {text: body}")
    assert done.returncode == 0, done.stderr


def test_a_file_of_an_unknown_kind(corpus_of):
    assert "unknown suffix .docx" in the_only_line(corpus_of("\n".join(LINES), name="docs.docx"))


# ---------------------------------------------------------------------------------------- recipes and the command line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("run", "nowhere.yaml"), ["nowhere.yaml: no such recipe"]),
        (("run", TINY, "--set", "sft.epoch=3"), ["--set sft.epoch", "did you mean 'epochs'?"]),
        (("run", TINY, "--set", "sft.epochs"), ["--set sft.epochs: not KEY=VALUE", "--set sft.epochs=3"]),
        (("run", TINY, "--set", "sft.epochs=viele"), ["--set sft.epochs", "'viele'", "number"]),
        (("run", TINY, "--set", "model.num_heads=3"), ["model.num_heads", "64"]),
        (("run", TINY, "--set", "model.num_kv_heads=4"), ["model.num_kv_heads"]),
        (("run", TINY, "--set", "sft.sequence_length=512"), ["sft.sequence_length", "256 positions"]),
        (("run", TINY, "--stages", "corpus,stf"), ["--stages: unknown stage 'stf'", "known stages: corpus,"]),
        (("plan", TINY, "--set", "sfft={}"), ["unknown key 'sfft'", "did you mean 'sft'?"]),
        (("report", "."), ["not a run directory", "runs/NAME"]),
        (("report", "nowhere"), ["nowhere: not a run directory"]),
        (("inspect", "nowhere"), ["nowhere: no such file or directory"]),
        (("chat", "nowhere", "-p", "你好"), ["nowhere: no such directory"]),
        (("chat", ".", "-p", "你好"), ["no model here (no config.json)"]),
        (("chat", ".", "--stage", "corpus", "-p", "你好"), ["--stage: 'corpus' is not a chat stage", "sft"]),
    ],
    ids=lambda value: " ".join(map(str, value[:1] + value[-1:])) if isinstance(value, tuple) else "",
)
def test_one_line_says_what_where_and_the_mend(arguments, parts, tmp_path):
    line = the_only_line(mengya(*arguments, cwd=tmp_path))
    for part in parts:
        assert part in line
    assert " — " in line, "a mend is given"
    assert not any(tmp_path.iterdir()), "nothing was made"


def test_an_unknown_key_is_shown_with_its_line(tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text("name: own\nsft:\n  learningrate: 1e-3\n")
    line = the_only_line(mengya("run", recipe, cwd=tmp_path))
    assert f"{recipe}:3: unknown key 'sft.learningrate' — did you mean 'learning_rate'?" in line


def test_a_folder_that_holds_something_else_is_not_touched(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    line = the_only_line(mengya("run", TINY, "--out", tmp_path / "photos"))
    assert f"{tmp_path / 'photos'}: this folder holds something that is not a run — give another --out" in line
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]


@pytest.mark.parametrize("inside", [False, True])
def test_out_is_a_file(tmp_path, inside):
    (tmp_path / "notes.txt").write_text("notes")
    out = tmp_path / "notes.txt" / "run" if inside else tmp_path / "notes.txt"
    assert "give another --out" in the_only_line(mengya("run", TINY, "--out", out))


def test_a_run_that_another_process_works_in_is_left_alone(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: tiny\n")
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = the_only_line(mengya("run", TINY, "--out", run))
    assert "another mengya process is working in this run" in line
    assert (run / "recipe.yaml").read_text() == "name: tiny\n"


# ------------------------------------------------------------------------------------------------- damaged models


@pytest.fixture
def model_directory(tiny_run, tmp_path):
    """A copy of a transformers directory that the test may spoil."""
    return shutil.copytree(tiny_run / "sft" / "model", tmp_path / "model")


def _edit_weights(directory, change):
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda weights: weights.pop(NORM), [f"tensor '{NORM}' [64] is missing"]),
        (
            lambda weights: weights.update({NORM: torch.ones(32)}),
            [f"'{NORM}' has shape [32], config.json makes it [64]"],
        ),
        (lambda weights: weights.update({"model.extra": torch.ones(3)}), ["unexpected tensor 'model.extra' [3]"]),
    ],
    ids=["missing", "mis-shaped", "unexpected"],
)
def test_a_checkpoint_with_a_wrong_tensor(model_directory, change, parts):
    _edit_weights(model_directory, change)
    line = the_only_line(mengya("chat", model_directory, "-p", "你好"))
    assert str(model_directory) in line
    for part in parts:
        assert part in line


def test_a_checkpoint_that_was_cut_off(model_directory):
    with open(model_directory / "model.safetensors", "rb+") as file:
        file.truncate(5000)
    assert "not a whole safetensors file" in the_only_line(mengya("chat", model_directory, "-p", "你好"))


def test_a_tokenizer_that_does_not_fit_the_model(model_directory, tmp_path):
    texts = [
        json.loads(line)["text"] + "".join(map(chr, range(0x4E00 + 90 * n, 0x4E00 + 90 * n + 90)))
        for n, line in enumerate(LINES)
    ] * 3
    save_tokenizer(train_tokenizer(texts, 900, max_characters=10**6, seed=0), tmp_path / "larger", model_max_length=256)
    shutil.copytree(tmp_path / "larger", model_directory, dirs_exist_ok=True)
    line = the_only_line(mengya("chat", model_directory, "-p", "你好"))
    assert str(model_directory) in line
    assert "the model's embedding only 600" in line


def test_a_damaged_tokenizer(model_directory):
    (model_directory / "tokenizer.json").write_text("{")
    assert "tokenizer.json: not a tokenizer file" in the_only_line(mengya("chat", model_directory, "-p", "你好"))


def test_a_stage_whose_model_was_spoilt_is_made_again_never_trained_on(tiny_run, tiny_copy):
    """Within a run a damaged output is not the user's to mend: its stage is stale, and says why."""
    _edit_weights(tiny_copy / "sft" / "model", lambda weights: weights.pop(NORM))
    done = mengya("run", TINY, "--out", tiny_copy, "--stages", "sft,dpo")
    assert done.returncode == 0, done.stderr
    assert "sft: stale, its output sft/model was altered" in done.stderr
    assert "dpo: done already" in done.stderr, "the model made again is the same to the last bit"
    assert manifests(tiny_copy)["dpo"] == manifests(tiny_run)["dpo"]


def test_a_stage_alone_says_which_tensor_its_model_lacks(tiny_copy):
    _edit_weights(tiny_copy / "sft" / "model", lambda weights: weights.pop(NORM))
    line = the_only_line(mengya("dpo", TINY, "--out", tiny_copy))
    assert f"tensor '{NORM}' [64] is missing" in line


# ------------------------------------------------------------------------------------------------------- a full disk


def _mount(directory, size):
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_a_full_disk_is_said_and_the_same_command_goes_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or not _mount(disk, "3m"):
        pytest.skip("a small disk of its own takes the right to mount one")
    try:
        stages = ("--stages", "corpus,tokenizer,shards,pretrain")
        line = the_only_line(mengya("run", TINY, "--out", disk / "run", *stages))
        assert "the disk is full — free some space; the same command goes on from there" in line
        assert is_done(disk / "run", "tokenizer"), "it should have got somewhere"
        subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
        done = mengya("run", TINY, "--out", disk / "run", *stages)
        assert done.returncode == 0, done.stderr
        assert "tokenizer: done already" in done.stderr
        assert is_done(disk / "run", "pretrain")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
