"""A tokenizer directory → text to ids and back, messages to ids, and ids to text while they stream."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from mengya.corpus.records import Message
from mengya.errors import UserError
from mengya.files import read_json
from mengya.tokenizer import template
from mengya.tokenizer.importers import ForeignTemplate, add_declared_tokens, chat_template_of, special_token


class ChatTokenizer:
    """Text ↔ ids for one vocabulary and one chat template.

    Encoded text is always plain: `<|im_end|>` written in a text gives the tokens of its characters, never the special
    token. `end_id` ends an answer (eos), `end_of_text_id` bounds documents and pads.
    """

    def __init__(
        self,
        backend: Tokenizer,
        *,
        end_of_text: str = template.END_OF_TEXT,
        end: str = template.END_OF_MESSAGE,
        foreign: ForeignTemplate | None = None,
    ) -> None:
        self.backend = Tokenizer.from_str(backend.to_str())
        self.backend.encode_special_tokens = True
        self._foreign = foreign
        self.end_of_text_id = template.id_of(self.backend, end_of_text)
        self.end_id = template.id_of(self.backend, end)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the least number of rows of an embedding."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def pad_id(self) -> int:
        return self.end_of_text_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids after which an answer is over."""
        return tuple(dict.fromkeys((self.end_id, self.end_of_text_id)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides which ids a text gets."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> tuple[list[int], list[bool]]:
        """Ids of the messages in the chat template, and which of them are trained on (see `template.render`)."""
        if self._foreign is not None:
            return self._foreign.render(self.backend, messages, add_generation_prompt=add_generation_prompt)
        return template.render(self.backend, messages, add_generation_prompt=add_generation_prompt)


class StreamDecoder:
    """Ids one by one → the text that each completes; the pieces joined equal `decode` of all of them.

    A byte-level token may hold a part of a character: that part waits until the rest has come, or for `flush`.
    """

    def __init__(self, tokenizer: ChatTokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids: list[int] = []
        self._given = ""

    def push(self, token_id: int) -> str:
        """What can be shown now: whole characters only, possibly none."""
        self._ids.append(token_id)
        # Only the trailing replacement characters can still change. All ids are decoded anew, since some decoders treat
        # the first token unlike the others; an answer of 2000 tokens pays less than a second for that in all.
        return self._give(self._tokenizer.decode(self._ids, skip_special=self._skip_special).rstrip("\ufffd"))

    def flush(self) -> str:
        """What is left at the end, broken characters as U+FFFD."""
        return self._give(self._tokenizer.decode(self._ids, skip_special=self._skip_special))

    def _give(self, text: str) -> str:
        new = text[len(self._given) :]
        self._given += new
        return new


def load_tokenizer(directory: Path) -> ChatTokenizer:
    """The tokenizer of a directory that `save_tokenizer` or transformers wrote.

    It holds tokenizer.json and tokenizer_config.json. A foreign tokenizer keeps its own chat template; where it has
    none, text works and `render` is a UserError.
    """
    directory = Path(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (directory / name).is_file():
            raise UserError(f"no {name} here", where=directory, mend="give a directory that holds a saved tokenizer")
    try:
        backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise UserError(
            f"not a tokenizer file ({error})", where=directory / "tokenizer.json", mend="write or copy it again"
        ) from error
    try:
        config = read_json(directory / "tokenizer_config.json")
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(
            f"not JSON ({error})", where=directory / "tokenizer_config.json", mend="write or copy it again"
        ) from error
    backend.no_truncation()  # some tokenizer.json files bring these along: nothing may be cut in silence
    backend.no_padding()
    jinja = chat_template_of(directory, config)
    ours = all(backend.token_to_id(token) == index for index, token in enumerate(template.SPECIAL_TOKENS))
    if ours and jinja == template.CHAT_TEMPLATE:
        return ChatTokenizer(backend)
    add_declared_tokens(backend, config, directory / "tokenizer_config.json")
    end = special_token(config, "eos_token")
    if end is None or backend.token_to_id(end) is None:
        raise UserError(
            f"eos_token {end!r} is not in the vocabulary",
            where=directory / "tokenizer_config.json",
            mend="name the token that ends an answer",
        )
    # "end_of_text" is our own key, written by an import: a SentencePiece model's documents end with its eos.
    named = (special_token(config, "bos_token"), special_token(config, "pad_token"), end)
    candidates = (config.get("end_of_text"), template.END_OF_TEXT, *named)
    end_of_text = next(token for token in candidates if token is not None and backend.token_to_id(token) is not None)
    foreign = ForeignTemplate(jinja, config, backend, directory)
    return ChatTokenizer(backend, end_of_text=end_of_text, end=end, foreign=foreign)
