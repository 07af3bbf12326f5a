"""Pairs of own answers: which prompts are fresh, which two answers make a pair, what is dropped, and that nothing is lost."""

from __future__ import annotations

import itertools
import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_tokenizer import small_tokenizer

from mengya.corpus import playground
from mengya.corpus.fresh_prompts import Prompt, asked_key, by_opening, choose, sample, used_among
from mengya.corpus.records import Conversation, Message, PreferencePair, Question, preference_pair, to_row
from mengya.errors import UserError
from mengya.evaluate.answers import SAMPLED, Answers, answer
from mengya.files import read_jsonl, write_jsonl
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.rl.own_pairs import Sampled, answer_seed, judged, make_pair, unbalanced
from mengya.rl.terms import RewardTerms
from mengya.run import Context, Run
from mengya.settings import PreferencesSettings, Recipe, RewardTerm
from mengya.stages import STAGES, own_pairs
from mengya.stages.preferences import preference_pairs
from mengya.stages.prompts import gather_prompts
from mengya.train.parallel import World

WORLD = World(0, 1, torch.device("cpu"), torch.float32)
BEST_OF_N = PreferencesSettings(judge="rules")
REFERENCE = PreferencesSettings(method="reference")
SUM = Question((Message("user", "3加5等于几？"),), "arithmetic", (("8",),), source="sums")


def _asked(*turns: str) -> tuple[Message, ...]:
    roles = itertools.cycle(("user", "assistant"))
    return tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))


def _prompt(*turns: str, reference: str = "好的。", held_out: bool | None = None) -> Prompt:
    return Prompt(Question(_asked(*turns), "open", source="mine"), reference, "file:1", held_out)


# ------------------------------------------------------------------------------------------------------ fresh prompts


def test_the_same_question_is_known_whatever_was_answered_and_however_it_is_punctuated():
    plain = asked_key(_asked("你好", "你好！", "你是谁？"))
    assert asked_key(_asked("你好。", "滚开。", " 你是谁")) == plain
    assert asked_key((Message("system", "请简短。"), *_asked("你好", "好", "你是谁"))) == plain
    assert asked_key(_asked("你是谁？")) != plain, "asked without what came before it is another question"
    assert asked_key(_asked("3-1")) != asked_key(_asked("3+1"))
    assert asked_key(_asked("你好你", "", "是谁")) != asked_key(_asked("你好", "", "你是谁"))


def test_what_training_asks_at_any_turn_is_used():
    trained = _asked("甲", "一", "乙", "二", "丙", "三")
    asked = {name: asked_key(_asked(*turns)) for name, turns in {
        "first": ("甲",), "second": ("甲", "另一", "乙"), "only later": ("乙",), "never": ("丁",)
    }.items()}  # fmt: skip
    assert used_among(set(asked.values()), [trained]) == {asked["first"], asked["second"]}


def test_every_candidate_is_chosen_or_passed_over_for_a_reason():
    prompts = [_prompt(text) for text in ("甲", "乙", "甲！", "丙", "丁丁丁丁丁丁", "戊", "己")]
    used = {asked_key(_asked("乙")): "trained_on", asked_key(_asked("丙")): "held_out"}
    chosen, drops = choose(prompts, 2, used, lambda p: len(p.messages[0].content) < 6, lambda p: False)
    assert [prompt.messages[0].content for prompt in chosen] == ["甲", "戊"]
    assert [(drop.excerpt, drop.reason) for drop in drops] == [
        ("乙", "trained_on"), ("甲！", "duplicate_prompt"), ("丙", "held_out"), ("丁丁丁丁丁丁", "prompt_too_long")
    ]  # fmt: skip
    assert {drop.source for drop in drops} == {"mine"}


