"""`mengya chat PATH`: answers streamed in the terminal, turn by turn, or one answer to one prompt.

Answers go to stdout, everything else to stderr, so `mengya chat RUN -p … > answer.txt` holds the answer alone.
"""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mengya.console import say
from mengya.corpus.records import Message
from mengya.errors import UserError
from mengya.serve.locate import CHAT_STAGES, find_model

if TYPE_CHECKING:
    from mengya.generate.sampling import Sampling

HELP = """\
/reset              忘掉前面的对话 · forget the conversation
/system TEXT        换系统提示并重新开始 · set the system message and start anew; empty: none
/stage NAME         换一个阶段的模型（pretrain sft dpo ppo） · talk to another stage's model
/temperature X      0 为贪心 · 0 is greedy
/help  /exit        Ctrl-C 停止回答 · stops the answer; Ctrl-D 离开 · leaves"""


def _load(directory: Path) -> tuple[Any, Any]:
    """(Session, ChatTokenizer) of a model directory, on the accelerator where there is one."""
    import torch

    from mengya.generate.engine import Session
    from mengya.model.checkpoint import check_tokenizer, load_model
    from mengya.tokenizer.encode import load_tokenizer

    tokenizer = load_tokenizer(directory)
    model = load_model(directory, device="cuda" if torch.cuda.is_available() else "cpu")
    check_tokenizer(model.config, tokenizer.vocab_size, directory)
    return Session(model), tokenizer


class StreamText:
    """Ids one by one → text that is safe for a terminal: whole characters, no control codes but newline and tab."""

    def __init__(self, tokenizer: Any) -> None:
        from mengya.tokenizer.encode import StreamDecoder

        self._decoder = StreamDecoder(tokenizer)

    def push(self, token: int) -> str:
        return harmless(self._decoder.push(token))

    def flush(self) -> str:
        return harmless(self._decoder.flush())


def harmless(text: str) -> str:
    """The text without control characters: a model may not move the cursor or set the window title."""
    return "".join(char for char in text if char in "\n\t" or not (ord(char) < 32 or 127 <= ord(char) < 160))


