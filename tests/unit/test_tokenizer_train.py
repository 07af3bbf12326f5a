import os
import re
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small_tokenizer import TEXTS, small_tokenizer

from mengya.errors import UserError
from mengya.tokenizer.sample import MEMORY_BYTES_BESIDE, characters_within, sample_mixture
from mengya.tokenizer.template import SPECIAL_TOKENS
from mengya.tokenizer.train import MAX_TOKEN_BYTES, measure, train_tokenizer

HAN = re.compile(r"[一-鿿]")


@given(st.text())
@example("二〇二四年12月③  \r\n\t 空  格\u3000全角，。！？——…… 👩‍👩‍👧 नमस्ते \x00\x1f \ufffd 𠮷 <|im_end|>")
def test_decoding_the_encoded_text_gives_any_unicode_text_back(text):
    tokenizer = small_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_token_mixes_han_with_anything_else_or_holds_two_digits():
    tokenizer = small_tokenizer()
    whole = [tokenizer.decode([index]) for index in range(len(SPECIAL_TOKENS), tokenizer.vocab_size)]
    whole = [token for token in whole if "\ufffd" not in token]
    assert any(len(HAN.findall(token)) > 1 for token in whole), "the sample should give merged Han words"
    for token in whole:
        assert not HAN.search(token) or HAN.sub("", token) == "", token
        assert not re.search(r"\d", token) or len(token) == 1, token


def test_a_stock_sentence_does_not_become_one_token():
    tokenizer = small_tokenizer()
    for index in range(len(SPECIAL_TOKENS), tokenizer.vocab_size):
        # A token of half a character decodes to U+FFFD, 3 bytes for what is at least 1.
        assert len(tokenizer.decode([index]).replace("\ufffd", "").encode()) <= MAX_TOKEN_BYTES


def test_special_tokens_have_the_first_ids_and_the_vocabulary_the_asked_size():
    tokenizer = small_tokenizer()
    assert tokenizer.vocab_size == 370
    assert [tokenizer.backend.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert (tokenizer.end_of_text_id, tokenizer.end_id, tokenizer.stop_ids) == (0, 1, (1, 0))


def test_another_process_with_other_hashes_and_threads_trains_the_same_tokenizer():
    program = "from small_tokenizer import small_tokenizer; print(small_tokenizer().fingerprint)"
    here = os.path.dirname(__file__)
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "RAYON_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([here, *sys.path]),
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == small_tokenizer().fingerprint


def test_a_vocabulary_beyond_the_text_names_the_largest_that_works():
    with pytest.raises(UserError, match="set it to at most") as caught:
        train_tokenizer(TEXTS, 50_000, max_characters=100_000, seed=0)
    reachable = int(re.search(r"at most (\d+)", str(caught.value)).group(1))
    assert train_tokenizer(TEXTS, reachable, max_characters=100_000, seed=0).get_vocab_size() == reachable


def test_a_vocabulary_below_bytes_and_specials_and_no_text_are_the_users_mistakes():
    with pytest.raises(UserError, match="at least 262"):
        train_tokenizer(TEXTS, 261, max_characters=100_000, seed=0)
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(["", ""], 300, max_characters=100_000, seed=0)


def _sample(texts, max_characters, seed):
    return sample_mixture((("", text) for text in texts), max_characters, seed=seed)[0]


def test_a_source_gets_its_share_of_the_sample_or_all_that_it_has():
    pairs = [(source, source * 10) for source in "甲乙丙丁" for _ in range(100)]
    _, counts = sample_mixture([*pairs, ("戊", "戊" * 30)], 1000, seed=1, shares={"甲": 0.5, "戊": 0.25})
    assert counts["甲"] == 500
    assert counts["戊"] == 30
    assert counts["乙"] + counts["丙"] + counts["丁"] == 250
    with pytest.raises(UserError, match=r"add up to 1\.5"):
        sample_mixture(pairs, 1000, seed=1, shares={"甲": 0.75, "乙": 0.75})


def test_a_memory_ceiling_makes_the_sample_smaller_and_never_larger():
    assert characters_within(1000, None) == characters_within(1000, 64) == 1000
    assert 0 < characters_within(10**9, 2) < characters_within(10**9, 4) < 10**9
    with pytest.raises(UserError, match="max_memory_gib"):
        characters_within(1000, MEMORY_BYTES_BESIDE / 2**31)


@given(st.lists(st.text("甲乙", max_size=9), max_size=30), st.integers(1, 60), st.integers(0, 3))
def test_the_sample_is_within_its_bound_and_as_full_as_whole_texts_allow(texts, max_characters, seed):
    sample = _sample(texts, max_characters, seed)
    cut = [text[:max_characters] for text in texts]
    assert sum(map(len, sample)) <= max_characters
    assert all(text in cut for text in sample)
    if sum(map(len, cut)) <= max_characters:
        assert sample == [text for text in cut if text]


def test_every_text_has_its_chance_in_the_sample():
    texts = [chr(0x4E00 + index) * 10 for index in range(20)]
    drawn = {text for seed in range(60) for text in _sample(texts, 50, seed)}
    assert drawn == set(texts)


def test_measured_rates_are_the_quotients_of_the_counts():
    tokenizer = small_tokenizer()
    result = measure(tokenizer, ["苹果", "ab"])
    tokens = len(tokenizer.encode("苹果")) + len(tokenizer.encode("ab"))
    assert (result["texts"], result["characters"], result["bytes"], result["tokens"]) == (2, 4, 8, tokens)
    assert result["characters_per_token"] == 4 / tokens
    assert result["bytes_per_token"] == 8 / tokens