def test_the_split_follows_the_first_question_unless_the_prompt_has_its_side():
    split = by_opening(0.4, 1)
    prompts = [_prompt(f"第{n}个问题") for n in range(300)]
    chosen, _ = choose(prompts, 300, {}, lambda p: True, split)
    share = sum(prompt.held_out for prompt in chosen) / 300
    assert 0.3 < share < 0.5
    further = [_prompt(f"第{n}个问题", "答", "还有呢？") for n in range(300)]
    assert [split(prompt) for prompt in further] == [prompt.held_out for prompt in chosen]
    (kept,), _ = choose([_prompt("甲", held_out=True)], 1, {}, lambda p: True, lambda p: False)
    assert kept.held_out


def test_a_sample_does_not_depend_on_the_order_and_is_the_whole_where_there_is_little():
    prompts = [_prompt(f"第{n}个问题") for n in range(100)]
    few, seen = sample(prompts, 5, 1)
    assert (len(few), seen) == (20, 100)
    assert sample(reversed(prompts), 5, 1)[0] == few
    assert sample(prompts, 5, 2)[0] != few
    assert {p.messages for p in sample(prompts, 50, 1)[0]} == {p.messages for p in prompts}


def test_a_prompt_survives_being_written():
    prompt = Prompt(SUM, "8。", "sums:1", True)
    assert Prompt.of_row(prompt.row()) == prompt


def test_exercises_come_with_a_right_answer_and_are_others_than_grpo_has():
    world = playground.Playground(seed=3, num_people=20)
    made = playground.generate_answered_exercises(world, 200)
    wrong = [(q.kind, q.messages[-1].content, text) for q, text in made if not playground.is_right(text, q)]
    assert not wrong
    of_grpo = playground.generate_exercises(world, 200)
    assert [q.messages for q, _ in made] != [q.messages for q in of_grpo]
    assert {q.kind for q, _ in playground.generate_answered_exercises(world, 20, ["arithmetic"])} == {"arithmetic"}


# -------------------------------------------------------------------------------------------------------------- pairs


def _context_with_pairs(tmp_path, own_margins):
    """A run directory that has one pair of the corpus, and own ones with these margins."""
    pair = PreferencePair(_asked("问"), "好的回答", "坏的回答", "mine")
    own = [replace(pair, prompt=_asked(f"问{i}"), margin=margin) for i, margin in enumerate(own_margins)]
    for folder, pairs in (("corpus/preferences", [pair]), ("preferences/pairs", own)):
        write_jsonl(tmp_path / folder / "train.jsonl", map(to_row, pairs))
    return SimpleNamespace(path=tmp_path.joinpath, stage=SimpleNamespace(name="reward"))


def test_of_own_pairs_those_alone_are_taken_whose_scores_differ_enough(tmp_path):
    context = _context_with_pairs(tmp_path, [0.1, 0.6, None, 0.4])
    taken = [
        [pair.prompt[0].content for pair in preference_pairs(context, "train", *given)]
        for given in [("own",), ("own", 0.4), ("both", 0.0), ("corpus", 0.4)]
    ]
    assert taken == [["问0", "问1", "问2", "问3"], ["问1"], ["问", "问0", "问1", "问3"], ["问"]]


def test_a_margin_that_no_own_pair_has_is_said(tmp_path):
    with pytest.raises(UserError, match=r"none of 2 own pairs.*more than 0\.4") as said:
        preference_pairs(_context_with_pairs(tmp_path, [0.1, None]), "train", "both", 0.4)
    assert said.value.where == "reward.own_min_margin"


def _sampled(texts, scores, finished=None):
    return Sampled(list(texts), finished or [True] * len(texts), list(scores))


def test_best_of_n_is_the_best_against_the_worst_and_of_equals_the_first():
    texts = ["中等的回答在这里", "最差的一个说了别的", "最好的话说得很清楚", "也很好但在后面", "也很差但在后面"]
    pair, reason = make_pair(_prompt("问"), _sampled(texts, [0.5, 0.0, 1.0, 1.0, 0.0]), BEST_OF_N)
    assert reason is None
    assert (pair.chosen, pair.rejected) == (texts[2], texts[1])
    assert (pair.prompt, pair.source, pair.origin, pair.reason) == (_asked("问"), "mine", "file:1", "own_best_of_n")
    assert pair.margin == 1.0
    assert preference_pair(to_row(pair)) == pair


