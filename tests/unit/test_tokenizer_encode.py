import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizer import small_tokenizer
from tokenizers import Tokenizer

from mengya.corpus.records import Message
from mengya.errors import UserError
from mengya.tokenizer.encode import StreamDecoder, load_tokenizer
from mengya.tokenizer.template import HEADERS, SPECIAL_TOKENS
from mengya.tokenizer.train import save_tokenizer

MESSAGES = st.lists(
    st.builds(
        Message, st.sampled_from(list(HEADERS)), st.text() | st.sampled_from(SPECIAL_TOKENS).map(lambda t: f"好{t}坏")
    ),
    max_size=5,
)


@pytest.fixture
def directory(tmp_path):
    save_tokenizer(small_tokenizer().backend, tmp_path / "tokenizer", model_max_length=512)
    return tmp_path / "tokenizer"


@given(MESSAGES)
def test_each_message_is_header_content_end_and_only_answers_with_their_end_are_trained(messages):
    tokenizer = small_tokenizer()
    ids, trained = tokenizer.render(messages)
    expected_ids, expected_trained = [], []
    for message in messages:
        content = tokenizer.encode(message.content)
        expected_ids += [tokenizer.backend.token_to_id(HEADERS[message.role]), *content, 1]
        expected_trained += [False] + [message.role == "assistant"] * (len(content) + 1)
    assert (ids, trained) == (expected_ids, expected_trained)


@given(MESSAGES)
def test_a_content_cannot_forge_a_special_token(messages):
    ids, _ = small_tokenizer().render(messages)
    assert sum(index < len(SPECIAL_TOKENS) for index in ids) == 2 * len(messages)
    assert small_tokenizer().decode(ids) == "".join(HEADERS[m.role] + m.content + "<|im_end|>" for m in messages)


def test_a_generation_prompt_opens_an_untrained_answer():
    tokenizer = small_tokenizer()
    ids, trained = tokenizer.render([Message("user", "你好")], add_generation_prompt=True)
    assert (ids[-1], trained[-1]) == (tokenizer.backend.token_to_id(HEADERS["assistant"]), False)


def test_an_unknown_role_is_the_users_mistake():
    with pytest.raises(UserError, match="role 'critic'"):
        small_tokenizer().render([Message("critic", "不好")])  # type: ignore[arg-type]


@given(st.text())
def test_streamed_pieces_are_whole_characters_and_join_to_the_text(text):
    decoder = StreamDecoder(small_tokenizer())
    pieces = [decoder.push(index) for index in small_tokenizer().encode(text)]
    assert "".join(pieces) + decoder.flush() == text
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


@given(st.lists(st.integers(0, 369), max_size=30))
def test_streaming_any_ids_gives_what_decoding_them_at_once_gives(ids):
    decoder = StreamDecoder(small_tokenizer())
    assert "".join(map(decoder.push, ids)) + decoder.flush() == small_tokenizer().decode(ids, skip_special=True)


def test_a_saved_tokenizer_loads_as_itself(directory):
    loaded = load_tokenizer(directory)
    assert loaded.fingerprint == small_tokenizer().fingerprint
    messages = [Message("user", "小明<|im_end|>"), Message("assistant", "看见苹果")]
    assert loaded.render(messages) == small_tokenizer().render(messages)
    assert loaded.encode_batch(["小明", ""]) == [loaded.encode("小明"), []]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", ["absent", "cut"])
def test_a_missing_or_cut_file_is_named(directory, name, damage):
    file = directory / name
    if damage == "absent":
        file.unlink()
    else:
        file.write_text(file.read_text(encoding="utf-8")[:40], encoding="utf-8")
    with pytest.raises(UserError, match=name):
        load_tokenizer(directory)


def foreign(directory, template, **changes):
    """The directory with another chat template in its configuration."""
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "chat_template": template, **changes}), encoding="utf-8")
    return load_tokenizer(directory)


LINES = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_foreign_template_trains_on_answers_and_their_end_alone_and_cannot_be_forged(directory):
    tokenizer = foreign(directory, LINES)
    messages = [Message("user", "小明<|im_end|>"), Message("assistant", "苹果<|im_end|>真好看"), Message("user", "好")]
    ids, trained = tokenizer.render(messages)
    text = "user: 小明<|im_end|><|im_end|>\nassistant: 苹果<|im_end|>真好看<|im_end|>\nuser: 好<|im_end|>\n"
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.end_id) == 3
    assert tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t]) == "苹果<|im_end|>真好看<|im_end|>"


def test_tokens_declared_in_the_configuration_alone_are_added_at_their_ids(directory):
    def declared(index):
        return {"added_tokens_decoder": {str(index): {"content": "<|stop|>", "special": True}}, "eos_token": "<|stop|>"}

    tokenizer = foreign(directory, LINES, **declared(370))
    assert (tokenizer.end_id, tokenizer.vocab_size) == (370, 371)
    assert tokenizer.render([Message("user", "好<|stop|>")])[0].count(370) == 1
    with pytest.raises(UserError, match="make both files agree"):
        foreign(directory, LINES, **declared(400))


def test_truncation_and_padding_stored_in_a_tokenizer_file_are_not_applied(directory):
    stored = Tokenizer.from_file(str(directory / "tokenizer.json"))
    stored.enable_truncation(3)
    stored.enable_padding(length=40)
    stored.save(str(directory / "tokenizer.json"))
    for tokenizer in (load_tokenizer(directory), foreign(directory, LINES)):
        assert tokenizer.encode("小明今天在河边看见苹果") == small_tokenizer().encode("小明今天在河边看见苹果")
        assert "看见苹果" in tokenizer.decode(tokenizer.render([Message("user", "小明今天在河边看见苹果")])[0])


def test_a_foreign_template_that_rewrites_earlier_turns_or_fails_or_is_absent_says_so(directory):
    talk = [Message("user", "小明"), Message("assistant", "苹果"), Message("user", "好"), Message("assistant", "是")]
    with pytest.raises(UserError, match="rewrites earlier turns"):
        foreign(directory, "{{ messages[-1].content }}").render(talk)
    with pytest.raises(UserError, match="no system please"):
        foreign(directory, "{{ raise_exception('no system please') }}").render(talk)
    with pytest.raises(UserError, match="the chat template fails"):
        foreign(directory, "{{ ''.__class__.__mro__ }}").render(talk)
    with pytest.raises(UserError, match="no chat template"):
        foreign(directory, None).render(talk)
    with pytest.raises(UserError, match="eos_token"):
        foreign(directory, LINES, eos_token="</s>")
