"""Starting adapters on several ranks: trained a step, exported in each way, compared with peft."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from adapter_kinds import peft_model
from helpers import joined, plain_logps, random_pairs

from cpo_ds.data.pack import pack
from cpo_ds.engine import engine
from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.errors import UserError
from cpo_ds.export.folder import write_pretrained
from cpo_ds.export.from_checkpoint import export
from cpo_ds.export.publish import publish_export
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.model.adapter import gather_nothing
from cpo_ds.model.load import load_policy
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.ranks.quiet import silence_libraries
from cpo_ds.ranks.ranks import Ranks, init_ranks
from cpo_ds.recipe import parse_config
from cpo_ds.run.build import RunInputs, build_run
from cpo_ds.run.trainer import Run
from cpo_ds.schema import StepTotals

PAIRS = random_pairs(2)
Outcome = dict[str, Any]  # a way to use an adapter -> largest error of a log-prob, or a refusal
ONLY_LOADED = "only loaded"  # beginning of the names of recipes that are not trained


def compare_each(recipes: dict[str, dict[str, Any]], file: str) -> None:
    """Starts each recipe, trains one step and exports; writes name -> outcomes to a JSON file."""
    silence_libraries()
    ranks = init_ranks()
    outcomes = {}
    for name, values in recipes.items():
        with contextlib.redirect_stdout(io.StringIO()):
            follow = _loaded if name.startswith(ONLY_LOADED) else _trained
            outcomes[name] = follow(values, ranks)
    if ranks.rank == 0:
        Path(file).write_text(json.dumps(outcomes))
    torch.distributed.destroy_process_group()


def _trained(values: dict[str, Any], ranks: Ranks) -> Outcome:
    config = parse_config(values, "test")
    settings = read_deepspeed_settings(config)
    try:
        run = build_run(RunInputs(config, settings, ranks, PAIRS))
    except UserError as error:
        return {"start": str(error)}
    base, adapter = Path(config.model.name_or_path), Path(config.model.adapter or "")
    outcome = {"start": _error(_logps(run), lambda: peft_model(base, adapter))}
    outcome["gradient"] = _train_a_step(run)
    trained = _logps(run)
    folder = Path(config.output_dir)
    run.saver.save(1)
    tokenizer = load_tokenizer(str(base))
    write_pretrained(run.engine, ranks, config, tokenizer, folder / "online", run.manifest_of(1))
    ranks.on_first(lambda: publish_export(folder / "online"))
    outcome["online"] = _error(trained, lambda: _load(base, folder / "online"))
    for name, merge in (("offline", False), ("merged", True)):
        try:
            ranks.on_first(
                lambda name=name, merge=merge: (
                    export(  # type: ignore[misc]
                        folder, output=folder / name, merge=merge, say=lambda text: None
                    )
                    and None
                )
            )
            outcome[name] = _error(trained, lambda name=name: _load(base, folder / name))  # type: ignore[misc]
        except UserError as error:
            outcome[name] = str(error)
    run.monitor.close()
    run.engine._deepspeed.destroy()
    return outcome


def _loaded(values: dict[str, Any], ranks: Ranks) -> Outcome:
    """Compares a merged adapter's weights, as ZeRO splits them, with peft's log-probs."""
    config = parse_config(values, "test")
    settings = read_deepspeed_settings(config)
    gather = engine.gather_parameters if settings.stage == 3 else gather_nothing
    try:
        with engine.sharded_loading(settings, ranks):
            policy, _ = load_policy(config, device=ranks.device, gather=gather)
    except UserError as error:
        return {"start": str(error)}
    model = policy.language_model
    with gather(model.parameters()):
        whole = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    if ranks.rank > 0:
        return {}
    plain = transformers.AutoModelForCausalLM.from_config(model.config, attn_implementation="eager")
    plain.load_state_dict(whole, strict=not model.config.tie_word_embeddings)
    with torch.no_grad():
        merged = joined(plain_logps(plain.eval(), PAIRS))
    base, adapter = Path(config.model.name_or_path), Path(config.model.adapter or "")
    return {"start": _error(merged, lambda: peft_model(base, adapter))}


def _train_a_step(run: Run) -> float:
    """Makes an optimizer step; returns the norm of its gradient."""
    batch = pack(PAIRS, tuple(range(len(PAIRS))))
    chosen, rejected = int(batch.num_chosen_tokens.sum()), int(batch.num_rejected_tokens.sum())
    totals = StepTotals(len(PAIRS), len(PAIRS), chosen, chosen + rejected, 0, 0)
    terms = pair_terms(run.engine.score(batch), run.config.loss)
    run.engine.accumulate(step_share(terms, totals, run.config.loss) / run.ranks.world_size)
    update = run.engine.update(1e-2)
    assert update.applied
    return update.grad_norm


def _logps(run: Run) -> torch.Tensor:
    with run.engine.evaluating():
        logps = run.engine.score(pack(PAIRS, tuple(range(len(PAIRS)))))
    return joined((logps.chosen, logps.rejected))


def _load(base: Path, exported: Path) -> Any:
    if (exported / "adapter_config.json").exists():
        return peft_model(base, exported)
    return transformers.AutoModelForCausalLM.from_pretrained(exported).eval()


def _error(served: torch.Tensor, make: Any) -> float:
    """The largest difference from plain log-probs, which rank 0 alone computes."""
    if torch.distributed.get_rank() > 0:
        return 0.0
    with torch.no_grad():
        return float((served - joined(plain_logps(make(), PAIRS))).abs().max())