@pytest.mark.parametrize(
    ("sampled", "settings", "reason"),
    [
        (_sampled(["一二三四", "五六七八"], [1.0, 1.0]), {}, "no_margin"),
        (_sampled(["一二三四", "五六七八"], [1.0, 0.7]), {"min_margin": 0.5}, "no_margin"),
        (_sampled(["一二三四", "五六七八"], [1.0, 0.4]), {"min_margin": 0.5}, None),
        (_sampled(["一二三四", "五六七八"], [1.0, 0.0], [False, True]), {}, "endless"),
        (_sampled(["一二三四", "五六七八"], [1.0, 0.0], [True, False]), {}, None),
        (_sampled(["一二三\ufffd", "五六七八"], [1.0, 0.0]), {}, "broken_characters"),
        (_sampled(["一二三四", "五六七\ufffd"], [1.0, 0.0]), {}, None),
        (_sampled(["一二三四", "五六七八"], [1.0, None]), {}, "one_answer"),
        (_sampled(["", "五六七八"], [1.0, 0.0]), {}, "one_answer"),
        (_sampled(["", ""], [1.0, 0.0]), {}, "one_answer"),
        (_sampled(["一二三四", "一二，三四。"], [1.0, 0.0]), {}, "equal_answers"),
    ],
)
def test_why_a_pair_of_own_answers_is_dropped(sampled, settings, reason):
    assert make_pair(_prompt("问"), sampled, BEST_OF_N.model_copy(update=settings))[1] == reason


def _jaccard(a, b):
    """Of character 5-grams, by sets."""
    one, two = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (a, b))
    return len(one & two) / len(one | two)


def test_near_equal_is_a_jaccard_similarity_of_character_5_grams():
    rng = random.Random("near")
    original = "".join(rng.sample([chr(0x4E00 + n) for n in range(2000)], 60))
    for changed in (1, 2, 4, 8):
        text = list(original)
        for place in rng.sample(range(60), changed):
            text[place] = chr(0x7000 + place)
        other = "".join(text)
        similarity = _jaccard(original, other)
        for threshold, dropped in ((similarity - 1e-6, True), (similarity + 1e-6, False)):
            settings = BEST_OF_N.model_copy(update={"max_similarity": threshold})
            reason = make_pair(_prompt("问"), _sampled([original, other], [1.0, 0.0]), settings)[1]
            assert (reason == "near_equal") == dropped
    short = make_pair(_prompt("问"), _sampled(["等于七。", "等于八。"], [1.0, 0.0]), BEST_OF_N)
    assert short[1] is None, "one character may be all the difference"


def test_the_reference_stands_against_the_own_answer_unless_that_is_right():
    wrong = make_pair(Prompt(SUM, "3加5等于8。"), _sampled(["等于7。"], [0.0]), REFERENCE)
    assert wrong == (PreferencePair(SUM.messages, "3加5等于8。", "等于7。", "sums", "own_reference", ""), None)
    right = _sampled(["我算出来是8。"], [0.0])
    assert make_pair(Prompt(SUM, "3加5等于8。"), right, REFERENCE)[1] == "right_answer"
    keeps = REFERENCE.model_copy(update={"drop_right_answers": False})
    assert make_pair(Prompt(SUM, "3加5等于8。"), right, keeps)[1] is None
    assert make_pair(_prompt("随便", reference="随便。"), _sampled(["随便说说"], [0.0]), REFERENCE)[1] is None
    assert make_pair(_prompt("随便"), _sampled([""], [0.0]), REFERENCE)[1] == "empty"
    assert make_pair(_prompt("随便"), _sampled(["好的"], [0.0]), REFERENCE)[1] == "equal_answers"