class Chat:
    """One conversation with one checkpoint at a time: the model's cache, the messages so far, how to sample.

    A pretrained model knows no turns: it continues the text it is given, and keeps no history. `note` says why the
    last answer ended without an end token, or that it is blank; it is "" otherwise.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        stage: str | None,
        sampling: Sampling,
        max_new_tokens: int,
        seed: int,
        system: str | None,
    ) -> None:
        self.path, self.sampling, self.max_new_tokens, self.seed = Path(path), sampling, max_new_tokens, seed
        self.system = system
        self.messages: list[Message] = []
        self._num_answers = 0
        self.note = ""
        self.load(stage)

    def load(self, stage: str | None) -> None:
        """Take the checkpoint of `stage` (None: the default one); the conversation so far stays."""
        found = find_model(self.path, stage)
        self.session, self.tokenizer = _load(found.directory)
        self.stage, self.run = found.stage, found.run
        self.directory = found.directory

    @property
    def max_positions(self) -> int:
        return self.session.model.config.max_positions

    def reset(self) -> None:
        self.messages.clear()

    def answer(self, text: str) -> Generator[str, None, None]:
        """Pieces of the answer as they come; the turn joins the history, also when the answer is stopped half-way.

        Raises UserError, and changes nothing, when the text alone fills the context.
        """
        text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates of a wrongly encoded terminal
        prompt = self._prompt(text)
        decoder, said = StreamText(self.tokenizer), ""
        seed, finished = self.seed + self._num_answers, False
        self._num_answers += 1
        self.note = ""
        tokens = self.session.stream(
            prompt,
            max_new_tokens=self.max_new_tokens,
            stop_ids=self.tokenizer.stop_ids,
            sampling=self.sampling,
            seed=seed,
        )
        num_tokens = 0
        try:
            for token in tokens:
                if token in self.tokenizer.stop_ids:
                    finished = True
                    break
                num_tokens += 1
                piece = decoder.push(token)
                said += piece
                yield piece
            rest = decoder.flush()
            said += rest
            yield rest
            if not said.strip():
                self.note = "回答是空的 · the answer is blank"
            elif not finished and self.stage != "pretrain":
                full = len(prompt) + num_tokens >= self.max_positions
                self.note = "上下文已满 · the context is full" if full else "到达长度上限 · reached the length limit"
        finally:
            if self.stage != "pretrain":
                self.messages += [Message("user", text), Message("assistant", said)]

    def _prompt(self, text: str) -> list[int]:
        """Ids for the next answer; oldest exchanges leave `self.messages` until the answer has room, and it is said.

        Room is `max_new_tokens`, but at most a quarter of the context: a generous limit must not cost the history.
        """
        if self.stage == "pretrain":
            ids = [self.tokenizer.end_of_text_id, *self.tokenizer.encode(text)]
            self._check_length(len(ids))
            return ids
        head = [Message("system", self.system)] if self.system else []
        last = Message("user", text)
        self._check_length(len(self._render([*head, last])))
        kept, num_left = list(self.messages), 0
        ids = self._render([*head, *kept, last])
        room = min(self.max_new_tokens, self.max_positions // 4)
        while kept and len(ids) + room > self.max_positions:
            del kept[:2]
            num_left += 1
            ids = self._render([*head, *kept, last])
        if num_left:
            say(f"（上下文满了，最早的 {num_left} 轮已移出 · {num_left} oldest turns left the context）")
            self.messages = kept
        return ids

    def _render(self, messages: list[Message]) -> list[int]:
        ids, _trained = self.tokenizer.render(messages, add_generation_prompt=True)
        return ids

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens >= self.max_positions:
            raise UserError(
                f"the message is {num_tokens} tokens long, the model's context holds {self.max_positions}",
                where="prompt",
                mend="shorten it",
            )


def chat(
    path: Path | str,
    *,
    prompt: str | None = None,
    stage: str | None = None,
    temperature: float = 0.7,
    top_p: float = 0.95,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    max_new_tokens: int = 256,
    seed: int | None = None,
    system: str | None = None,
) -> None:
    """Talk to the model at PATH: with `prompt` one answer on stdout, else until Ctrl-D or /exit.

    Without a seed every call says something else, unless the temperature is 0.
    """
    if stage is not None and stage not in CHAT_STAGES:
        raise UserError(f"{stage!r} is not a chat stage", where="--stage", mend=f"use one of {', '.join(CHAT_STAGES)}")
    if max_new_tokens < 1:
        raise UserError(f"{max_new_tokens} is not positive", where="--max-new-tokens", mend="set 1 or more")
    find_model(path, stage)  # before torch is loaded, which takes seconds
    from mengya.generate.sampling import Sampling

    seed = secrets.randbits(32) if seed is None else seed
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    conversation = Chat(path, stage=stage, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed, system=system)
    if prompt is not None:
        _print_answer(conversation, prompt)
        return
    _introduce(conversation)
    while True:
        line = _read_line()
        if line is None or line in ("/exit", "/quit"):
            return
        try:
            if line.startswith("/"):
                _command(conversation, line)
            elif line:
                _print_answer(conversation, line, label=f"{conversation.stage or '答'} › ")
        except UserError as error:
            say(str(error))
        except KeyboardInterrupt:
            say("（已停止 · stopped）")


def _introduce(conversation: Chat) -> None:
    what = conversation.directory if conversation.run is None else f"{conversation.run} · {conversation.stage}"
    say(f"萌芽 · {what} · /help")
    if conversation.stage == "pretrain":
        say("（预训练模型只会续写 · a pretrained model continues your text）")


def _read_line() -> str | None:
    """The next line, "" when there is nothing to do, None when the input is over."""
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401 - gives input() arrow keys and history
    try:
        return input("你 › " if interactive else "").strip()
    except EOFError:
        if interactive:
            say("")
        return None
    except KeyboardInterrupt:
        say("\n（Ctrl-D 离开 · leaves）")
        return ""


def _print_answer(conversation: Chat, text: str, label: str = "") -> None:
    """The answer on stdout piece by piece; with a label (a conversation) Ctrl-C ends the answer, not the program."""
    pieces = conversation.answer(text)
    first = next(pieces, "")  # a prompt that does not fit is refused here, before the label stands on the line
    with _interrupts(wanted=bool(label)) as was_interrupted:
        sys.stdout.write(label + first)
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
            if was_interrupted():
                conversation.note = "已停止 · stopped"
                break
    pieces.close()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if conversation.note:
        say(f"（{conversation.note}）")


@contextmanager
def _interrupts(*, wanted: bool) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, to be asked between tokens.

    An exception inside the model instead could leave its cache half-written.
    """
    pressed = False

    def press(_signal: int, _frame: object) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, press) if wanted else None
    try:
        yield lambda: pressed
    finally:
        if wanted:
            signal.signal(signal.SIGINT, before)


def _command(conversation: Chat, line: str) -> None:
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if name == "/reset":
        conversation.reset()
        say("（新的对话 · a new conversation）")
    elif name == "/system":
        conversation.system = argument or None
        conversation.reset()
        say("（系统提示已换，新的对话 · system message set, a new conversation）")
    elif name == "/stage":
        conversation.load(argument or None)
        _introduce(conversation)
    elif name == "/temperature":
        try:
            temperature = float(argument)
        except ValueError:
            raise UserError(f"{argument!r} is not a number", where="/temperature", mend="for example 0.7") from None
        conversation.sampling = replace(conversation.sampling, temperature=temperature)
        say(f"（temperature {temperature:g}）")
    else:
        say(HELP if name == "/help" else f"没有这个命令 · no such command: {name}\n{HELP}")
