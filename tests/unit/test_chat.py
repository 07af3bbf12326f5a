"""Chat: what the model is given, what stays of it, and what the terminal shows."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mengya.errors import UserError
from mengya.generate.engine import generate
from mengya.model.checkpoint import save_model
from mengya.model.config import ModelConfig
from mengya.model.transformer import Transformer
from mengya.run import Run
from mengya.serve import terminal
from mengya.serve.locate import find_model
from mengya.settings import Recipe
from mengya.tokenizer.encode import load_tokenizer
from mengya.tokenizer.train import save_tokenizer, train_tokenizer

_TEXTS = ["小河边住着李明，他养了一只橘猫，叫团团。", "今天天气很好，我们去公园看花。", "你好，请问你叫什么名字？"] * 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with the models of pretrain and sft, of random weights."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    Run(directory).save_recipe(Recipe(name="tiny"))
    save_tokenizer(train_tokenizer(_TEXTS, 330, max_characters=10_000, seed=1), directory / "tokenizer")
    tokenizer = load_tokenizer(directory / "tokenizer")
    for stage in ("pretrain", "sft"):
        torch.manual_seed(len(stage))
        config = ModelConfig(tokenizer.vocab_size, width=32, num_layers=1, num_heads=2, max_positions=128)
        save_model(Transformer(config), directory / stage / "model", tokenizer_dir=directory / "tokenizer")
    return directory


class Scripted:
    """A session that says what the script says, and keeps the prompts it was given."""

    def __init__(self, tokenizer, script, max_positions=128, ends=True):
        self.tokenizer, self.script, self.ends = tokenizer, list(script), ends
        self.model = SimpleNamespace(config=SimpleNamespace(max_positions=max_positions))
        self.prompts, self.seeds = [], []

    def stream(self, prompt, *, max_new_tokens, stop_ids, sampling, seed):
        self.prompts.append(self.tokenizer.decode(prompt))
        self.seeds.append(seed)
        yield from self.tokenizer.encode(self.script.pop(0))[:max_new_tokens]
        if self.ends:
            yield self.tokenizer.end_id


@pytest.fixture
def scripted(run, monkeypatch):
    """Make chat talk to a script instead of a model."""

    def install(*script, **keywords):
        tokenizer = load_tokenizer(run / "tokenizer")
        session = Scripted(tokenizer, script, **keywords)
        monkeypatch.setattr(terminal, "_load", lambda directory: (session, tokenizer))
        return session

    return install


def _type(monkeypatch, *lines):
    typed = iter(lines)

    def read(_prompt=""):
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)


def test_one_shot_prints_the_greedy_answer_of_the_engine_and_nothing_else(run, capsys):
    from mengya.model.checkpoint import load_model

    terminal.chat(run, prompt="你好", temperature=0, max_new_tokens=12)
    tokenizer = load_tokenizer(run / "tokenizer")
    messages = [terminal.Message("user", "你好")]
    prompt, _ = tokenizer.render(messages, add_generation_prompt=True)
    (expected,) = generate(load_model(run / "sft" / "model"), [prompt], max_new_tokens=12, stop_ids=tokenizer.stop_ids)
    assert capsys.readouterr().out == terminal.harmless(tokenizer.decode(expected.tokens, skip_special=True)) + "\n"


def test_the_same_seed_says_the_same_and_another_seed_does_not(run, capsys):
    said = []
    for seed in (1, 1, 2):
        terminal.chat(run, prompt="你好", temperature=1.0, max_new_tokens=16, seed=seed)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_the_second_turn_sees_the_first_and_reset_forgets_it(run, scripted, monkeypatch, capsys):
    session = scripted("橘猫", "团团", "不知道")
    _type(monkeypatch, "/system 请有礼貌", "李明养了什么？", "它叫什么？", "/reset", "它叫什么？")
    terminal.chat(run)
    im = "<|im_start|>"
    system = f"{im}system\n请有礼貌<|im_end|>"
    first = f"{im}user\n李明养了什么？<|im_end|>{im}assistant\n"
    assert session.prompts == [
        system + first,
        system + first + f"橘猫<|im_end|>{im}user\n它叫什么？<|im_end|>{im}assistant\n",
        system + f"{im}user\n它叫什么？<|im_end|>{im}assistant\n",
    ]
    assert capsys.readouterr().out == "sft › 橘猫\nsft › 团团\nsft › 不知道\n"
    assert len(set(session.seeds)) == 3


def test_the_oldest_turns_leave_a_full_context_and_it_is_said(run, scripted, monkeypatch, capsys):
    session = scripted(*["今天天气很好"] * 6, max_positions=64)
    _type(monkeypatch, *[f"问题{n}，请问你叫什么名字？" for n in range(6)])
    terminal.chat(run, system="请有礼貌", max_new_tokens=8)
    assert "oldest turns left the context" in capsys.readouterr().err
    tokenizer = session.tokenizer
    tokenizer.backend.encode_special_tokens = False
    for number, prompt in enumerate(session.prompts):
        assert len(tokenizer.encode(prompt)) + 8 <= 64
        assert prompt.startswith("<|im_start|>system\n请有礼貌<|im_end|><|im_start|>user\n")
        assert f"问题{number}" in prompt
    assert "问题4" in session.prompts[5]
    assert "问题0" not in session.prompts[5]


def test_a_generous_answer_limit_does_not_cost_the_history(run, scripted, monkeypatch):
    session = scripted("橘猫", "团团", max_positions=64)
    _type(monkeypatch, "李明养了什么？", "它叫什么？")
    terminal.chat(run, max_new_tokens=1000)
    assert "橘猫" in session.prompts[1]


def test_a_message_longer_than_the_context_is_refused_and_changes_nothing(run, scripted, monkeypatch, capsys):
    session = scripted("好", max_positions=32)
    _type(monkeypatch, "花" * 200, "你好")
    terminal.chat(run)
    captured = capsys.readouterr()
    assert "shorten it" in captured.err
    assert captured.out == "sft › 好\n"
    assert len(session.prompts) == 1
    with pytest.raises(UserError, match="the model's context holds 32"):
        terminal.chat(run, prompt="花" * 200)


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(run, scripted, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)
    session = scripted("今天天气很好，我们去公园看花", "好")
    whole_stream = Scripted.stream

    def press_at_the_third_token(self, prompt, **keywords):
        for number, token in enumerate(whole_stream(self, prompt, **keywords)):
            if number == 3 and len(self.prompts) == 1:
                signal.raise_signal(signal.SIGINT)
            yield token

    monkeypatch.setattr(Scripted, "stream", press_at_the_third_token)
    _type(monkeypatch, "说一说", "再说")
    terminal.chat(run)
    captured = capsys.readouterr()
    stopped = captured.out.splitlines()[0].removeprefix("sft › ")
    assert "stopped" in captured.err
    assert "今天天气很好，我们去公园看花".startswith(stopped)
    assert 0 < len(stopped) < 14
    assert f"assistant\n{stopped}<|im_end|>" in session.prompts[1]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_pretrained_model_continues_the_text_without_a_template(run, scripted, capsys):
    session = scripted("住着李明")
    terminal.chat(run, prompt="小河边", stage="pretrain")
    assert session.prompts == ["<|endoftext|>小河边"]
    assert capsys.readouterr().out == "住着李明\n"


def test_stage_switches_the_checkpoint_and_a_missing_one_says_which_there_are(run, monkeypatch, capsys):
    _type(monkeypatch, "/stage pretrain", "/stage ppo", "/temperature warm", "/nonsense", "/exit", "你好")
    terminal.chat(run, max_new_tokens=2)
    captured = capsys.readouterr()
    assert "tiny · pretrain" in captured.err
    assert "no chat model of stage 'ppo' in this run — there are: sft, pretrain" in captured.err
    assert "/temperature: 'warm' is not a number" in captured.err
    assert "no such command: /nonsense" in captured.err
    assert captured.out == ""


def test_an_answer_cannot_control_the_terminal():
    assert terminal.harmless("好\x1b[2J\x07\x9b31m的\n\t。") == "好[2J31m的\n\t。"


def test_an_unfinished_answer_is_said_to_be_unfinished(run, scripted, capsys):
    scripted("今天天气很好", ends=False)
    terminal.chat(run, prompt="你好", max_new_tokens=3)
    assert "reached the length limit" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["sft", "pretrain"])
@pytest.mark.parametrize("words", ["", " \n"])
def test_a_blank_answer_is_said_to_be_blank(run, scripted, capsys, words, stage):
    scripted(words)
    terminal.chat(run, prompt="你好", stage=stage)
    captured = capsys.readouterr()
    assert not captured.out.strip()
    assert "the answer is blank" in captured.err


def test_a_path_finds_its_model(run, tmp_path):
    assert find_model(run).stage == "sft"
    assert find_model(run, "pretrain").directory == run / "pretrain" / "model"
    assert find_model(run / "pretrain")[:2] == (run / "pretrain" / "model", "pretrain")
    assert find_model(run / "sft" / "model")[:2] == (run / "sft" / "model", "sft")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    assert find_model(foreign) == (foreign, "", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere"}, "nowhere: no such directory"),
        ({"path": "."}, "no model here"),
        ({"path": "run", "stage": "dpo"}, "there are: sft, pretrain"),
        ({"path": "run/sft", "stage": "sft"}, "only in a run"),
        ({"path": "run", "stage": "reward"}, "is not a chat stage"),
        ({"path": "run", "temperature": -1.0}, "temperature"),
        ({"path": "run", "max_new_tokens": 0}, "--max-new-tokens"),
    ],
)
def test_the_users_mistakes_are_one_clear_line(run, tmp_path, arguments, message):
    head, _, rest = arguments["path"].partition("/")
    path = run / rest if head == "run" else tmp_path / head
    with pytest.raises(UserError, match=message) as caught:
        terminal.chat(**(arguments | {"path": path}), prompt="你好")
    assert "\n" not in str(caught.value)


def test_a_wrong_path_is_said_before_torch_is_loaded():
    code = (
        "import sys\nfrom mengya.errors import UserError\nfrom mengya.serve.terminal import chat\n"
        "try:\n    chat('nowhere')\nexcept UserError:\n    print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