# ------------------------------------------------------------------------------------------------------------- judges


def _answers(*texts, finished=None):
    return Answers(list(texts), [[1]] * len(texts), finished or [True] * len(texts), [[1]] * len(texts))


def test_rules_alone_see_endless_and_repetitive_answers():
    answers = _answers("说得好。", "说得好", "啊" * 40, finished=[True, False, True])
    fine, endless, loop = judged([SUM] * 3, answers, BEST_OF_N, None, WORLD)
    assert fine == 0.0
    assert endless == -BEST_OF_N.missing_end_penalty
    assert loop == pytest.approx(-39 / 40), "the first of 40 says something, the others repeat it"


def test_the_gold_judge_puts_right_above_wrong():
    settings = PreferencesSettings(judge="gold")
    right, wrong = judged([SUM] * 2, _answers("等于8。", "等于9。"), settings, None, WORLD)
    assert right - wrong == pytest.approx(0.6)


def test_a_users_function_judges_and_its_failures_are_no_scores(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(prompt, answer, meta):\n    return float('nan') if '坏' in answer else len(answer)\n")
    settings = PreferencesSettings(
        judge="rewards", rewards=[RewardTerm(kind="function", function=f"{file}:score", weight=2.0)]
    )
    terms = RewardTerms.of(settings, None, WORLD, "preferences")
    try:
        assert judged([SUM] * 3, _answers("一", "一二三", "坏"), settings, terms, WORLD) == [2.0, 6.0, None]
    finally:
        terms.close()


# ------------------------------------------------------------------------------------------------------------ balance


def _of_lengths(number, chosen, rejected):
    return PreferencePair(_asked(f"问{number}"), "好" * chosen, "坏" * rejected, "mine")


def test_balance_drops_the_fewest_pairs_and_the_same_ones_in_any_order():
    rng = random.Random("balance")
    pairs = [_of_lengths(n, rng.randint(1, 9), rng.randint(1, 6)) for n in range(200)]
    sides = [(len(p.chosen) > len(p.rejected)) - (len(p.chosen) < len(p.rejected)) for p in pairs]
    gone = unbalanced(pairs, 1)
    kept = [side for index, side in enumerate(sides) if index not in gone]
    assert kept.count(1) == kept.count(-1) > 0
    assert len(gone) == abs(sides.count(1) - sides.count(-1))
    assert kept.count(0) == sides.count(0) > 0, "pairs of equal length stay"
    order = rng.sample(range(200), 200)
    shuffled = unbalanced([pairs[index] for index in order], 1)
    assert {order[index] for index in shuffled} == gone
    assert unbalanced(pairs, 2) != gone


# -------------------------------------------------------------------------------------------------------------- seeds


def test_an_answer_depends_on_its_own_seed_and_not_on_the_prompts_beside_it():
    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(tokenizer.vocab_size, width=16, num_layers=1, num_heads=2, ffn_width=32, max_positions=64)
    )
    prompts = [_asked(f"小明有{n}只小船吗？") for n in (1, 1, 2, 3, 3)]
    seeds = [answer_seed(7, prompt, number) for prompt, number in ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1))]
    assert len(set(seeds)) == 5

    def tokens(order, batch_size):
        found = answer(
            model, tokenizer, [prompts[i] for i in order], max_new_tokens=12, sampling=SAMPLED,
            seed=[seeds[i] for i in order], batch_size=batch_size,
        ).tokens  # fmt: skip
        return dict(zip(order, found, strict=True))

    together = tokens([0, 1, 2, 3, 4], 5)
    assert together[0] != together[1], "two samples of one prompt"
    assert tokens([4, 2], 1) == {4: together[4], 2: together[2]}
    assert tokens([3, 1, 0], 2) == {number: together[number] for number in (3, 1, 0)}


