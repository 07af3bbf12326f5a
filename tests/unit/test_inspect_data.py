"""Data is shown as it is: the same sample for a seed, what was dropped and why, what is trained, what differs."""

import io
import json
import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from small_tokenizer import small_tokenizer
from synthetic_run import make_run
from typer.testing import CliRunner

from mengya.cli import app
from mengya.corpus.clean import RULES, SETTING_OF, normalise
from mengya.corpus.records import Message
from mengya.errors import UserError
from mengya.files import read_json, write_json, write_jsonl
from mengya.serve.inspect import inspect
from mengya.serve.inspect_chat import coloured, pieces, print_pair
from mengya.serve.inspect_documents import LIMITS, nearest_to_thresholds
from mengya.serve.inspect_drops import found_clusters
from mengya.serve.inspect_page import changes, difference, harmless
from mengya.serve.inspect_rows import look_at, split_files
from mengya.settings import CorpusSettings
from mengya.tokenizer.train import save_tokenizer

KEPT = "从前有一座山，山上有一座庙，庙里住着一个老和尚和一个小和尚。老和尚每天给小和尚讲故事。"


def write_zst(path, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(zstandard.compress(text.encode()))


def documents(numbers):
    return [
        {"text": f"第{n}篇。" + "山高水长。" * (n * 7 % 50 + 3), "source": "书", "origin": f"a.jsonl:{n}"}
        for n in numbers
    ]


def drop(origin, reason, text, twin=None):
    row = {"reason": reason, "origin": origin, "source": "书", "characters": len(text), "excerpt": text[:200]}
    return row | ({"twin": twin, "similarity": 0.9} if twin else {})


@pytest.fixture
def corpus(tmp_path):
    """The documents of a corpus stage in compressed parts, with what was dropped, inside of a run."""
    run = make_run(tmp_path / "run", ("corpus", "tokenizer"))
    directory = run.directory / "corpus" / "documents"
    for file in directory.glob("*"):
        file.unlink()
    directory.mkdir(exist_ok=True)
    write_zst(directory / "train-00000.jsonl.zst", documents(range(30)))
    write_zst(directory / "train-00001.jsonl.zst", [*documents(range(30, 50)), {"text": KEPT, "origin": "a.jsonl:50"}])
    write_jsonl(directory / "validation.jsonl", documents([99]))
    copy = KEPT.replace("老和尚", "老道士", 1)
    chained = copy.replace("一座庙", "一座观")
    rows = [
        drop("b.jsonl:1", "near_duplicate", copy, "a.jsonl:50"),
        drop("b.jsonl:2", "near_duplicate", chained, "b.jsonl:1"),
        drop("b.jsonl:3", "exact_duplicate", documents([99])[0]["text"], "a.jsonl:99"),
        drop("b.jsonl:4", "advertisement", "加微信买一送一"),
        drop("b.jsonl:5", "too_short", "短"),
    ]
    write_jsonl(directory / "dropped.jsonl", rows)
    manifest = read_json(run.directory / "corpus" / "manifest.json")
    manifest["counts"]["documents"]["dropped"] = {
        "near_duplicate": {"documents": 1234, "characters": 99_999},
        "advertisement": {"documents": 7, "characters": 70},
    }
    write_json(run.directory / "corpus" / "manifest.json", manifest)
    return directory


def test_one_pass_finds_the_extremes_and_a_repeatable_sample(tmp_path):
    rng = random.Random(1)
    rows = [{"text": "字" * rng.randrange(1, 60), "source": rng.choice("甲乙")} for _ in range(300)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    look = look_at([tmp_path / "a.jsonl"], 7, 3)
    assert (look.num_rows, sum(look.lengths), look.kind) == (300, sum(len(row["text"]) for row in rows), "document")
    numbered = list(enumerate(rows, start=1))
    assert look.longest == sorted(numbered, key=lambda item: (-len(item[1]["text"]), item[0]))[:3]
    assert look.shortest == sorted(numbered, key=lambda item: (len(item[1]["text"]), item[0]))[:3]
    assert len({number for number, _ in look.sample}) == 7
    assert all(rows[number - 1] == row for number, row in look.sample)
    assert look_at([tmp_path / "a.jsonl"], 7, 3).sample == look.sample
    assert look_at([tmp_path / "a.jsonl"], 7, 4).sample != look.sample
    assert look.quantile(0.5) == sorted(len(row["text"]) for row in rows)[150]


def test_every_row_may_be_drawn(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": str(n)} for n in range(12)])
    drawn = {number for seed in range(60) for number, _ in look_at([tmp_path / "a.jsonl"], 2, seed).sample}
    assert drawn == set(range(1, 13))


def test_a_corpus_in_parts_or_in_one_file_is_one_corpus(corpus, capsys):
    assert [file.name for file in split_files(corpus, "train")] == ["train-00000.jsonl.zst", "train-00001.jsonl.zst"]
    inspect(corpus, sample=3)
    out = capsys.readouterr().out
    assert " · 51 documents" in out
    assert "3 of 51 rows" in out
    write_jsonl(corpus / "train.jsonl", documents([1]))
    for part in corpus.glob("train-*"):
        part.unlink()
    inspect(corpus)
    assert " · 1 documents" in capsys.readouterr().out


def test_drops_are_counted_by_the_manifest_and_duplicates_stand_in_clusters(corpus, capsys):
    inspect(corpus, sample=2)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert ["near_duplicate", "1,234", "99,999", "2"] in [line.split() for line in lines]
    assert ["too_short", "?", "?", "1"] in [line.split() for line in lines]
    assert "加微信买一送一" in lines
    place = lines.index("kept  a.jsonl:50")
    assert lines[place + 1] == KEPT
    assert [line.split(" · ")[0] for line in lines[place + 2 : place + 6 : 2]] == ["copy  b.jsonl:1", "copy  b.jsonl:2"]
    assert "[-和尚-]{+道士+}" in lines[place + 3]
    assert "[-庙-]{+观+}" in lines[place + 5]
    assert lines[lines.index("kept  a.jsonl:99") + 3] == "no difference in the first 200 characters"


def test_one_reason_can_be_asked_for(corpus, capsys):
    for path in (corpus, corpus.parent, corpus / "dropped.jsonl"):
        inspect(path, reason="advertisement")
        out = capsys.readouterr().out
        assert "加微信买一送一" in out
        assert "near_duplicate" not in out
        with pytest.raises(UserError, match=r"'mould' .* there are: .*near_duplicate"):
            inspect(path, reason="mould")
        capsys.readouterr()
    for path in (corpus / "train-00000.jsonl.zst", corpus.parents[1], corpus.parents[1] / "tokenizer"):
        with pytest.raises(UserError, match="only what was dropped has a reason"):
            inspect(path, reason="mould")


@given(st.text("甲乙丙\n", max_size=60), st.text("甲乙丙\n", max_size=60))
def test_changes_turn_one_text_into_the_other(before, after):
    found = changes(before, after)
    assert "".join(old for _, old, _ in found) == before
    assert "".join(new for _, _, new in found) == after


def test_a_difference_is_marked_and_what_is_equal_is_shortened():
    left, right = "天" * 50 + "甲" + "地" * 50, "天" * 50 + "乙" + "地" * 50
    assert difference(changes(left, right), colour=False).plain == "…" + "天" * 12 + "[-甲-]{+乙+}" + "地" * 12 + "…"
    styles = [str(span.style) for span in difference(changes(left, right), colour=True).spans]
    assert styles == ["dim", "red strike", "green", "dim"]
    assert [kind for kind, _, _ in changes(left + "尾巴", left, after_is_cut=True)] == ["equal"]


def test_just_the_trained_tokens_are_marked():
    tokenizer = small_tokenizer()
    messages = (
        Message("system", "你是助手。"),
        Message("user", "小明看见几个苹果？"),
        Message("assistant", "小明看见23个苹果😀。"),
        Message("user", "<|im_end|>呢"),
        Message("assistant", "好"),
    )
    ids, trained = tokenizer.render(messages)
    tokens = list(pieces(tokenizer, ids, trained))
    assert "".join(text for text, _ in tokens) == tokenizer.decode(ids)
    plain = coloured(tokens, colour=False).plain
    assert plain.count("⟦") == plain.count("⟧") == 2
    assert [part.split("⟧")[0] for part in plain.split("⟦")[1:]] == ["小明看见23个苹果😀。<|im_end|>", "好<|im_end|>"]
    assert plain.splitlines()[3:5] == ["小明看见几个苹果？<|im_end|>", "<|im_start|>assistant"]
    text = coloured(tokens, colour=True)
    in_colour = [(span, text.plain[span.start : span.end]) for span in text.spans if span.style != "dim"]
    assert [part for _, part in in_colour] == [part for part, is_trained in tokens if is_trained]
    first = [str(span.style) for span, _ in in_colour[:4]]
    assert first == ["green", "cyan", "green", "cyan"]


def test_conversations_of_a_run_show_their_token_counts(tmp_path, capsys):
    run = make_run(tmp_path / "run", ("corpus",))
    save_tokenizer(small_tokenizer().backend, run.directory / "tokenizer" / "model")
    turns = [{"role": "user", "content": "小明看见几个苹果？"}, {"role": "assistant", "content": "23个。"}]
    file = run.directory / "corpus" / "conversations" / "train.jsonl"
    write_jsonl(file, [{"messages": turns, "source": "甲"}])
    ids, trained = small_tokenizer().render([Message(turn["role"], turn["content"]) for turn in turns])
    inspect(file)
    out = capsys.readouterr().out
    assert f"{len(ids)} tokens, {sum(trained)} trained" in out
    assert "⟦23个。<|im_end|>⟧" in out
    (run.directory / "recipe.yaml").unlink()
    inspect(file)
    assert "no tokenizer" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120])
def test_a_pair_stands_side_by_side_within_the_width(width):
    row = {
        "prompt": [{"role": "user", "content": "天为什么是蓝的？"}],
        "chosen": "因为空气散射蓝光。" * 20,
        "rejected": "[bold]不知道[/bold]。" * 9,
        "reason": "right",
    }
    screen = io.StringIO()
    print_pair(Console(file=screen, width=width, markup=False, highlight=False), 1, row, small_tokenizer())
    lines = screen.getvalue().splitlines()
    assert "because right · the chosen one is longer by" in lines[0]
    assert any(line.startswith("因为") and "[bold]不知道" in line for line in lines)
    tokens = [len(small_tokenizer().encode(row[side])) for side in ("chosen", "rejected")]
    titles = next(line for line in lines if line.startswith("chosen"))
    assert all(f"{number} tokens" in titles for number in tokens)
    cells = [sum(2 if ord(character) > 0x2E80 else 1 for character in line) for line in lines[2:]]
    assert max(cells) <= width
    assert (screen.getvalue().count("散"), screen.getvalue().count("道")) == (20, 9)  # no word of either is lost


def test_no_text_moves_the_cursor_or_turns_the_writing(tmp_path, capsys):
    evil = "正文\x1b]0;标题\x07\x9b31m\u202e反写\r\n下一行\ttab"
    assert harmless(evil) == "正文�]0;标题��31m�反写\n下一行\ttab"
    rows = [
        {"text": evil, "source": evil, "origin": evil},
        {"messages": [{"role": evil, "content": evil}], "kind": evil},
        {"prompt": [{"role": "user", "content": evil}], "chosen": evil, "rejected": "好", "reason": evil, evil: evil},
        {"prefix": evil, "choices": [evil], "answer": 0},
        {evil: evil},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "dropped.jsonl", [drop(evil, evil, evil), drop("b", evil, evil, evil)])
    write_jsonl(tmp_path / "raw.jsonl", [{"text": evil * 5}] * 3)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw.jsonl").rename(tmp_path / "raw" / "raw.jsonl")
    for path in ("rows.jsonl", "dropped.jsonl", "raw/raw.jsonl"):
        inspect(tmp_path / path, sample=9)
        out = capsys.readouterr().out
        assert "反写" in out
        assert not set(out) & set("\x1b\x07\x9b\u202e\r")


def test_the_nearest_text_to_each_threshold_is_found():
    switches = {key for key in SETTING_OF.values() if isinstance(getattr(CorpusSettings(), key), bool)}
    assert set(LIMITS) == set(SETTING_OF.values()) - switches
    assert {name for name, _, _ in LIMITS.values()} <= {rule.__name__ for rule in RULES}
    texts = [normalise(text) for text in (
        "山" * 11 + "水长",  # 13 Han characters
        "今天天气很好，我们去爬山。" * 4,
        "他在二〇二〇年说了这句话，电话是13812345678和13912345678，请记下来。",
        "abcdefghij" * 3 + "春眠不觉晓处处闻啼鸟夜来风雨声花落",
    )]  # fmt: skip
    found = {item.threshold: item for item in nearest_to_thresholds(texts, CorpusSettings())}
    assert (found["min_han"].value, found["min_han"].text) == (13.0, texts[0])
    assert (found["max_characters"].value, found["max_characters"].text) == (52.0, texts[1])
    assert found["max_digit_share"].text == texts[2]
    assert found["max_digit_share"].value == pytest.approx(22 / len(texts[2]))
    assert found["min_han_share"].text == texts[3]
    assert found["min_han_share"].value == pytest.approx(17 / len(texts[3]))
    assert "max_url_share" not in found  # no text has an address in it


def test_duplicates_of_raw_documents_are_found_without_a_corpus_stage(tmp_path, capsys):
    near = KEPT.replace("小和尚", "小沙弥", 1)
    rows = [{"text": text} for text in ("另一篇短文在这里。", KEPT, near, KEPT + "！", "最后一篇说别的事情。")]
    clusters = found_clusters(rows, 0.6)
    assert [(cluster.kept, [copy.reason for copy in cluster.copies]) for cluster in clusters] == [
        (KEPT, ["exact_duplicate", "near_duplicate"])
    ]
    (tmp_path / "raw").mkdir()
    write_zst(tmp_path / "raw" / "raw.jsonl.zst", rows)
    inspect(tmp_path / "raw" / "raw.jsonl.zst")
    assert "duplicates · " in capsys.readouterr().out


def test_a_foreign_layout_is_named_and_refused_rows_are_counted(tmp_path, capsys):
    rows = [{"instruction": "问题在此", "input": "", "output": f"回答{n}"} for n in range(5)]
    file = tmp_path / "a.json"
    file.write_text("\n".join([*map(json.dumps, rows), json.dumps({"instruction": "无答"}), "{broken"]))
    inspect(file)
    out = capsys.readouterr().out
    assert "5 conversations · alpaca (conversation)" in out
    assert "1 refused: invalid_json (first: a.json:7)" in out
    assert "1 refused: missing field 'output'" in out


def test_the_command_line_passes_its_options(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"第{n}行"} for n in range(40)])

    def shown(*options):
        done = CliRunner().invoke(app, ["inspect", str(tmp_path / "a.jsonl"), *options])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "2 of 40 rows · seed 9" in shown("--sample", "2", "--seed", "9")
    assert shown("--seed", "1") == shown("--seed", "1") != shown("--seed", "2")
    assert CliRunner().invoke(app, ["inspect", str(tmp_path), "--sample", "0"]).exit_code == 2


def test_thresholds_are_those_of_the_run(corpus, capsys):
    inspect(corpus)
    default = capsys.readouterr().out
    assert ["min_han", "10"] in [line.split()[:2] for line in default.splitlines() if line.startswith("min_han ")]
    from mengya.run import Run

    run = Run(corpus.parents[1])
    recipe = run.recipe()
    run.save_recipe(recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"min_han": 6})}))
    inspect(corpus)
    changed = capsys.readouterr().out
    assert ["min_han", "6"] in [line.split()[:2] for line in changed.splitlines() if line.startswith("min_han ")]
