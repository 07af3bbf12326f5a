"""Messages → token ids and the mask of what is trained on; and the same template as Jinja for other programs.

A message is HEADER content `<|im_end|>`, without a newline after it. Each header (`<|im_start|>user\\n`) is one special
token, so a turn costs two tokens beside its content: on a small model with a short context that is worth having.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from mengya.corpus.records import ROLES, Message
from mengya.errors import UserError

END_OF_TEXT = "<|endoftext|>"
"""Stands at both ends of a pretraining document; also bos and padding."""
END_OF_MESSAGE = "<|im_end|>"
"""Ends every message; eos of the chat models."""
HEADERS = {role: f"<|im_start|>{role}\n" for role in ROLES}
SPECIAL_TOKENS = (END_OF_TEXT, END_OF_MESSAGE, *HEADERS.values())
"""In the order of their ids, which start at 0."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + '<|im_end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""The same template in Jinja, with transformers' `{% generation %}` marks around what is trained on."""


def id_of(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    assert index is not None, f"{token!r} is not in the vocabulary"
    return index


def render(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False
) -> tuple[list[int], list[bool]]:
    """Ids of the messages, and for each id whether it is trained on: an assistant's content and its `<|im_end|>`.

    Special tokens written inside a content stay plain text, so no message can end itself or open another role's turn:
    the tokenizer's `encode_special_tokens` must be set.
    """
    assert tokenizer.encode_special_tokens, "a content could forge special tokens"
    end_id = id_of(tokenizer, END_OF_MESSAGE)
    ids: list[int] = []
    trained: list[bool] = []
    for message in messages:
        if message.role not in HEADERS:
            raise UserError(f"role {message.role!r} is not in the chat template", mend=f"use one of {list(ROLES)}")
        content = tokenizer.encode(message.content, add_special_tokens=False).ids
        ids += [id_of(tokenizer, HEADERS[message.role]), *content, end_id]
        trained += [False] + [message.role == "assistant"] * (len(content) + 1)
    if add_generation_prompt:
        ids.append(id_of(tokenizer, HEADERS["assistant"]))
        trained.append(False)
    return ids, trained