# ---------------------------------------------------------------------------------------------- prompts of a corpus's own


@pytest.fixture
def real_run(tmp_path):
    """A run on data without a truth, as the corpus stage leaves it: (context, prompts/ to make)."""
    recipe = Recipe.model_validate({"name": "real", "preferences": {"num_prompts": 10}})
    corpus = tmp_path / "corpus"

    def pair(prompt, number):
        return to_row(PreferencePair(_asked(prompt), f"好{number}", f"坏{number}", "rated", origin=f"rated:{number}"))

    rows = {
        "preferences/train": [pair("甲？", 1), pair("甲？", 2), pair("乙？", 3), pair("丙？", 4)],
        "preferences/validation": [pair("丁？", 5)],
        "conversations/train": [to_row(Conversation(_asked("乙", "一", "丙", "二"), "chat"))],
        "evaluation/questions": [to_row(Question(_asked("你是谁？"), "identity", (("萌芽",),)))],
        "evaluation/conversations": [to_row(Conversation(_asked("戊", "三"), "chat"))],
    }
    for name, held in rows.items():
        write_jsonl(corpus / f"{name}.jsonl", held)
    return Context(recipe, Run(tmp_path), STAGES["preferences"]), tmp_path / "preferences" / "prompts"


def _gathered(context, place):
    assert gather_prompts(context, small_tokenizer(), 200, place) == len(list(read_jsonl(place / "prompts.jsonl")))
    prompts = [Prompt.of_row(row) for row in read_jsonl(place / "prompts.jsonl")]
    return prompts, sorted((row["reason"], row["origin"]) for row in read_jsonl(place / "drops.jsonl"))


def test_without_exercises_the_prompts_are_those_of_the_corpus_pairs_on_their_sides(real_run):
    prompts, drops = _gathered(*real_run)
    sides = {
        prompt.messages[0].content: (prompt.held_out, prompt.reference, prompt.question.kind) for prompt in prompts
    }
    assert sides == {"甲？": (False, "好1", "open"), "丙？": (False, "好4", "open"), "丁？": (True, "好5", "open")}
    assert drops == [("duplicate_prompt", "rated:2"), ("trained_on", "rated:3")]
    again = (real_run[1] / "prompts.jsonl").stat().st_mtime_ns
    assert _gathered(*real_run)[0] == prompts
    assert (real_run[1] / "prompts.jsonl").stat().st_mtime_ns == again, "they are chosen once"


def test_without_any_prompt_it_is_said(real_run):
    context, place = real_run
    for split in ("train", "validation"):
        write_jsonl(context.path(f"corpus/preferences/{split}.jsonl"), [])
    with pytest.raises(UserError, match="no prompt is left of 0"):
        gather_prompts(context, small_tokenizer(), 200, place)
    assert not place.exists()


