"""transformers reads what Mengya writes and gives the same ids, masks and text."""

import json

import pytest
from transformers import AutoTokenizer

from mengya.corpus.records import Message
from mengya.tokenizer.encode import load_tokenizer
from mengya.tokenizer.train import save_tokenizer, train_tokenizer

TALKS = [
    [("user", "你好！"), ("assistant", "你好，我是萌芽。")],
    [("system", "你是一个助手。\n\n说话要短。"), ("user", "  3加45等于几？ "), ("assistant", "48\n"), ("user", "谢谢")],
    [("user", "查天气"), ("assistant", ""), ("tool", '{"天气": "晴"}'), ("assistant", "今天晴，25度。🌞")],
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    texts = [f"今天{name}说：“你好，我要{count}个苹果！” hello {name}\n" for name in "赵钱孙李" for count in range(40)]
    path = tmp_path_factory.mktemp("parity") / "tokenizer"
    save_tokenizer(train_tokenizer(texts, 310, max_characters=100_000, seed=1), path, model_max_length=512)
    return path


def both(directory):
    return load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)


@pytest.fixture(params=["ours", "chatml"])
def pair(request, directory, tmp_path):
    if request.param == "ours":
        return both(directory)
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHATML}), encoding="utf-8")
    return both(tmp_path)


@pytest.mark.parametrize("talk", TALKS)
def test_chat_template_gives_the_same_ids_and_the_same_assistant_mask(pair, talk):
    ours, theirs = pair
    rows = [{"role": role, "content": content} for role, content in talk]
    expected = theirs.apply_chat_template(rows, return_dict=True, return_assistant_tokens_mask=True)
    ids, trained = ours.render([Message(role, content) for role, content in talk])
    assert ids == expected["input_ids"]
    assert [int(t) for t in trained] == expected["assistant_masks"]


@pytest.mark.parametrize("talk", TALKS)
def test_generation_prompts_are_the_same(pair, talk):
    ours, theirs = pair
    rows = [{"role": role, "content": content} for role, content in talk]
    expected = theirs.apply_chat_template(rows, add_generation_prompt=True, return_dict=True)
    assert ours.render([Message(*turn) for turn in talk], add_generation_prompt=True)[0] == expected["input_ids"]


@pytest.mark.parametrize(
    "text", ["", "今天 hello，３５〇 world!!!!!!\n\n\n  x", "don 't , do n't . 你 好 ?", "👩‍👩‍👧é\u0301"]
)
def test_plain_text_goes_there_and_back_alike(directory, text):
    ours, theirs = both(directory)
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text == ours.decode(ours.encode(text))


def test_special_tokens_and_length_are_known_there(directory):
    ours, theirs = both(directory)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, ours.end_id, ours.pad_id)
    assert theirs.model_max_length == 512
    assert len(theirs) == ours.vocab_size
