"""Imported tokenizers give the ids of the program that they come from: sentencepiece, transformers, tokenizers."""

import json
import os
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mengya.corpus.records import Message
from mengya.corpus.sources import Rejects, read_rows
from mengya.errors import UserError
from mengya.tokenizer.convert import import_tokenizer
from mengya.tokenizer.encode import load_tokenizer
from mengya.tokenizer.sentencepiece import read_model

DATA = Path(os.environ.get("MENGYA_DATA", Path(__file__).parents[2] / "../shared/data"))
CHATGLM2 = DATA / "tokenizers" / "chatglm2"
NUM_LINES = 10_000
TEXTS = [
    "今天天气很好，我们去公园玩。",
    "Hello world, the 1234 apples!",
    "def f(x):\n    return  x + 1\n",
    "价格是 45 元",
]
ODD = [
    "",
    " ",
    "  两个空格  ",
    "\n\t\n",
    "philosophy sop <s></s><unk><0x0A>",
    "▁▁",
    "𠮷🌞é\u0301\x00",
    "aaaaaaaaa",
    "    " * 9,
]


def spm(**options):
    sentencepiece = pytest.importorskip("sentencepiece", reason="the oracle: pip install sentencepiece")
    return sentencepiece.SentencePieceProcessor(**options)


def real_lines(count):
    """Lines of all real sources in turn."""
    if not (DATA / "pretrain").is_dir():
        pytest.skip("no real data here; set MENGYA_DATA")
    readers = [
        (line for _, row in read_rows(file, Rejects()) for line in row["text"].split("\n") if line)
        for file in sorted((DATA / "pretrain").glob("*.jsonl.zst"))
    ]
    return [line for reader in readers for line in islice(reader, -(-count // len(readers)))][:count]


@pytest.fixture(scope="module")
def chatglm2(tmp_path_factory):
    if not CHATGLM2.is_dir():
        pytest.skip("no ChatGLM2 tokenizer here; set MENGYA_DATA")
    directory = tmp_path_factory.mktemp("chatglm2") / "tokenizer"
    import_tokenizer(CHATGLM2, directory)
    return directory


def test_chatglm2_gives_sentencepieces_ids_on_ten_thousand_real_lines(chatglm2):
    oracle = spm(model_file=str(CHATGLM2 / "tokenizer.model"))
    lines = [*real_lines(NUM_LINES), *ODD, *TEXTS]
    assert len(lines) >= NUM_LINES
    ours = load_tokenizer(chatglm2).encode_batch(lines)
    assert [line for line, ids in zip(lines, ours, strict=True) if ids != oracle.encode(line)] == []
    documents = ["\n".join(lines[first : first + 100]) for first in range(0, 2000, 100)]
    assert load_tokenizer(chatglm2).encode_batch(documents) == oracle.encode(documents)


def test_chatglm2_decodes_back_to_the_text_and_keeps_its_special_ids(chatglm2):
    tokenizer = load_tokenizer(chatglm2)
    for text in [text for text in [*ODD, *TEXTS] if "▁" not in text]:  # which is a space to sentencepiece too
        assert tokenizer.decode(tokenizer.encode(text)) == text
    known = {"<unk>": 0, "<s>": 1, "</s>": 2, "[MASK]": 64789, "[gMASK]": 64790, "sop": 64792, "eop": 64793}
    assert {token: tokenizer.backend.token_to_id(token) for token in known} == known
    assert tokenizer.end_of_text_id == 2
    assert tokenizer.vocab_size == 64794 + 5, "our <|im_end|> and four headers behind the original's"


def test_todays_transformers_loads_the_import_without_remote_code_and_gives_the_same(chatglm2):
    ours, theirs = load_tokenizer(chatglm2), AutoTokenizer.from_pretrained(chatglm2, trust_remote_code=False)
    assert len(theirs) == ours.vocab_size
    for text in [text for text in [*ODD, *TEXTS] if "<s>" not in text]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert "sop" not in theirs.convert_ids_to_tokens(theirs("philosophy")["input_ids"])
    talk = [("user", "你好"), ("assistant", "你好，我是萌芽。"), ("user", "再见")]
    rows = [{"role": role, "content": content} for role, content in talk]
    expected = theirs.apply_chat_template(rows, return_dict=True, return_assistant_tokens_mask=True)
    ids, trained = ours.render([Message(*turn) for turn in talk])
    assert ids == expected["input_ids"]
    assert [int(t) for t in trained] == expected["assistant_masks"]


@pytest.mark.parametrize("name", ["minimind", "zero-chatgpt"])
def test_a_tokenizer_json_keeps_its_ids_and_its_template(name, tmp_path):
    source = DATA / "tokenizers" / name
    if not source.is_dir():
        pytest.skip("no real data here; set MENGYA_DATA")
    ours = import_tokenizer(source, tmp_path / "out")
    oracle = Tokenizer.from_file(str(source / "tokenizer.json"))
    oracle.encode_special_tokens = True
    lines = [*real_lines(1000), *ODD, *TEXTS]
    assert ours.encode_batch(lines) == [e.ids for e in oracle.encode_batch(lines, add_special_tokens=False)]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    rows = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]
    messages = [Message(row["role"], row["content"]) for row in rows]
    assert ours.render(messages)[0] == theirs.apply_chat_template(rows, return_dict=True)["input_ids"]
    template = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    assert theirs.chat_template == template
    assert theirs.eos_token_id == ours.end_id
    with_ours = import_tokenizer(source, tmp_path / "template", chat_template="mengya")
    assert with_ours.encode_batch(lines) == ours.encode_batch(lines)
    assert (
        with_ours.decode(with_ours.render(messages)[0])
        == "<|im_start|>user\n你好<|im_end|><|im_start|>assistant\n好<|im_end|>"
    )


SHAPES = {
    "bpe": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"},
    "bpe-plain": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc", "add_dummy_prefix": False},
    "bpe-symbols": {"model_type": "bpe", "add_dummy_prefix": False, "user_defined_symbols": ["<|x|>"]},
    "unigram": {"model_type": "unigram", "byte_fallback": True},
}


@pytest.fixture(scope="module", params=SHAPES)
def trained(request, tmp_path_factory):
    """(sentencepiece's own, our import) of a model of this shape, trained on the spot."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the oracle: pip install sentencepiece")
    directory = tmp_path_factory.mktemp(request.param)
    texts = [f"{text}{word}{number}" for text in TEXTS for word in "春夏秋冬" for number in range(30)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(directory / "tokenizer"), vocab_size=360,
        hard_vocab_limit=False, minloglevel=2, **SHAPES[request.param],
    )  # fmt: skip
    file = directory / "tokenizer.model"
    return sentencepiece.SentencePieceProcessor(model_file=str(file)), import_tokenizer(file, directory / "out")


@given(text=st.text(st.sampled_from("今天春夏 公园 a1 23 He\nllo,  ▁。𠮷<|x>"), max_size=30))
@example(text="  今天  天气 hello  ")
def test_any_text_has_the_ids_that_sentencepiece_gives(trained, text):
    oracle, ours = trained
    assert ours.encode(text) == oracle.encode(text)


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:-3], lambda raw: b"not a model at all"])
def test_what_is_no_model_is_the_users_mistake(tmp_path, damage):
    file = tmp_path / "tokenizer.model"
    piece = b"\n\x08\n\x01a\x15\x00\x00\x80\xbf"
    file.write_bytes(piece * 3)
    file.write_bytes(damage(piece))
    with pytest.raises(UserError, match="not a SentencePiece model"):
        read_model(file)


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.json and no SentencePiece"):
        import_tokenizer(tmp_path, tmp_path / "out")
