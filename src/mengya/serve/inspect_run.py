"""What a run, a stage or a model directory holds, each in one screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mengya.errors import UserError
from mengya.files import read_json
from mengya.report.words import STAGES, as_value, interval, metric_words, short_count, shown
from mengya.run import Run, what_decides
from mengya.serve.inspect_page import table_of
from mengya.settings import STAGE_NAMES

_KEY_METRICS = {
    "corpus": ("exact_duplicate_recall", "near_duplicate_recall", "near_duplicate_precision"),
    "tokenizer": ("chars_per_token",),
    "pretrain": ("validation_loss", "bits_per_byte", "cloze_accuracy"),
    "sft": ("qa_accuracy", "multi_turn_accuracy", "identity_accuracy"),
    "preferences": ("kept_share", "chosen_accuracy", "rejected_accuracy"),
    "reward": ("pair_accuracy", "length_only_accuracy", "characters_only_accuracy"),
    "dpo": ("gold_score", "qa_accuracy", "win_rate_vs_sft"),
    "ppo": ("gold_score", "qa_accuracy", "win_rate_vs_sft"),
    "grpo": ("gold_score", "arithmetic_accuracy", "win_rate_vs_sft"),
}


def stage_state(run: Run, name: str) -> str:
    """`done`, `stale: …`, `interrupted` or `not run`, from what the manifests say of each other; no file is hashed.

    `mengya run` decides by hashing the files themselves; this is the quick look.
    """
    manifest = run.manifest(name)
    if manifest is None:
        return "interrupted" if (run.directory / name / "started.json").exists() else "not run"
    recipe = run.recipe().model_dump(mode="json")
    for section, old in manifest["settings"].items():
        if what_decides(section, recipe.get(section, {})) != old:
            return f"stale: the recipe's {section} changed"
    outputs: dict[str, str] = {}
    for other in STAGE_NAMES:
        outputs |= (run.manifest(other) or {}).get("outputs", {})
    for artifact, digest in manifest["inputs"].items():
        if outputs.get(artifact, digest) != digest:
            return f"stale: {artifact} changed"
    for artifact in manifest["outputs"]:
        if not (run.directory / artifact).exists():
            return f"stale: {artifact} is missing"
    return "done"


def print_run(console: Console, run: Run) -> None:
    recipe = run.recipe()
    console.print(f"{recipe.name}  {recipe.description}".rstrip())
    console.print(f"{run.directory} · seed {recipe.seed}\n")
    table = table_of("stage", "state", "time", "metrics", right=("time",))
    total = 0.0
    for name in recipe.stages:
        manifest = run.manifest(name) or {}
        seconds = manifest.get("seconds")
        total += seconds or 0.0
        metrics = manifest.get("metrics", {})
        parts = []
        for metric in _KEY_METRICS.get(name, ()):
            value = as_value(metrics.get(f"{name}.{metric}"))
            if value:
                parts.append(f"{metric_words(metric).en} {shown(metric, value.value)}")
        state = stage_state(run, name)
        style = {"done": "green", "not run": "dim"}.get(state, "yellow")
        time = shown("seconds", seconds) if seconds is not None else ""
        table.add_row(name, Text(state, style=style), time, " · ".join(parts))
    console.print(table)
    console.print(f"\n{shown('seconds', total)} in all")


def print_stage(console: Console, path: Path) -> None:
    if not (path / "manifest.json").is_file():
        console.print(f"{path.name}: interrupted (no manifest.json); the same command resumes it")
        return
    manifest = read_json(path / "manifest.json")
    name = manifest["stage"]
    resumed = " · resumed" if manifest.get("resumed") else ""
    console.print(f"{name} {STAGES[name].zh if name in STAGES else ''}".rstrip())
    took = shown("seconds", manifest["seconds"])
    console.print(f"{manifest['started']} · {took} · seed {manifest['seed']}{resumed}\n")
    for title, held in (("input", manifest["inputs"]), ("output", manifest["outputs"])):
        table = table_of(title, "sha256")
        for artifact, digest in held.items():
            table.add_row(artifact, digest[:12])
        if held:
            console.print(table, end="\n\n")
    table = table_of("metric", "value", "95%", "n", right=("value", "95%", "n"))
    for metric, raw in manifest["metrics"].items():
        value = as_value(raw)
        if value:
            table.add_row(metric, shown(metric, value.value), interval(metric, value), str(value.n or ""))
    console.print(table)
    counts = [(key, value) for key, value in manifest["counts"].items() if isinstance(value, int | float)]
    if counts:
        console.print("\n" + " · ".join(f"{key} {value:,}" for key, value in counts))


def print_model(console: Console, path: Path) -> None:
    from mengya.model.config import ModelConfig

    raw = _read_object(path / "config.json")
    config = ModelConfig.from_huggingface(raw, where=path / "config.json")
    architecture = (raw.get("architectures") or ["?"])[0]
    console.print(f"{architecture} · {short_count(config.num_parameters)} parameters\n")
    table = table_of("config", "")
    for field in config.__dataclass_fields__:
        table.add_row(field, str(getattr(config, field)))
    console.print(table)
    console.print()
    weights = sorted(path.glob("*.safetensors"))
    for file in weights:
        dtypes, num_tensors = _tensors(file)
        size = f"{file.stat().st_size / 2**20:,.1f} MiB"
        console.print(f"{file.name} · {num_tensors} tensors · {'/'.join(dtypes)} · {size}")
    if not weights:
        console.print("no .safetensors file")
    if (path / "tokenizer.json").is_file():
        from mengya.tokenizer.encode import load_tokenizer

        tokenizer = load_tokenizer(path)
        num_tokens = tokenizer.vocab_size
        fits = "" if num_tokens <= config.vocab_size else f" – does not fit the embedding of {config.vocab_size:,}"
        stops = ", ".join(repr(tokenizer.decode([stop])) for stop in tokenizer.stop_ids)
        console.print(f"tokenizer · {num_tokens:,} tokens{fits} · an answer ends at {stops}")
    else:
        console.print("no tokenizer.json")


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
    except ValueError as error:
        raise UserError(f"not JSON ({error})", where=file, mend="restore the file") from None
    if not isinstance(value, dict):
        raise UserError("not a JSON object", where=file, mend="restore the file")
    return value


def _tensors(file: Path) -> tuple[list[str], int]:
    """(dtypes, number of tensors) from a safetensors header: 8 bytes of length, then JSON."""
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        try:
            if not 0 < length <= file.stat().st_size:
                raise ValueError
            header = json.loads(handle.read(length))
        except ValueError:
            raise UserError("not a whole safetensors file", where=file, mend="copy or download it again") from None
    tensors = [value for name, value in header.items() if name != "__metadata__"]
    return sorted({tensor["dtype"] for tensor in tensors}), len(tensors)
