"""`mengya plan`: parameters, tokens, FLOPs, memory, time and cost of a recipe, before spending any; and claims of others.

A sample of the data goes through the real data stages, and a few real steps of every training stage are timed; the rest is
counting. With a run directory the plan is kept there, and the run's report shows it beside what then happened.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mengya.console import say
from mengya.environment import hardware
from mengya.errors import UserError
from mengya.files import sha256_of, write_json
from mengya.model.config import ModelConfig
from mengya.model.presets import describe
from mengya.run import Run
from mengya.serve.plan_machines import common_machines, gpu, parse_claim
from mengya.serve.plan_print import claim_lines, print_plan
from mengya.settings import Recipe
from mengya.stages.check import check_recipe, model_config, vocab_size
from mengya.stages.dial import with_dial

if TYPE_CHECKING:
    from mengya.serve.plan_parts import StagePlan

PLAN_FILE = "plan.json"


def make_plan(recipe: Recipe) -> dict[str, Any]:
    """The plan of a recipe on this machine as plain data: what `print_plan` shows and `RUN/plan.json` keeps."""
    began = time.perf_counter()
    # Torch among it: seconds that a run spends as well, in the first stage that needs them.
    from mengya.serve.plan_parts import StagePlan
    from mengya.serve.plan_sample import DATA_STAGES, take_sample

    loading = time.perf_counter() - began + _loading("tensorboard.summary.writer.event_file_writer")
    config = model_config(recipe, vocab_size(recipe))
    with tempfile.TemporaryDirectory(prefix="mengya-plan-") as directory:
        say("plan: a sample of the data")
        sample = take_sample(recipe, Path(directory))
        if all(stage in DATA_STAGES for stage in recipe.stages):
            probe = None
            plans = [StagePlan(stage, {"data": sample.seconds[stage]}) for stage in recipe.stages]
            for plan in plans:
                plan.cpu_seconds = plan.seconds
                plan.tokens = sum(sample.tokens.values()) if plan.stage == "shards" else 0.0
        else:
            say("plan: a few steps of each stage")
            from mengya.serve.plan_probe import Probe
            from mengya.serve.plan_stages import Planner

            probe = Probe(recipe, config)
            with_compiler = _loading("torch._dynamo")  # as any optimizer does, however little it compiles
            plans = Planner(recipe, probe, sample).plan()
            _add_loading(next((plan for plan in plans if plan.settings is not None), None), with_compiler)
        _add_loading(next((plan for plan in plans if plan.stage not in ("corpus", "tokenizer")), None), loading)
        return _as_data(recipe, config, plans, probe, sample.tokens, time.perf_counter() - began)


def _loading(module: str) -> float:
    """Seconds of importing a module; 0 where it is not installed."""
    began = time.perf_counter()
    with suppress(ModuleNotFoundError):
        importlib.import_module(module)
    return time.perf_counter() - began


def _add_loading(plan: StagePlan | None, seconds: float) -> None:
    if plan is not None:
        plan.parts["loading"] = plan.parts.get("loading", 0.0) + seconds
        plan.cpu_seconds += seconds


def _as_data(
    recipe: Recipe, config: ModelConfig, plans: list[StagePlan], probe: Any, tokens: dict[str, float], spent: float
) -> dict[str, Any]:
    from mengya.serve.plan_fit import fits_everywhere, remedy, seconds_on, warnings
    from mengya.stages.micro_batch import available_memory

    stages = {plan.stage: _stage(plan) for plan in plans}
    here = None
    if probe is not None:
        available = available_memory(probe.world)
        device = probe.world.device.type
        trained = sum(plan.parts.get("training", 0.0) for plan in plans)
        flops = sum(plan.flops for plan in plans if "training" in plan.parts)
        here = {
            "flops_per_second": probe.flops_per_second,
            "utilisation": flops / max(trained, 1e-9) / probe.flops_per_second,
            "precision": str(probe.world.dtype).removeprefix("torch."),
            "layers_timed": probe.config.num_layers,
            "layers": config.num_layers,
            "memory_bytes": available,
            "does_not_fit": {
                plan.stage: found
                for plan in plans
                if plan.settings is not None and (found := remedy(plan.settings, config, available, device)) is not None
            },
        }
    machines = []
    for machine in common_machines() if probe is not None else []:
        problem = fits_everywhere(plans, config, machine)
        seconds = {plan.stage: round(seconds_on(plan, config, machine), 1) for plan in plans}
        machines.append(
            {
                "name": machine.name,
                "count": machine.count,
                "flops": machine.flops,
                "memory_gib": machine.memory,
                "seconds": seconds,
                "does_not_fit": {problem[0]: problem[1]} if problem else {},
            }
        )
    return {
        "recipe": recipe.name,
        "identity": sha256_of(recipe.model_dump(mode="json")),
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "probe_seconds": round(spent, 1),
        "hardware": hardware(),
        "model": describe(config),
        "parameters": config.num_parameters,
        "data_tokens": {source: round(count) for source, count in tokens.items()},
        "here": here,
        "stages": stages,
        "seconds": round(sum(plan.seconds for plan in plans), 3),
        "machines": machines,
        "warnings": [f"{plan.stage} is not planned" for plan in plans if not plan.known]
        + _of_own_pairs(recipe)
        + warnings(recipe, config, tokens),
    }


def _of_own_pairs(recipe: Recipe) -> list[str]:
    """A line for each stage that will train on pairs which nobody can count before they are made."""
    from mengya.serve.plan_parts import OWN_KEPT

    settings = {stage: getattr(recipe, stage) for stage in ("reward", "dpo", "ppo", "grpo") if stage in recipe.stages}
    assumed = {
        "reward": f"as if {OWN_KEPT:.0%} of the prompts of `preferences` gave a pair, as long as the corpus's",
        "ppo": "with the prompts of the corpus's pairs alone",
    }
    assumed |= {"dpo": assumed["reward"], "grpo": assumed["ppo"]}
    wanting = [stage for stage, section in settings.items() if section.pairs_from != "corpus"]
    return [f"{stage} is planned {assumed[stage]}; the run's own are not there yet" for stage in wanting]


def _stage(plan: StagePlan) -> dict[str, Any]:
    from dataclasses import asdict

    from mengya.settings import micro_batch_key, micro_batch_of

    settings = plan.settings
    return {
        "seconds": round(plan.seconds, 3),
        "parts": {name: round(seconds, 3) for name, seconds in plan.parts.items()},
        "tokens": round(plan.tokens),
        "steps": plan.steps,
        "flops": plan.flops + plan.forward_flops,
        "memory": None if plan.memory is None else {**asdict(plan.memory), "total": plan.memory.total},
        "micro_batch": None if settings is None else {micro_batch_key(settings): micro_batch_of(settings)},
    }


def parse_prices(texts: Sequence[str], known: Mapping[str, float]) -> dict[str, float]:
    """{machine: price of an hour} of "0.5" (this machine), "H100=2.5" and the recipe's; UserError for anything else."""
    prices = {name if name == "here" else gpu(name).name: price for name, price in known.items()}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            price = float(number)
        except ValueError:
            raise UserError(f"{number!r} is no price", where="--price", mend="write 0.5, or H100=2.5") from None
        prices["here" if name in ("", "here") else gpu(name).name] = price
    return prices


