"""Models on disk: a directory that transformers loads, written whole or not at all, read strictly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mengya.errors import UserError
from mengya.files import atomic_directory
from mengya.model.config import Head, ModelConfig
from mengya.model.heads import RewardModel
from mengya.model.transformer import Transformer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def save_model(
    model: Transformer | RewardModel,
    directory: Path,
    *,
    tokenizer_dir: Path | None = None,
    dtype: torch.dtype = torch.float32,
    generation: dict[str, Any] | None = None,
) -> None:
    """Write config.json, model.safetensors, generation_config.json and the tokenizer's files, atomically.

    `generation` is the content of generation_config.json; its pad, bos and eos ids go into config.json too, where
    `…ForSequenceClassification` looks for the padding that it must not score.
    """
    generation = generation or {}
    special_ids = {key: generation.get(key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    head: Head = "score" if isinstance(model, RewardModel) else "lm"
    config = model.config.to_huggingface(head=head, dtype=str(dtype).removeprefix("torch."), **special_ids)
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    with atomic_directory(directory) as temporary:
        _write_json(temporary / "config.json", config)
        if head == "lm":
            _write_json(temporary / "generation_config.json", generation)
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        for name in TOKENIZER_FILES if tokenizer_dir is not None else ():
            assert tokenizer_dir is not None
            if (Path(tokenizer_dir) / name).exists():
                shutil.copyfile(Path(tokenizer_dir) / name, temporary / name)


@overload
def load_model(
    directory: Path,
    *,
    device: torch.device | str = ...,
    head: Literal["lm"] = ...,
    compute_dtype: torch.dtype = ...,
) -> Transformer: ...


@overload
def load_model(
    directory: Path, *, device: torch.device | str = ..., head: Literal["score"], compute_dtype: torch.dtype = ...
) -> RewardModel: ...


def load_model(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    head: Head = "lm",
    compute_dtype: torch.dtype = torch.float32,
) -> Transformer | RewardModel:
    """The model of any Llama or Qwen3 directory of safetensors (sharded, tied, half-precision ones too), in float32.

    Strict: a missing, unexpected or mis-shaped tensor, a pickle instead of safetensors, or a damaged file is a
    UserError that names it.
    """
    directory = Path(directory)
    config = load_config(directory)
    with torch.device("meta"):
        model = Transformer(config, compute_dtype) if head == "lm" else RewardModel(config, compute_dtype)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = {}
    for file, names in _weight_files(directory).items():
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys() if names is None else names:
                    weights[name] = _read_tensor(tensors, name, expected, file)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"not a whole safetensors file ({error})", where=file, mend="copy or download it again"
            ) from None
    embedding, output = weights.get("model.embed_tokens.weight"), weights.pop("lm_head.weight", None)
    if output is not None:
        if "lm_head.weight" in expected:
            weights["lm_head.weight"] = output
        elif head == "lm" and embedding is not None and not torch.equal(output, embedding):
            raise UserError(
                "lm_head.weight differs from model.embed_tokens.weight, but tie_word_embeddings is true",
                where=directory / "config.json",
                mend="set tie_word_embeddings to false",
            )
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    if ("score.weight" in weights) != (head == "score"):
        kinds = ("a language model", "a reward model")
        is_kind, wanted = kinds if head == "score" else kinds[::-1]
        raise UserError(f"this is {is_kind}", where=directory, mend=f"give {wanted}")
    mend = "the weights do not belong to this config.json; restore both"
    for name, shape in expected.items():
        if name not in weights:
            raise UserError(f"tensor {name!r} {list(shape)} is missing", where=directory, mend=mend)
    for name in weights:
        if name not in expected:
            raise UserError(f"unexpected tensor {name!r} {list(weights[name].shape)}", where=directory, mend=mend)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.to(device)


def load_config(directory: Path) -> ModelConfig:
    """The shape of the model in a directory, without reading its weights."""
    file = Path(directory) / "config.json"
    if not file.exists():
        raise UserError("no config.json: not a model directory", where=directory, mend="give a directory of a model")
    return ModelConfig.from_huggingface(_read_object(file), where=file)


def check_tokenizer(config: ModelConfig, tokenizer_vocab_size: int, where: object) -> None:
    """UserError when the tokenizer has ids that the embedding lacks (the other way round is mere padding)."""
    if tokenizer_vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer_vocab_size:,} tokens, the model's embedding only {config.vocab_size:,}",
            where=where,
            mend="use the tokenizer that the model was trained with",
        )


def _read_tensor(tensors: Any, name: str, expected: dict[str, tuple[int, ...]], file: Path) -> Tensor:
    shape = tuple(tensors.get_slice(name).get_shape())
    if name in expected and shape != expected[name]:
        raise UserError(
            f"tensor {name!r} has shape {list(shape)}, config.json makes it {list(expected[name])}",
            where=file,
            mend="the weights do not belong to this config.json; restore both",
        )
    return tensors.get_tensor(name).float()


def _weight_files(directory: Path) -> dict[Path, list[str] | None]:
    """Weight files with the tensors to read from each (None: all of them)."""
    if (directory / WEIGHTS).exists():
        return {directory / WEIGHTS: None}
    index = directory / INDEX
    if not index.exists():
        if list(directory.glob("pytorch_model*.bin")):
            raise UserError(
                "pytorch_model.bin is a pickle, which can run any code when it is read",
                where=directory,
                mend="convert it with transformers' save_pretrained, which writes model.safetensors",
            )
        raise UserError(f"no {WEIGHTS}", where=directory, mend="give a directory of a model")
    files: dict[Path, list[str] | None] = {}
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError("no weight_map in it", where=index, mend="restore the file")
    for name, file_name in weight_map.items():
        file = directory / str(file_name)
        if Path(str(file_name)).name != file_name or not file.exists():
            raise UserError(f"the file {file_name!r} with tensor {name!r} is missing", where=index, mend="download it")
        names = files.setdefault(file, [])
        assert names is not None
        names.append(name)
    return files


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not JSON ({error})", where=file, mend="restore the file") from None
    if not isinstance(value, dict):
        raise UserError("not a JSON object", where=file, mend="restore the file")
    return value


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
