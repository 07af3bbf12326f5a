"""A tokenizer of 370 tokens, trained in a moment on sentences made for it."""

from functools import cache

from mengya.tokenizer.encode import ChatTokenizer
from mengya.tokenizer.train import train_tokenizer

_PEOPLE = ("小明", "阿秀", "王木匠", "李奶奶")
_THINGS = ("苹果", "白菜", "小船", "风筝", "桂花")
TEXTS = [
    f"{person}今天在河边看见{count}个{thing}，心里很高兴。{person}说：“这{count}个{thing}真好看！”Hello {person}."
    for person in _PEOPLE
    for thing in _THINGS
    for count in (1, 23, 456)
]


@cache
def small_tokenizer() -> ChatTokenizer:
    return ChatTokenizer(train_tokenizer(TEXTS, 370, max_characters=100_000, seed=0))