def keep_plan(plan: dict[str, Any], recipe: Recipe, directory: Path) -> None:
    """Write it to RUN/plan.json, for the report of that run; a directory that is no run yet becomes one."""
    run = Run(directory)
    if directory.exists() and any(directory.iterdir()) and not (directory / "recipe.yaml").exists():
        raise UserError("this folder holds something that is not a run", where=directory, mend="give another --out")
    with run.lock():
        if not (directory / "recipe.yaml").exists():
            run.save_recipe(recipe)
        write_json(directory / PLAN_FILE, plan)


def plan_command(recipe: Recipe | None, prices: list[str], claim: str | None, out: Path | None) -> None:
    """Print the plan of `recipe` (and keep it in `out`), the verdict on `claim`, or both."""
    if recipe is None and claim is None:
        raise UserError("nothing to plan", where="mengya plan", mend="name a recipe, or give --claim")
    if claim is not None:
        print(claim_lines(parse_claim(claim)))
    if recipe is None:
        return
    found = parse_prices(prices, recipe.prices)
    recipe = with_dial(recipe)
    check_recipe(recipe)
    plan = make_plan(recipe)
    print_plan(plan, found)
    if out is not None:
        keep_plan(plan, recipe, out)
        print(f"kept in {out / PLAN_FILE}; the run's report will show it beside what happened")
