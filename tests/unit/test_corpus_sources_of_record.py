"""The corpus stage keeps evaluation sets out, and says where everything came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mengya.corpus.parts import read_documents
from mengya.corpus.provenance import verify
from mengya.files import write_jsonl
from mengya.recipe import load_recipe
from mengya.stages.runner import run_recipe

QUESTION = "下列哪一座城市位于长江与嘉陵江交汇的地方，并且以山城的名字闻名于全国各地呢？"
PLACES = ("河边", "山脚下", "村口", "学校里", "菜园旁", "桥头", "码头", "祠堂前", "井台上", "戏楼下")
DOINGS = ("种下了一棵桃树", "修好了一条旧船", "画了一张大地图", "写完了一封长信", "晒了三天的稻谷", "喂了一群小鸭子")


def texts() -> list[str]:
    return [f"{place}的老人在春天里{doing}，邻居们都说好看。第{i}{j}天。" for i, place in enumerate(PLACES) for j, doing in enumerate(DOINGS)]  # fmt: skip  # noqa: E501


@pytest.fixture
def recipe(tmp_path: Path):
    """Writes the recipe; one document and one conversation hold the benchmark's question."""
    write_jsonl(
        tmp_path / "texts.jsonl", [{"text": text} for text in [*texts(), f"昨天的考卷上写着：{QUESTION}我没答上来。"]]
    )
    chats = [{"instruction": f"{text}这是第几天？", "output": "我数一数。"} for text in texts()]
    write_jsonl(tmp_path / "chats.jsonl", [*chats, {"instruction": QUESTION, "output": "重庆。"}])
    write_jsonl(tmp_path / "exam.jsonl", [{"question": QUESTION, "answer": "重庆"}])

    def written(**corpus) -> Path:
        sources = {
            "documents": [{"path": str(tmp_path / "texts.jsonl"), "format": "text", "licence": "CC BY 4.0"}],
            "conversations": [{"path": str(tmp_path / "chats.jsonl"), "format": "alpaca"}],
            "evaluation": [{"path": str(tmp_path / "exam.jsonl")}],
            "validation_fraction": 0.1,
            "num_processes": 1,
        }
        file = tmp_path / "recipe.yaml"
        file.write_text(
            yaml.safe_dump({"name": "r", "stages": ["corpus"], "corpus": sources | corpus}), encoding="utf-8"
        )
        return file

    return written


def counts_of(run) -> dict:
    return json.loads((run.directory / "corpus" / "manifest.json").read_text(encoding="utf-8"))["counts"]


def test_a_leak_is_reported_and_goes_only_when_asked(recipe, tmp_path):
    run = run_recipe(load_recipe(recipe()), tmp_path / "run")
    counts = counts_of(run)
    for kind in ("documents", "conversations"):
        found = counts[kind]["contamination"]["sets"]["exam"]
        assert found["contaminated"] == 1
        assert "长江与嘉陵江" in found["examples"][0]["passage"]
    assert counts["documents"]["kept"]["documents"] == 61

    counts = counts_of(run_recipe(load_recipe(recipe(remove_contaminated=True)), tmp_path / "run"))
    assert counts["documents"]["dropped"] == {"contaminated: exam": {"documents": 1, "characters": len(QUESTION) + 15}}
    assert counts["conversations"]["dropped"]["contaminated: exam"]["conversations"] == 1
    assert [step["documents"] for step in counts["documents"]["funnel"]] == [61, 61, 61, 61, 60, 60, 60]
    left = [
        d.text for split in ("train", "validation") for d in read_documents(tmp_path / "run/corpus/documents", split)
    ]
    assert sorted(left) == sorted(texts())


def test_every_source_is_on_record_and_an_altered_file_is_noticed(recipe, tmp_path):
    run = run_recipe(load_recipe(recipe()), tmp_path / "run")
    texts_record, chats_record = counts_of(run)["provenance"]
    assert (texts_record["source"], texts_record["licence"], texts_record["read"]) == ("texts", "CC BY 4.0", 61)
    assert (chats_record["unit"], chats_record["licence"]) == ("conversations", "not stated")
    card = (run.directory / "corpus" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in card
    assert "许可" in card
    assert verify(run.directory) == []
    with open(tmp_path / "texts.jsonl", "a", encoding="utf-8") as file:
        file.write("\n")
    (difference,) = {str(difference).split(" (")[0] for difference in verify(run.directory)}
    assert difference.endswith("texts.jsonl was altered")
