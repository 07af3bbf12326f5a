"""Which conversations ask nearly the same: prompts compared as documents are, and numbers and roles that must agree.

A prompt is compared by all that stands before the last answer, without system messages: the long ones that a data set
repeats would make all its prompts alike. Near copies count as one question only where the system messages are the same
and so are the numbers and signs of arithmetic in them: 3 个苹果 and 5 个苹果 differ in one 5-gram of many, and in their
answers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator

from mengya.corpus.dedup import Duplicate, jaccard, shingles
from mengya.corpus.messages import prompt_key
from mengya.corpus.records import Conversation
from mengya.corpus.shingles import Hashes

# 一 is left out: 介绍一下 and 介绍 ask the same.
_NUMBERS = re.compile(r"\d+(?:\.\d+)?|[+\-*/×÷=<>≤≥^%％√]|[〇零二两三四五六七八九十百千万亿]")
_LEADERS = 200  # kept prompts of one cluster that a further one is compared with


def compared_text(conversation: Conversation) -> str:
    """What two prompts are compared by."""
    return "\n".join(message.content for message in conversation.messages[:-1] if message.role != "system")


def what_must_agree(conversation: Conversation) -> int:
    """64 bits of the system messages, and of the numbers and signs of arithmetic of the prompt in order."""
    system = prompt_key(message for message in conversation.messages if message.role == "system")
    numbers = "\0".join(_NUMBERS.findall(compared_text(conversation)))
    return int.from_bytes(hashlib.blake2b(system + numbers.encode(), digest_size=8).digest(), "little")


def near_prompts(
    duplicates: Iterable[Duplicate],
    agreeing: Callable[[int], int],
    rank: Callable[[int], tuple[int, ...]],
    text_of: Callable[[int], str],
    threshold: float,
) -> Iterator[tuple[int, int, float]]:
    """(dropped, its kept twin, their Jaccard similarity), of the copies that `find_duplicates` found.

    In each of its clusters, in the order of `rank`, a prompt is dropped when its Jaccard similarity with one that was
    kept before is at least `threshold`, and `agreeing` says the same of both. So every prompt that is dropped has a kept
    near copy; a cluster of more than 200 kept ones may keep a copy too many.
    """
    parents = {duplicate.index: duplicate.of for duplicate in duplicates}

    def root(number: int) -> int:
        while number in parents:
            number = parents[number]
        return number

    clusters: dict[tuple[int, int], list[int]] = {}
    for number in sorted(parents.keys() | parents.values()):
        clusters.setdefault((root(number), agreeing(number)), []).append(number)
    for members in clusters.values():
        if len(members) == 1:
            continue
        kept: list[tuple[int, Hashes]] = []
        for number in sorted(members, key=rank):
            hashes = shingles(text_of(number))
            alike = ((leader, jaccard(hashes, others)) for leader, others in kept)
            twin = next((found for found in alike if found[1] >= threshold), None)
            if twin is None:
                kept = [*kept[1 - _LEADERS :], (number, hashes)]
            else:
                yield number, *twin