def _scripted(model, tokenizer, prompts, world, *, seed, **how):
    """Answers that depend on nothing but their own seeds; one in seven is empty, one in five never ends."""
    texts = [
        "" if own % 7 == 0 else "".join(chr(0x4E00 + own // n % 5000) for n in range(1, own % 11 + 3)) for own in seed
    ]
    return Answers(texts, [[1]] * len(seed), [own % 5 > 0 for own in seed], [[1]] * len(seed))


@pytest.fixture
def scripted_run(tmp_path, monkeypatch):
    """A function: settings → (outcome, rows of answers, pairs) of the stage on 60 prompts, its model's answers scripted."""
    pairs = [PreferencePair(_asked(f"第{n}个问题"), "好的", "坏的", "rated", origin=f"rated:{n}") for n in range(60)]
    corpus = tmp_path / "corpus"
    write_jsonl(corpus / "preferences" / "train.jsonl", map(to_row, pairs[:45]))
    write_jsonl(corpus / "preferences" / "validation.jsonl", map(to_row, pairs[45:]))
    for name in ("conversations/train", "evaluation/questions", "evaluation/conversations"):
        write_jsonl(corpus / f"{name}.jsonl", [])
    model = Transformer(
        ModelConfig(small_tokenizer().vocab_size, width=16, num_layers=1, num_heads=2, ffn_width=32, max_positions=128)
    )
    monkeypatch.setattr(own_pairs, "load_language_model", lambda *_: model)
    monkeypatch.setattr(own_pairs, "tokenizer_of", lambda _: small_tokenizer())
    monkeypatch.setattr(own_pairs, "sampled_answers", _scripted)

    def execute(**settings):
        recipe = Recipe.model_validate(
            {"name": "scripted", "threads": 1, "device": "cpu", "preferences": {"batch_size": 8, **settings}}
        )
        context = Context(recipe, Run(tmp_path), STAGES["preferences"])
        outcome = own_pairs.execute(context)
        rows = [row for file in sorted((context.directory / "answers").iterdir()) for row in read_jsonl(file)]
        made = [row for split in ("train", "validation")
                for row in read_jsonl(context.directory / "pairs" / f"{split}.jsonl")]  # fmt: skip
        return outcome, rows, made

    return execute


def test_best_of_n_by_a_users_function_that_sometimes_fails_loses_no_prompt(scripted_run, tmp_path):
    judge = tmp_path / "mine.py"
    judge.write_text("def score(prompt, answer, meta):\n    return ord(answer[0]) % 97  # an empty answer raises\n")
    rewards = [{"kind": "function", "function": f"{judge}:score"}]
    outcome, rows, pairs = scripted_run(judge="rewards", rewards=rewards, num_samples=4)
    assert [row["prompt"] for row in rows] == list(range(60))
    texts = [text for row in rows for text in row["texts"]]
    assert outcome.counts["answers"] == len(texts) == 240
    assert outcome.counts["failed_scores"] == outcome.counts["empty_answers"] == texts.count("") > 10
    of_chosen = {text: row for row in rows for text in row["texts"] if text}
    assert len(pairs) > 20
    for pair in pairs:
        row = of_chosen[pair["chosen"]]
        known = [score for score in row["scores"] if score is not None]
        assert row["scores"][row["texts"].index(pair["chosen"])] == max(known)
        assert row["scores"][row["texts"].index(pair["rejected"])] == min(known) < max(known)
        assert row["finished"][row["texts"].index(pair["chosen"])]
    funnel = outcome.counts["pairs"]
    assert funnel["kept"]["pairs"] == len(pairs)
    assert len(pairs) + sum(entry["pairs"] for entry in funnel["dropped"].values()) == 60
    held_out = {f"第{n}个问题" for n in range(45, 60)}
    validation = pairs[funnel["kept"]["train"]["pairs"] :]
    assert {pair["prompt"][0]["content"] for pair in validation} <= held_out
    assert not {pair["prompt"][0]["content"] for pair in pairs[: -len(validation)]} & held_out


def test_an_answer_is_the_same_however_the_prompts_are_cut_into_parts(scripted_run, tmp_path):
    _, rows, _ = scripted_run(num_samples=3)
    shutil.rmtree(tmp_path / "preferences")
    _, others, _ = scripted_run(num_samples=3, batch_size=64)
    assert [row["texts"] for row in others] == [row["texts"] for row in rows]


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"judge": "gold"}, "preferences.judge"),
        ({"judge": "rewards", "rewards": [{"kind": "truth"}]}, "preferences.rewards"),
        ({"rewards": [{"kind": "truth"}]}, "preferences.rewards"),
        ({"judge": "rewards", "rewards": [{"kind": "function"}]}, "preferences.rewards.0.function"),
        ({"min_margin": 99.0}, "preferences"),
    ],
)
def test_a_judge_that_cannot_judge_is_named(scripted_run, settings, where):
    with pytest.raises(UserError) as caught:
        scripted_run(**settings)
    assert caught.value.where == where
