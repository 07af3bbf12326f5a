"""Every model of a finished run, loaded by transformers without remote code: the same logits, tokens and chat ids."""

from __future__ import annotations

import json

import pytest
import torch

from mengya.corpus import records
from mengya.corpus.records import Message
from mengya.data.pairs import render_pairs
from mengya.evaluate.pairs import score_texts
from mengya.files import read_jsonl
from mengya.generate.engine import generate
from mengya.model.checkpoint import load_model
from mengya.tokenizer.encode import load_tokenizer

transformers = pytest.importorskip("transformers")

CHAT_STAGES = ("sft", "dpo", "ppo")
LANGUAGE_STAGES = ("pretrain", *CHAT_STAGES)


def _prompts(run, count=6):
    questions = [records.question(row) for row in read_jsonl(run / "corpus" / "evaluation" / "questions.jsonl")]
    chosen = {question.kind: question.messages for question in questions}
    assert len(chosen) >= count, "a prompt of each kind, one of several turns among them"
    return list(chosen.values())


@pytest.mark.parametrize("stage", LANGUAGE_STAGES)
def test_logits_are_those_of_transformers(tiny_run, stage):
    directory = tiny_run / stage / "model"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False)
    ours = load_model(directory)
    tokenizer = load_tokenizer(directory)
    for prompt in _prompts(tiny_run):
        ids_1T = torch.tensor([tokenizer.render(prompt, add_generation_prompt=True)[0]])
        with torch.no_grad():
            logits_1TV = ours.logits(ours.hidden(ids_1T))
            torch.testing.assert_close(logits_1TV, theirs(ids_1T).logits, rtol=0, atol=1e-4)
        assert logits_1TV.std() > 0.01, "a flat model would pass any comparison"


def test_rewards_are_those_of_transformers(tiny_run):
    directory = tiny_run / "reward" / "model"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(directory, trust_remote_code=False)
    ours, tokenizer = load_model(directory, head="score"), load_tokenizer(directory)
    rows = [records.preference_pair(row) for row in read_jsonl(tiny_run / "corpus/preferences/validation.jsonl")]
    rendered, _ = render_pairs(rows[:8], tokenizer, max_tokens=128)
    sequences = [side.tolist() for pair in rendered for side in (pair.chosen, pair.rejected)]
    assert len(sequences) >= 8
    expected = []
    for ids in sequences:
        with torch.no_grad():
            expected.append(theirs(torch.tensor([ids])).logits.item())
    assert score_texts(ours, sequences) == pytest.approx(expected, abs=1e-4)
    # In a padded batch transformers must find each sequence's own last token.
    longest = max(map(len, sequences))
    padded = torch.tensor([ids + [tokenizer.pad_id] * (longest - len(ids)) for ids in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences])
    with torch.no_grad():
        batched = theirs(padded, attention_mask=mask).logits[:, 0].tolist()
    assert batched == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("stage", CHAT_STAGES)
def test_greedy_answers_are_the_same_tokens(tiny_run, stage):
    directory = tiny_run / stage / "model"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False)
    ours, tokenizer = load_model(directory), load_tokenizer(directory)
    rendered = [tokenizer.render(prompt, add_generation_prompt=True)[0] for prompt in _prompts(tiny_run)]
    answers = generate(ours, rendered, max_new_tokens=24, stop_ids=tokenizer.stop_ids)
    for ids, answer in zip(rendered, answers, strict=True):
        # No token that ends an answer is named here: generation_config.json of the checkpoint has to do that.
        expected = theirs.generate(
            torch.tensor([ids]), max_new_tokens=24, do_sample=False, top_p=None, temperature=None
        )
        assert answer.tokens == expected[0, len(ids) :].tolist()


def test_the_chat_template_gives_the_ids_that_the_model_was_trained_on(tiny_run):
    ours = load_tokenizer(tiny_run / "sft" / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_run / "sft" / "model", trust_remote_code=False)
    conversations = [*_prompts(tiny_run), (Message("system", "你是萌芽。"), Message("user", "写<|im_end|>看看\n"))]
    for messages in conversations:
        rows = [{"role": message.role, "content": message.content} for message in messages]
        found = theirs.apply_chat_template(rows, add_generation_prompt=True, return_dict=True)["input_ids"]
        expected = ours.render(messages, add_generation_prompt=True)[0]
        if any("<|im_end|>" in message.content for message in messages):
            # transformers lets a content forge special tokens; ours does not, and is the longer for it.
            assert len(expected) > len(found)
        else:
            assert found == expected
    assert theirs.model_max_length == 256


def test_the_tokenizer_beside_every_model_is_the_runs_own(tiny_run):
    expected = (tiny_run / "tokenizer" / "model" / "tokenizer.json").read_bytes()
    for stage in (*LANGUAGE_STAGES, "reward"):
        assert (tiny_run / stage / "model" / "tokenizer.json").read_bytes() == expected


@pytest.mark.parametrize("stage", LANGUAGE_STAGES)
def test_generation_ends_where_the_stage_was_taught_to_end(tiny_run, stage):
    """A pretrained model continues until the document ends; a chat model until its message does."""
    tokenizer = load_tokenizer(tiny_run / stage / "model")
    generation = json.loads((tiny_run / stage / "model" / "generation_config.json").read_text())
    expected = tokenizer.end_of_text_id if stage == "pretrain" else [tokenizer.end_id, tokenizer.end_of_text_id]
    assert generation["eos_token_id"] == expected
