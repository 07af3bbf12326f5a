"""The catalogue is consistent, its formats read the real layouts, and `{dataset: NAME}` stands for its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from mengya.corpus import catalogue
from mengya.corpus.catalogue import DATASETS, completed, find, source_files
from mengya.corpus.dataset import matches
from mengya.corpus.formats import FORMATS, convert, guess_format
from mengya.corpus.inputs import file_inputs
from mengya.corpus.sources import Rejects, read_rows
from mengya.corpus.turns import FormatError
from mengya.errors import UserError
from mengya.recipe import load_recipe
from mengya.settings import Identity, Source
from mengya.stages import source_files as files_of_stage
from mengya.stages.check import check_recipe

DATA = Path(os.environ.get("MENGYA_DATA", Path(__file__).parents[2] / "../shared/data"))
IDENTITY = {"name": "萌芽", "author": "作者", "date": "今天"}

# As the issue names them: every one must be found.
NAMES = [
    "wikipedia-cn-20230720-filtered",
    "baidubaike-563w",
    "c4-zh",
    "wudao-corpora",
    "skypile-150b",
    "shibing624/medical-pretrain",
    "chatglm2-tokens",
    "self_cognition",
    "alpaca-zh",
    "belle-0.5M",
    "belle-1M",
    "belle-school_math",
    "belle-multiturn_chat",
    "firefly",
    "firefly-conversations",
    "moss-002",
    "moss-003",
    "moss-003-with-tools",
    "CodeChat",
    "ShareGPT-90k",
    "ShareGPT",
    "deepctrl",
    "ruozhiba",
    "COIG-CQIA",
    "shibing624/medical-finetune",
    "HuatuoGPT-sft",
    "huatuo-llama",
    "DISC-Med-SFT",
    "ChatMed",
    "Chinese-medical-dialogue",
    "CMtMedQA",
    "huatuo26M",
    "SMILE",
    "EmoLLM",
    "minimind-sft",
    "Zero-Chatgpt-sft",
    "openai-messages",
    "DPO-En-Zh-20k",
    "DPO-En-Zh-20k-first",
    "hh_rlhf_cn",
    "CValues-Comparison",
    "rlhf-reward-single-round-trans_chinese",
    "zhihu_rlhf_3k",
    "oaast_rm_zh",
    "comparison_gpt4_zh",
    "shibing624/medical-reward",
    "minimind-dpo",
    "UltraFeedback",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_dataset_of_the_issue_is_found_by_its_name(name):
    assert find(name).name in DATASETS


def test_no_name_stands_twice():
    names = [
        dataset.name
        for table in (catalogue.PRETRAINING, catalogue.INSTRUCTION, catalogue.MEDICINE, catalogue.PREFERENCES)
        for dataset in table
    ]
    assert [name for name, count in Counter(names).items() if count > 1] == []


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda dataset: dataset.name)
def test_an_entry_is_whole(dataset):
    if dataset.kind == "tokens":
        assert dataset.format is None
    else:
        assert FORMATS[dataset.format].kind == dataset.kind
    assert dataset.files
    assert dataset.licence
    assert dataset.note.endswith(".")
    hubs = [hub for hub in (dataset.huggingface, dataset.modelscope) if hub is not None]
    assert all(len(hub.split("/")) == 2 and hub == hub.strip() for hub in hubs)
    # What no hub has must say where it is, and that the recipe says where it lies.
    assert hubs or (dataset.homepage and ("path:" in dataset.note or "token_files" in dataset.note))
    # A name is typed, and is a folder: it must be one that `find` gives back.
    assert find(dataset.name) is dataset


# Real files in the layouts of the datasets; the `.zst` packing is the shared folder's.
SAMPLES = {
    "self-cognition": "sft/hiyouga__ChatGLM-Efficient-Tuning__self_cognition.json.zst",
    "alpaca-zh": "sft/hiyouga__LLaMA-Factory__alpaca_zh_demo.json.zst",
    "firefly-conversations": "sft/yangjianxin1__Firefly__dummy_data.jsonl.zst",
    "moss-003": "sft/OpenLMLab__moss-003_without_plugins.jsonl.zst",
    "moss-003-with-tools": "sft/OpenLMLab__moss-003_with_plugins.jsonl.zst",
    "sharegpt": "sft/shibing624__MedicalGPT__sharegpt_zh_1K_format.jsonl.zst",
    "ruozhiba": "sft/FunnySaltyFish__Better-Ruozhiba__ruozhiba_qa.json.zst",
    "coig-cqia": "sft/nick7nlp__evol-ruozhiba__source_ruozhiba.jsonl.zst",
    "huatuo-llama": "sft/SCIR-HI__Huatuo-Llama-Med-Chinese__llama_data.jsonl.zst",
    "huatuo-llama-liver": "sft/SCIR-HI__Huatuo-Llama-Med-Chinese__liver_cancer.json.zst",
    "chatmed": "sft/michael-wzhu__ChatMed__ChatMed-Consult_test.jsonl.zst",
    "chinese-medical-dialogue": "sft/Toyhom__样例_内科5000-6000.csv.zst",
    "cmtmedqa": "sft/SupritYoung__Zhongjing__CMtMedQA_test.json.zst",
    "huatuo26m": "sft/SupritYoung__Zhongjing__huatuo26M_test.json.zst",
    "smile": "sft/qiuhuachuan__smilechat_sample.jsonl.zst",
    "emollm": "sft/SmartFlowAI__EmoLLM__data.json.zst",
    "dpo-en-zh-20k": "preference/hiyouga__LLaMA-Factory__dpo_zh_demo.json.zst",
    "oaast-rm-zh": "preference/hiyouga__ChatGLM-Efficient-Tuning__oaast_rm_zh.json.zst",
    "comparison-gpt4-zh": "preference/GPT-4-LLM__comparison_gpt4_data_zh_prefix.json.zst",
    "ultrafeedback": "preference/yangjianxin1__Firefly__dummy_dpo.jsonl.zst",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_format_in_the_catalogue_reads_the_real_layout(name):
    path = DATA / SAMPLES[name]
    if not path.exists():
        pytest.skip("the shared data folder is not here (MENGYA_DATA)")
    dataset = find(name)
    rows = [row for _, row in islice(read_rows(path, Rejects()), 200)]
    assert rows
    read = 0
    for row in rows:
        try:
            read += bool(convert(dataset.format, row, dataset.columns, identity=IDENTITY))
        except FormatError:
            continue
    assert read >= 0.9 * len(rows)
    assert guess_format(rows[:50], dataset.kind) == dataset.format


def test_a_star_crosses_folders_and_other_characters_stand_for_themselves():
    assert matches("sharegpt_jsonl/computer_en_26k(fixed).jsonl", ("*computer_*.jsonl",))
    assert not matches("data/dpo_zh.json", ("dpo_zh.json",))


def test_an_unknown_dataset_is_answered_with_the_nearest_names():
    with pytest.raises(UserError, match=r"did you mean 'belle-0\.5m'"):
        find("bele-0.5m")
    with pytest.raises(UserError, match="mengya data list"):
        find("qqqqqqqq")


# ------------------------------------------------------------------------------------------------------ in a recipe

ROWS = [{"instruction": f"问{number}", "input": "", "output": f"答{number}"} for number in range(6)]


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("MENGYA_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def put(home, name, files, complete=True):
    """What `mengya data get` leaves: the files {path: rows} and SOURCE.json."""
    entries = []
    for path, rows in files.items():
        file = home / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        entries.append({"path": path, "bytes": file.stat().st_size, "sha256": ""})
    (home / name / "SOURCE.json").write_text(json.dumps({"dataset": name, "complete": complete, "files": entries}))


def gathered(source, kind="conversation"):
    inputs = file_inputs(source, kind, Identity())
    records = [record for part in inputs for record in part.read(Rejects(), Counter())]
    return [(record.messages[0].content, record.messages[1].content) for record in records]


def recipe_with(tmp_path, source):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: x\nstages: [corpus]\ncorpus:\n  documents: [playground]\n  conversations:\n    - {source}\n",
        encoding="utf-8",
    )
    return load_recipe(path)


def test_a_dataset_in_a_recipe_is_read_with_its_format_from_the_data_home(home, tmp_path):
    put(home, "belle-0.5m", {"x/Belle_open_source_0.5M.json": ROWS})
    (home / "belle-0.5m" / "left-over.json").write_text("[]")
    recipe = recipe_with(tmp_path, "{dataset: belle-0.5m, limit: 4}")
    check_recipe(recipe)
    source = recipe.corpus.conversations[0]
    assert gathered(source) == [(f"问{number}", f"答{number}") for number in range(4)]
    assert source.label == "belle-0.5m"
    assert [file.name for file in files_of_stage(source)] == ["Belle_open_source_0.5M.json"]


def test_a_limit_is_of_the_source_not_of_each_of_its_files(home):
    put(home, "belle-1m", {"a.json": ROWS[:3], "b.json": ROWS[3:]})
    assert [question for question, _ in gathered(Source(dataset="belle-1m", limit=4))] == ["问0", "问1", "问2", "问3"]
    assert [question for question, _ in gathered(Source(dataset="belle-1m", limit=3))] == ["问0", "问1", "问2"]


def test_what_the_recipe_says_wins_over_the_catalogue(home, tmp_path):
    renamed = tmp_path / "copy.jsonl"
    renamed.write_text('{"q": "问", "target": "答"}\n', encoding="utf-8")
    source = Source(dataset="firefly", path=str(renamed), columns={"input": "q"})
    assert gathered(source) == [("问", "答")]
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "问", "response": "答"}\n', encoding="utf-8")
    assert gathered(Source(dataset="firefly", path=str(other), format="prompt_response")) == [("问", "答")]
    assert completed(Source(path="x", format="alpaca")) == Source(path="x", format="alpaca")


def test_a_folder_as_path_gives_only_the_files_of_the_dataset(home, tmp_path):
    put(tmp_path, "toy", {"zhihu_3k_rlfh.tsv": [], "notes.jsonl": ROWS})
    files = source_files(Source(dataset="zhihu-rlhf-3k", path=str(tmp_path / "toy")))
    assert [file.name for file in files] == ["zhihu_3k_rlfh.tsv"]
    put(tmp_path, "messages", {"a.jsonl": ROWS})
    files = source_files(Source(dataset="openai-messages", path=str(tmp_path / "messages")))
    assert [file.name for file in files] == ["a.jsonl"], "SOURCE.json is a record, not data"
    with pytest.raises(UserError, match="no file of zhihu-rlhf-3k in"):
        source_files(Source(dataset="zhihu-rlhf-3k", path=str(tmp_path / "messages")))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "{dataset: belle-0.5m}",
            r"conversations\.0\.dataset: belle-0\.5m is not downloaded .*mengya data get belle-0\.5m",
        ),
        ("{dataset: bele-0.5m}", r"conversations\.0\.dataset: no dataset .* did you mean 'belle-0\.5m'"),
        ("{dataset: skypile-150b}", "holds documents, not conversations — put it under corpus.documents"),
        ("{dataset: chatglm2-tokens}", "is token ids, not text — name its files in `shards.token_files`"),
        ("{dataset: emollm}", r"not downloaded .*github\.com/SmartFlowAI/EmoLLM.*`path:`"),
        ("{dataset: firefly, path: no/such/file.jsonl}", "no such file"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_said_before_anything_runs(home, tmp_path, source, words):
    recipe = recipe_with(tmp_path, source)
    with pytest.raises(UserError, match=words):
        check_recipe(recipe)


def test_a_half_or_altered_download_is_not_trained_on(home, tmp_path):
    recipe = recipe_with(tmp_path, "{dataset: belle-0.5m}")
    put(home, "belle-0.5m", {"a.json": ROWS}, complete=False)
    with pytest.raises(UserError, match=r"not finished .*mengya data get belle-0\.5m"):
        check_recipe(recipe)
    put(home, "belle-0.5m", {"a.json": ROWS})
    check_recipe(recipe)
    file = home / "belle-0.5m" / "a.json"
    file.write_text("{}\n")
    with pytest.raises(UserError, match=r"is no longer .* bytes long"):
        check_recipe(recipe)
    file.unlink()
    with pytest.raises(UserError, match=r"a\.json is missing"):
        check_recipe(recipe)
    (home / "belle-0.5m" / "SOURCE.json").write_text("[]")
    with pytest.raises(UserError, match="not a record of a download"):
        check_recipe(recipe)


# ------------------------------------------------------------------------------------------------- the command line


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mengya", "data", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_the_commands_print_to_stdout_and_a_mistake_is_one_line_and_exit_code_2(home):
    put(home, "belle-0.5m", {"a.json": ROWS})
    listed = run("list")
    assert listed.returncode == 0, listed.stderr
    lines = {line.split()[0]: line for line in listed.stdout.splitlines() if line.strip()}
    assert set(DATASETS) <= set(lines)
    assert " yes " in lines["belle-0.5m"]
    assert " yes " not in lines["belle-1m"]
    shown = run("show", "hh_rlhf_cn")
    assert shown.returncode == 0
    for part in (
        "hh-rlhf-cn",
        "dikw/hh_rlhf_cn",
        "AI-ModelScope/hh_rlhf_cn",
        "corpus.preferences: [{dataset: hh-rlhf-cn}]",
    ):
        assert part in shown.stdout
    wrong = run("get", "bele-0.5m")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "did you mean 'belle-0.5m'" in wrong.stderr


def test_the_command_line_loads_neither_a_hub_nor_a_terminal_library_before_it_needs_one():
    code = (
        "import sys; from mengya.cli import app; from mengya.stages.check import check_recipe; "
        "print([m for m in ('huggingface_hub', 'pyarrow', 'torch', 'urllib.request', 'mengya.serve.data_commands') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
