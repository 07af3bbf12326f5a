import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizer import small_tokenizer

from mengya.corpus.records import Conversation, Message
from mengya.data.conversations import fit_prompt, render_conversations, without_leading_turns
from mengya.data.packing import IGNORE

TURN = st.lists(st.text("小明看见苹果", max_size=12), min_size=2, max_size=2)


@st.composite
def conversations(draw):
    messages = [Message("system", "你是小明")] if draw(st.booleans()) else []
    for question, answer in draw(st.lists(TURN, min_size=1, max_size=5)):
        messages += [Message("user", question)]
        if draw(st.booleans()):
            messages += [Message("assistant", "我查"), Message("tool", "苹果")]
        messages += [Message("assistant", answer)]
    return Conversation(tuple(messages), "test")


def split(ids):
    """Rendered ids cut after each message's end token."""
    ends = [index + 1 for index, token in enumerate(ids) if token == small_tokenizer().end_id]
    return [ids[a:b] for a, b in itertools.pairwise([0, *ends])]


@given(st.lists(conversations(), min_size=1, max_size=4), st.integers(3, 60))
def test_over_long_conversations_lose_whole_leading_turns_and_nothing_else(talks, max_tokens):
    tokenizer = small_tokenizer()
    examples, counts = render_conversations(talks, tokenizer, max_tokens=max_tokens)
    kept = 0
    for talk in talks:
        whole = split(tokenizer.render(talk.messages)[0])
        system, rest = (whole[:1], whole[1:]) if talk.messages[0].role == "system" else ([], whole)
        roles = [message.role for message in talk.messages[len(system) :]]
        starts = [index for index, role in enumerate(roles) if role == "user"]
        fitting = [s for s in starts if sum(map(len, [*system, *rest[s:]])) <= max_tokens]
        if fitting:
            ids, trained = examples[kept]
            assert split(ids.tolist()) == [*system, *rest[fitting[0] :]]
            assert ids[-1] == tokenizer.end_id
            assert trained[-1]
            kept += 1
    assert (counts["examples"], counts["dropped"]) == (kept, len(talks) - kept)
    assert len(examples) == kept


@given(conversations())
def test_targets_are_the_answers_and_their_ends_and_nothing_else(talk):
    tokenizer = small_tokenizer()
    examples, counts = render_conversations([talk], tokenizer, max_tokens=10_000)
    inputs, targets = examples.piece(0, 0, int(examples.num_inputs_N[0]))
    learnt = targets[targets != IGNORE].tolist()
    expected = [[*tokenizer.encode(m.content), tokenizer.end_id] for m in talk.messages if m.role == "assistant"]
    assert learnt == list(itertools.chain(*expected))
    assert counts["trained_tokens"] == len(learnt)
    following = np.append(inputs[1:], tokenizer.end_id)
    np.testing.assert_array_equal(targets[targets != IGNORE], following[targets != IGNORE])


def test_turns_dropped_are_counted_and_a_tool_result_stays_with_its_question():
    messages = (
        Message("system", "你是小明"),
        Message("user", "一"),
        Message("assistant", "我查"),
        Message("tool", "苹果"),
        Message("assistant", "二"),
        Message("user", "三"),
        Message("assistant", "四"),
    )
    left = list(without_leading_turns(messages))
    assert left == [(0, messages), (1, (messages[0], *messages[5:]))]
    short = len(small_tokenizer().render(left[1][1])[0])
    _, counts = render_conversations([Conversation(messages, "t")], small_tokenizer(), max_tokens=short)
    assert (counts["examples"], counts["turns_dropped"]) == (1, 1)
    _, counts = render_conversations([Conversation(messages, "t")], small_tokenizer(), max_tokens=short - 1)
    assert (counts["examples"], counts["dropped"], counts["turns_dropped"]) == (0, 1, 0)


def test_a_prompt_loses_leading_turns_but_never_its_question():
    prompt = (Message("user", "小明" * 9), Message("assistant", "苹果"), Message("user", "看见"))
    last = small_tokenizer().render(prompt[2:], add_generation_prompt=True)[0]
    assert fit_prompt(small_tokenizer(), prompt, len(last)) == (last, 1)
    assert fit_prompt(small_tokenizer(), prompt, len(last) - 1) is None
