"""`mengya tokenizer import`: a SentencePiece model or any tokenizer.json → a tokenizer directory in our layout.

The ids of a text stay the original's. No code of the source is run: `auto_map` is dropped, and the class becomes the one
that transformers has for every tokenizer.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer

from mengya.errors import UserError
from mengya.files import atomic_directory, read_json, write_json
from mengya.tokenizer.encode import ChatTokenizer, load_tokenizer
from mengya.tokenizer.importers import add_declared_tokens, chat_template_of, special_token
from mengya.tokenizer.sentencepiece import read_model, to_tokenizers
from mengya.tokenizer.template import CHAT_TEMPLATE, END_OF_MESSAGE, END_OF_TEXT, HEADERS

TemplateChoice = Literal["keep", "mengya"]

_EXTRA_TOKENS = {"ChatGLMTokenizer": ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")}
"""Tokens that a tokenizer's own code adds behind the pieces. ChatGLM2's are never found in a text (tokenization_chatglm.py
gives them by id alone), or "philosophy" would hold one."""

_DROPPED = (
    "auto_map",  # remote code
    "added_tokens_decoder",  # stands in tokenizer.json now
    "sp_model_kwargs",
    "vocab_file",
    "name_or_path",
)


def find_source(source: Path) -> Path:
    """The tokenizer.json or *.model that `source`, a file or a directory, means."""
    if source.is_file():
        return source
    names = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
    found = next((source / name for name in names if (source / name).is_file()), None)
    if found is None:
        raise UserError(
            "no tokenizer.json and no SentencePiece model here", where=source, mend="give a directory or file with one"
        )
    return found


def import_tokenizer(
    source: Path, directory: Path, *, chat_template: TemplateChoice = "keep", eos: str | None = None
) -> ChatTokenizer:
    """The tokenizer written to `directory`, which load_tokenizer and AutoTokenizer read; whole or not at all.

    `chat_template` "keep" keeps the source's own, and adds ours where there is none; "mengya" gives ours in any case.
    Ours needs special tokens of its own, which then get the ids behind the vocabulary. `eos` names the token that ends
    an answer, where the source does not say it.
    """
    file = find_source(Path(source))
    if Path(directory).resolve() == file.parent.resolve():
        raise UserError("source and destination are one", where=directory, mend="give another --out")
    config = _config(file.parent)
    if file.suffix == ".json":
        try:
            backend = Tokenizer.from_file(str(file))
        except Exception as error:  # `tokenizers` raises bare Exception
            raise UserError(f"not a tokenizer file ({error})", where=file, mend="copy it again") from error
        add_declared_tokens(backend, config, file.parent / "tokenizer_config.json")
    else:
        model = read_model(file)
        backend = to_tokenizers(model, _EXTRA_TOKENS.get(config.get("tokenizer_class", ""), ()))
        ends = {"bos_token": model.special(model.bos_id), "eos_token": model.special(model.eos_id)}
        ends["unk_token"] = model.special(model.unk_id)
        ends["pad_token"] = model.special(model.pad_id) or ends["eos_token"]
        config = {name: token for name, token in ends.items() if token is not None} | config
    backend.no_truncation()  # nothing may be cut in silence
    backend.no_padding()
    config = {key: value for key, value in config.items() if key not in _DROPPED}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if eos is not None:
        config["eos_token"] = eos
    end = special_token(config, "eos_token")
    if end is None or backend.token_to_id(end) is None:
        raise UserError(f"eos_token {end!r} is not in the vocabulary", where=file, mend="name it by --eos TOKEN")
    if file.suffix != ".json":
        config["end_of_text"] = end
    own = None if chat_template == "mengya" else chat_template_of(file.parent, config)
    if own is None:
        config.setdefault("end_of_text", END_OF_TEXT if backend.token_to_id(END_OF_TEXT) is not None else end)
        # Tokens of this name that the source has keep their ids.
        backend.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in (END_OF_MESSAGE, *HEADERS.values())]
        )
        config["eos_token"] = END_OF_MESSAGE
    config["chat_template"] = own or CHAT_TEMPLATE
    with atomic_directory(directory) as temporary:
        backend.save(str(temporary / "tokenizer.json"))
        write_json(temporary / "tokenizer_config.json", config)
        load_tokenizer(temporary)  # what cannot be read again is not left behind
    return load_tokenizer(directory)


def _config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json of the source, or {}."""
    file = directory / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        config = read_json(file)
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(f"not JSON ({error})", where=file, mend="copy it again") from error
    return config
