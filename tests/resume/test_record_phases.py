"""Conversations and pairs that were cut short are the bytes of an uninterrupted run, and nothing finished is done again."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from mengya.files import sha256
from road import killed_and_resumed, mengya

NUM_FILES = 6
HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 800)]


def _prose(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(HAN, k=length))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Conversations with copies and near copies in other files than their originals, and pairs to be balanced."""
    folder = tmp_path_factory.mktemp("talks")
    rng = random.Random(3)
    prompts = [_prose(rng, 80) for _ in range(900)]
    for number in range(NUM_FILES):
        rows = [{"prompt": prompt, "response": _prose(rng, 60)} for prompt in prompts[number::NUM_FILES]]
        rows += [{"prompt": f"{prompt}呢", "response": "好\u200b。"} for prompt in prompts[number + 1 :: 40]]
        rows += [{"prompt": prompt, "response": "也好。"} for prompt in prompts[number + 2 :: 50]]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"talk-{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        pairs = [
            {"prompt": prompt, "chosen": _prose(rng, rng.randrange(20, 90)), "rejected": _prose(rng, 40)}
            for prompt in prompts[number::NUM_FILES]
        ]
        lines = [json.dumps(row, ensure_ascii=False) for row in pairs]
        (folder / f"pair-{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    texts = [json.dumps({"text": _prose(rng, 60) + "。"}, ensure_ascii=False) for _ in range(60)]
    (folder / "text.jsonl").write_text("\n".join(texts), encoding="utf-8")
    corpus = {
        "documents": [{"path": str(folder / "text.jsonl"), "format": "text"}],
        "conversations": [{"path": str(folder / "talk-*.jsonl"), "format": "prompt_response", "copies": 2}],
        "preferences": [
            {"path": str(folder / "pair-*.jsonl"), "format": "prompt_chosen_rejected", "balance_lengths": True}
        ],
        "validation_fraction": 0.1,
        "num_processes": 2,
        "part_characters": 8000,
        "near_duplicate_prompts": 0.9,
    }
    file = folder / "talks.yaml"
    file.write_text(yaml.safe_dump({"name": "talks", "stages": ["corpus"], "corpus": corpus}), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> dict[str, str]:
    run = tmp_path_factory.mktemp("whole") / "run"
    done = mengya("run", recipe, "--out", run)
    assert done.returncode == 0, done.stderr
    counts = json.loads((run / "corpus" / "manifest.json").read_text())["counts"]
    assert counts["conversations"]["dropped"]["near_duplicate_prompt"]["conversations"] > 50
    assert counts["conversations"]["dropped"]["duplicate_prompt"]["conversations"] > 50
    assert counts["preferences"]["dropped"]["length_balance"]["pairs"] > 50
    return digests(run)


def digests(run: Path) -> dict[str, str]:
    return {name: sha256(run / "corpus" / name) for name in ("conversations", "preferences", "evaluation")}


@pytest.mark.parametrize("phase", ["conversations/read", "conversations/sign", "preferences/write"])
def test_killed_in_any_phase_only_what_was_under_way_is_done_again(whole, recipe, tmp_path, phase):
    run = tmp_path / "run"
    kind, name = phase.split("/")
    work = run / "corpus" / "work" / kind
    killed_and_resumed(recipe, run, work / "phases" / name / "completions")
    assert digests(run) == whole
    assert not work.exists()
