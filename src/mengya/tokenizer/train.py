"""Texts → a byte-level BPE tokenizer with a Chinese-aware pre-tokenisation, and the directory transformers loads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mengya.errors import UserError
from mengya.files import atomic_directory, write_json
from mengya.tokenizer.encode import ChatTokenizer
from mengya.tokenizer.sample import sample_mixture
from mengya.tokenizer.template import CHAT_TEMPLATE, END_OF_MESSAGE, END_OF_TEXT, SPECIAL_TOKENS

SPLIT_PATTERN = "|".join(
    (
        r"\p{Han}+",  # before the digits: 〇 is a Han character and a number both
        r"\p{N}",  # one by one, so that a number's tokens are its digits
        r" ?[\p{L}\p{M}&&[^\p{Han}]]+",
        r" ?[^\s\p{L}\p{M}\p{N}\p{Han}]{1,4}",  # bounded: a ruler of a hundred dashes is no word
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""What merges never cross: Han runs, single digits, words, punctuation and white space each stay by themselves."""

MAX_TOKEN_BYTES = 18
"""Six Han characters. Without a bound, whole stock sentences of a narrow corpus become single tokens."""

NUM_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, max_characters: int, seed: int) -> Tokenizer:
    """A byte-level BPE tokenizer of exactly `vocab_size` tokens: specials (ids 0–5), the 256 bytes, then merges.

    It is trained on a seeded sample of whole texts, at most `max_characters` together; the same texts in the same order
    give the same tokenizer. UserError when the texts hold too few merges.
    """
    sample, _ = sample_mixture((("", text) for text in texts), max_characters, seed=seed)
    return train_on_sample(sample, vocab_size)


def train_on_sample(sample: list[str], vocab_size: int) -> Tokenizer:
    """`train_tokenizer` on all of `sample`. A pair that occurs once is not merged.

    Trained by `tokenizers`, not rustbpe, which has no bound on a token's length and would be one dependency more.
    """
    smallest = len(SPECIAL_TOKENS) + NUM_BYTES
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size {vocab_size} is below the {smallest} of special tokens and bytes",
            where="tokenizer.vocab_size",
            mend=f"set it to at least {smallest}",
        )
    if not sample:
        raise UserError(
            "no text to train on", where="tokenizer", mend="see the corpus stage's funnel for what was kept"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS],
        # All 256 bytes, seen or not: what makes any Unicode text encodable without an unknown token.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=MAX_TOKEN_BYTES,
    )
    tokenizer.train_from_iterator(sample, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        reachable = tokenizer.get_vocab_size()
        raise UserError(
            f"{sum(map(len, sample))} characters of text give no more than {reachable} tokens, not {vocab_size}",
            where="tokenizer.vocab_size",
            mend=f"set it to at most {reachable}, or train on more text",
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, *, model_max_length: int | None = None) -> None:
    """A directory that `AutoTokenizer.from_pretrained` loads without remote code, whole or not at all.

    `model_max_length` is in tokens: the longest sequence of the model that it serves, where that is known.
    """
    length = {} if model_max_length is None else {"model_max_length": model_max_length}
    with atomic_directory(directory) as temporary:
        tokenizer.save(str(temporary / "tokenizer.json"))
        write_json(
            temporary / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": END_OF_TEXT,
                "eos_token": END_OF_MESSAGE,
                "pad_token": END_OF_TEXT,
                **length,
                # English detokenisation rules that would break decode(encode(x)) == x.
                "clean_up_tokenization_spaces": False,
                "add_prefix_space": False,
                "chat_template": CHAT_TEMPLATE,
            },
        )


def measure(tokenizer: ChatTokenizer, texts: Iterable[str]) -> dict[str, float]:
    """Counts over `texts` and what a token holds on average; texts the tokenizer was not trained on tell the truth.

    `vocabulary_used` is the share of the vocabulary that occurs at least once.
    """
    num_texts = num_characters = num_bytes = num_tokens = 0
    used: set[int] = set()
    for text in texts:
        ids = tokenizer.encode(text)
        num_texts += 1
        num_characters += len(text)
        num_bytes += len(text.encode())
        num_tokens += len(ids)
        used.update(ids)
    if num_tokens == 0:
        raise UserError("no text to measure the tokenizer on", where="tokenizer", mend="hold out some documents")
    return {
        "texts": num_texts,
        "characters": num_characters,
        "bytes": num_bytes,
        "tokens": num_tokens,
        "characters_per_token": num_characters / num_tokens,
        "bytes_per_token": num_bytes / num_tokens,
        "vocabulary_used": len(used) / tokenizer.vocab_size,
    }
