"""`mengya data check` counts every row of a file once, names its format, and says what to look at."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from mengya.corpus.sources import list_files
from mengya.corpus.survey import survey
from mengya.errors import UserError
from mengya.serve.check_data import check_files

DATA = Path(os.environ.get("MENGYA_DATA", Path(__file__).parents[2] / "../shared/data"))


def alpaca(question: str, answer: str) -> str:
    return json.dumps({"instruction": question, "input": "", "output": answer}, ensure_ascii=False)


def put(path: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return path


def test_every_row_is_counted_once_with_its_outcome(tmp_path: Path) -> None:
    lines = [alpaca("一加一等于几？", "二。"), alpaca("一加一等于几？", "二。"), alpaca("一加一等于几？", "不知道。")]
    lines += [alpaca("", "二。"), alpaca("问", ""), "{broken", alpaca("我是 <NAME> 吗？", "是。" * 40), '{"other": 1}']
    file = put(tmp_path / "a.jsonl", lines)
    result = survey(file)
    assert (result.format_name, result.container, dict(result.encodings)) == ("alpaca", "JSON lines", {"utf-8": 1})
    assert result.guess
    assert (result.guess.num_fitting, result.guess.num_rows) == (6, 7)
    assert (result.num_rows, result.num_converted, result.num_records, result.convertible) == (8, 4, 4, 8)
    assert result.rejected.counts == {"empty conversation": 2, "invalid_json": 1, "missing field 'instruction'": 1}
    assert result.rejected.first["empty conversation"][0] == f"{file}:4"
    assert result.rejected.first["invalid_json"][0] == f"{file}:6"
    assert result.empty == 2
    assert result.repaired.counts == {"placeholders_filled": 1}
    assert (result.repeated_prompts, result.repeated_records) == (2, 1)
    assert result.roles == {"user": 4, "assistant": 4}
    assert result.turns == {"1": 4}
    # "一加一等于几？" has 7 characters, "二。" 2, "不知道。" 4, "我是 萌芽 吗？" at most 9 and its answer 80.
    assert result.lengths == {4: 3, 7: 1}
    assert 80 < result.longest < 90
    said = "\n".join(result.warnings())
    for part in ("only 50.0% of the convertible rows", "6 of 7 first rows", "`identity`", "50% of the prompts"):
        assert part in said


def test_rows_with_nothing_to_learn_do_not_count_against_the_format(tmp_path: Path) -> None:
    pair = {"prompt": "问", "chosen": "好的答案", "rejected": "坏"}
    rows = [pair] * 3 + [pair | {"rejected": "好的答案"}]
    result = survey(put(tmp_path / "a.jsonl", [json.dumps(row) for row in rows]))
    assert (result.convertible, result.num_converted, result.num_chosen_longer) == (3, 3, 3)
    assert result.unusable.counts == {"chosen equals rejected": 1}
    assert "the chosen answer is the longer one in 100%" in "\n".join(result.warnings())


def test_prompts_other_encodings_and_unknown_layouts_are_warned_of(tmp_path: Path) -> None:
    prompts = survey(put(tmp_path / "a.jsonl", ['{"prompt": "问"}'] * 2))
    assert prompts.warnings() == ["prompts only: nothing to train on (2 rows, none convertible)"]
    other = survey(put(tmp_path / "b.jsonl", [alpaca("今天天气怎么样？", "很好。")], "gb18030"))
    assert other.warnings() == ["encoded as gb18030; it is read as that"]
    unknown = survey(put(tmp_path / "c.jsonl", ['{"问题": "甲", "回答": "乙"}']))
    assert unknown.format_name is None
    assert "问题, 回答" in unknown.warnings()[0]
    named = survey(tmp_path / "c.jsonl", "alpaca", {"instruction": "问题", "output": "回答"})
    assert (named.num_converted, named.warnings()) == (1, [])
    nothing = survey(put(tmp_path / "d.jsonl", ["{broken"]))
    assert (nothing.num_rows, nothing.rejected.counts) == (1, {"invalid_json": 1})
    assert "no readable row" in nothing.warnings()[0]


def test_a_broken_file_is_said_to_be_broken(tmp_path: Path) -> None:
    data = gzip.compress("".join(f"{alpaca(str(number * 7919), '答')}\n" for number in range(3000)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    result = survey(tmp_path / "a.jsonl.gz")
    assert result.num_converted > 100
    assert "truncated_file" in result.warnings()[0]


def test_the_command_prints_a_block_or_an_object_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "a.jsonl", [alpaca("问", "答[bold]"), alpaca("", "")])
    put(tmp_path / "b.jsonl", ['{"text": "正文"}'])
    assert check_files([tmp_path]) == 0
    shown = capsys.readouterr().out
    assert "looks like `alpaca`" in shown
    assert "looks like `text`" in shown
    assert "1 empty conversation, first at :2" in shown
    assert check_files([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], as_json=True) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(found["format"], found["rows"], found["converted"]) for found in objects] == [
        ("alpaca", 2, 1),
        ("text", 1, 1),
    ]


def test_an_unreadable_file_is_an_error_after_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no")
    put(tmp_path / "b.jsonl", ['{"text": "正文"}'])
    with pytest.raises(UserError, match="not a Parquet file"):
        check_files([tmp_path])
    assert "looks like `text`" in capsys.readouterr().out


EXPECTED = (  # a part of the file's name, its format, and the rows that hold nothing to learn from
    ("fakao_gpt4", "input_target", 0),
    ("judical_examination", "alpaca", 0),
    ("legal_advice", "alpaca", 0),
    ("legal_counsel_multi_turn", "lawyer_history", 0),
    ("legal_counsel_with_article", "prompt_response", 0),
    ("zixun_gpt4", "prompt_response", 0),
    ("DISC-FinLLM", "alpaca", 0),
    ("ruozhiba_qa", "alpaca", 0),
    ("ruozhiba-post-annual", "prompts_only", 1361),
    ("ruozhiba-title-good", "prompts_only", 2597),
    ("zh_seed_tasks", "belle_seed", 0),
    ("classical_modern_bitext", "classical_bitext", 0),
    ("moss-003", "moss003", 0),
    ("liver_cancer", "belle_multiturn", 0),
    ("llama_data", "alpaca", 0),
    ("EmoLLM__aiwei", "emollm", 0),
    ("EmoLLM__data", "emollm", 0),
    ("EmoLLM__self_cognition", "alpaca", 0),
    ("EmoLLM__tiangou", "emollm", 0),
    ("CMtMedQA_test", "alpaca", 0),
    ("huatuo26M_test", "huatuo_lists", 0),
    ("Toyhom", "medical_csv", 0),
    ("carbonz0", "alpaca", 0),
    ("charent__", "prompt_response", 0),
    (".yml.zst", "chatterbot", 0),
    ("hikariming__data_COIG", "alpaca", 0),
    ("hikariming__data_identity", "self_cognition", 0),
    ("hikariming__history", "alpaca", 0),
    ("oaast_sft_zh", "alpaca", 0),
    ("Tuning__self_cognition", "self_cognition", 0),
    ("alpaca_zh_demo", "alpaca", 0),
    ("glaive_toolcall", "sharegpt", 0),
    ("Factory__identity", "self_cognition", 0),
    ("ChatMed-Consult", "prompt_response", 0),
    ("source_ruozhiba", "alpaca", 0),
    ("smilechat", "smile", 0),
    ("medical_sft_1K", "sharegpt", 0),
    ("sharegpt_zh_1K", "sharegpt", 0),
    ("CrossWOZ", "crosswoz", 0),
    ("KdConv", "kdconv", 0),
    ("Firefly__dummy_data", "firefly", 0),
    ("scored_dialogues", "scored_dialogues", 18),
    ("comparison_gpt4", "prompt_chosen_rejected", 11),
    ("responsibility_prompts", "prompts_only", 544),
    ("oaast_rm_zh", "ranked", None),
    ("dpo_zh_demo", "sharegpt_pair", 0),
    ("kto_en_demo", "kto", 150),
    ("dpo_zh_500", "sharegpt_pair", 0),
    ("dummy_dpo", "message_lists", 0),
    ("ymcui__scored", "comparison", 86),
)


@pytest.mark.skipif(not DATA.exists(), reason=f"no real data at {DATA} (set MENGYA_DATA)")
def test_every_real_file_is_named_rightly_and_converts() -> None:
    files = [file for folder in ("sft", "preference") for file in list_files(DATA / folder)]
    assert len(files) >= 90
    for file in files:
        ((name, num_unusable),) = [(name, number) for part, name, number in EXPECTED if part in file.name]
        result = survey(file)
        assert result.format_name == name, file.name
        assert num_unusable in (None, result.unusable.counts.total()), (file.name, result.unusable.counts)
        assert result.num_converted >= 0.99 * result.convertible, (file.name, result.rejected.counts)
        counted = result.num_converted + result.rejected.counts.total() + result.unusable.counts.total()
        assert counted == result.num_rows, file.name


@pytest.mark.skipif(not DATA.exists(), reason=f"no real data at {DATA} (set MENGYA_DATA)")
def test_the_smallest_real_pretraining_shards_are_texts() -> None:
    for file in sorted(list_files(DATA / "pretrain"), key=lambda file: file.stat().st_size)[:3]:
        result = survey(file)
        assert (result.format_name, result.num_converted) == ("text", result.num_rows), file.name
