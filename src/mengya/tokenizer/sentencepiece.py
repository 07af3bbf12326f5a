"""A SentencePiece model file → the `tokenizers` object that gives the same ids, without the sentencepiece package.

The file is one protobuf message (sentencepiece_model.proto): pieces with a score and a type, and how text is normalised
before them. SentencePiece's BPE repeatedly joins the neighbours whose piece has the best score, the leftmost of equals
first; `tokenizers` joins by the rank of a merge. The scores of a BPE model are its merge order, so each way of
splitting a piece into two pieces becomes a merge, ranked by the piece's score.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from mengya.errors import UserError

SPACE = "\u2581"
"""What a space is written as inside a piece."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2
_NEVER = -1e6
"""Score of a unigram piece that text must not give: the literal "<s>" is no control token."""


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """(value, where the next thing begins); a negative int32 is written as its 64-bit two's complement."""
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value - (1 << 64) if value >> 63 else value, start


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: int for varints, float for 32 bits, bytes for the rest."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if kind == 2:
            length, position = _varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if length < 0 or position + length > len(data):
            raise ValueError("a field runs over the end")
        raw = data[position : position + length]
        position += length
        yield key >> 3, struct.unpack("<f", raw)[0] if kind == 5 else raw


@dataclass
class SentencePieceModel:
    """What decides the ids of a text. `pieces` holds (piece, score, type), the index is the id; an id of -1 is absent.

    Field numbers and defaults are those of sentencepiece_model.proto.
    """

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    model_type: int = _UNIGRAM
    byte_fallback: bool = False
    whitespace_as_suffix: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True

    def special(self, index: int) -> str | None:
        return self.pieces[index][0] if 0 <= index < len(self.pieces) else None


_TRAINER = {3: "model_type", 24: "whitespace_as_suffix", 35: "byte_fallback"}
_TRAINER |= {40: "unk_id", 41: "bos_id", 42: "eos_id", 43: "pad_id"}
_NORMALIZER = {2: "charsmap", 3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"}


def read_model(path: Path) -> SentencePieceModel:
    """The model in a .model file; UserError when it is none."""
    model = SentencePieceModel()
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece: dict[int, Any] = {1: b"", 2: 0.0, 3: NORMAL} | dict(_fields(value))
                model.pieces.append((piece[1].decode(), piece[2], piece[3]))
            elif number in (2, 3):
                names = _TRAINER if number == 2 else _NORMALIZER
                for key, setting in _fields(value):
                    if key in names:
                        kind = type(getattr(model, names[key]))
                        setattr(model, names[key], kind(setting))
        if not model.pieces:
            raise ValueError("no pieces")
    except (ValueError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise UserError(
            f"not a SentencePiece model ({error})", where=path, mend="give a whole tokenizer.model"
        ) from error
    _check(model, path)
    return model


def _check(model: SentencePieceModel, path: Path) -> None:
    """UserError for what `tokenizers` cannot do in the same way: rather none than other ids."""
    types = {kind for _, _, kind in model.pieces}
    for wrong, what in (
        (model.model_type not in (_UNIGRAM, _BPE), "a word or character model"),
        (model.whitespace_as_suffix, "white space as a suffix"),
        (not model.escape_whitespaces, "white space that is not escaped"),
        (UNUSED in types, "unused pieces"),
        # A symbol of the user is found before anything else, while `tokenizers` would begin anew behind it.
        (USER_DEFINED in types and model.add_dummy_prefix, "user-defined symbols together with a dummy prefix"),
        (len({piece for piece, _, _ in model.pieces}) != len(model.pieces), "one piece twice"),
    ):
        if wrong:
            raise UserError(f"{what}: not supported", where=path, mend="use a BPE or unigram model without it")


def _merges(pieces: dict[str, float]) -> list[tuple[str, str]]:
    """Every (left, right) whose parts and whole are pieces, best score first."""
    ranked = sorted((piece for piece in pieces if len(piece) > 1), key=lambda piece: -pieces[piece])
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


def to_tokenizers(model: SentencePieceModel, extra: tuple[str, ...] = ()) -> Tokenizer:
    """The same tokenizer; `extra` tokens get the ids behind the pieces and are never found in a text."""
    unknown = model.special(model.unk_id)
    if model.model_type == _BPE:
        vocabulary = {piece: index for index, (piece, _, _) in enumerate(model.pieces)}
        vocabulary |= {token: len(model.pieces) + index for index, token in enumerate(extra)}
        normal = {piece: score for piece, score, kind in model.pieces if kind == NORMAL}
        core: Any = models.BPE(
            vocabulary, _merges(normal), unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback
        )
    else:
        lowest = min((score for _, score, kind in model.pieces if kind == NORMAL), default=0.0)
        scores = [(piece, score if kind == NORMAL else lowest + _NEVER) for piece, score, kind in model.pieces]
        scores += [(token, lowest + _NEVER) for token in extra]
        core = models.Unigram(scores, unk_id=model.unk_id, byte_fallback=model.byte_fallback)
    tokenizer = Tokenizer(core)

    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        # \A and \z: ^ and $ would match at every line.
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    if model.remove_extra_whitespaces:  # the end is trimmed after the escape: a "▁" that the text itself has goes too
        steps.append(normalizers.Replace(Regex(rf"{SPACE}+\z"), ""))
    tokenizer.normalizer = normalizers.Sequence(steps)

    parts: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else parts)
    own = [piece for piece, _, kind in model.pieces if kind == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(piece.replace(SPACE, " "), normalized=False) for piece in own])
    special = [piece for piece, _, kind in model.pieces if kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    return tokenizer
