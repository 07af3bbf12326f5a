"""Conversations → token examples with a loss on the assistant's tokens alone; the over-long ones lose leading turns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np

from mengya.corpus.records import Conversation, Message
from mengya.data.origins import named
from mengya.data.packing import IGNORE
from mengya.tokenizer.encode import ChatTokenizer


class TokenExamples:
    """Rendered examples as flat arrays, ready to be packed (`data.packing.Examples`).

    An example of n ids has n - 1 inputs; the target at t is id t + 1 where that one is trained on, else IGNORE.
    `origins`, where they are known, name the examples; they may be filled while `rendered` is read.
    """

    def __init__(
        self, rendered: Iterable[tuple[Sequence[int], Sequence[bool]]], origins: Sequence[str] | None = None
    ) -> None:
        ids: list[np.ndarray] = []
        trained: list[np.ndarray] = []
        for example_ids, example_trained in rendered:
            assert len(example_ids) == len(example_trained)
            ids.append(np.array(example_ids, dtype=np.int32))
            trained.append(np.array(example_trained, dtype=bool))
        self._start_N = np.concatenate([[0], np.cumsum([len(example) for example in ids])]).astype(np.int64)
        self._ids = np.concatenate(ids) if ids else np.empty(0, dtype=np.int32)
        self._trained = np.concatenate(trained) if trained else np.empty(0, dtype=bool)
        assert origins is None or len(origins) == len(self)
        self._origins = origins

    def __len__(self) -> int:
        return len(self._start_N) - 1

    def __getitem__(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and trained mask of one example."""
        chosen = slice(self._start_N[example], self._start_N[example + 1])
        return self._ids[chosen], self._trained[chosen]

    @property
    def num_inputs_N(self) -> np.ndarray:
        return np.maximum(np.diff(self._start_N) - 1, 0)

    @property
    def num_trained(self) -> int:
        return int(self._trained.sum())

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for array in (self._start_N, self._ids, self._trained):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def origin_of(self, index: int) -> str:
        """ "SOURCE FILE:LINE" of an example's conversation, else "conversations, example N"."""
        return self._origins[index] if self._origins is not None else f"conversations, example {index}"

    def piece(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        begin = self._start_N[document] + start
        ids = self._ids[begin : begin + length + 1].astype(np.int64)
        trained = self._trained[begin + 1 : begin + length + 1]
        return ids[:-1], np.where(trained, ids[1:], IGNORE)


def without_leading_turns(messages: Sequence[Message]) -> Iterator[tuple[int, tuple[Message, ...]]]:
    """(turns dropped, messages left): all, then one leading turn fewer each time, down to the last exchange.

    A turn begins with a user's message (a tool's result belongs to the turn that called it); a leading system message
    always stays.
    """
    num_system = 1 if messages and messages[0].role == "system" else 0
    rest = messages[num_system:]
    begins = [
        index
        for index, message in enumerate(rest)
        if index == 0 or (message.role == "user" and rest[index - 1].role != "user")
    ]
    for dropped, begin in enumerate(begins):
        yield dropped, (*messages[:num_system], *rest[begin:])


def fit_prompt(tokenizer: ChatTokenizer, messages: Sequence[Message], max_tokens: int) -> tuple[list[int], int] | None:
    """Ids of a prompt with the assistant's header, and the leading turns dropped so that at most `max_tokens` are left.

    None when even the last turn is longer.
    """
    for turns_dropped, left in without_leading_turns(messages):
        ids, _ = tokenizer.render(left, add_generation_prompt=True)
        if len(ids) <= max_tokens:
            return ids, turns_dropped
    return None


def render_conversations(
    conversations: Iterable[Conversation], tokenizer: ChatTokenizer, *, max_tokens: int
) -> tuple[TokenExamples, dict[str, int]]:
    """Examples of at most `max_tokens` ids, and the counts {examples, dropped, turns_dropped, tokens, trained_tokens}.

    A conversation that is longer loses whole leading turns (its system message stays). `dropped` counts those of which
    even the last exchange is longer: nothing is ever cut inside a message. Foreign chat templates may raise UserError.
    """
    counts = {"examples": 0, "dropped": 0, "turns_dropped": 0}
    origins: list[str] = []

    def rendered() -> Iterator[tuple[list[int], list[bool]]]:
        for conversation in conversations:
            for turns_dropped, left in without_leading_turns(conversation.messages):
                ids, trained = tokenizer.render(left)
                if len(ids) <= max_tokens:
                    origins.append(named(conversation.source, conversation.origin, counts["examples"]))
                    counts["examples"] += 1
                    counts["turns_dropped"] += turns_dropped
                    yield ids, trained
                    break
            else:
                counts["dropped"] += 1

    examples = TokenExamples(rendered(), origins)
    return examples, {**counts, "tokens": int(examples.num_inputs_N.sum()), "trained_tokens": examples.num_trained}
