"""The script that `deepspeed` launches: parse, build, run.

    deepspeed --num_accelerators 2 cpo_ds/train.py --config recipes/demo.yaml
    python cpo_ds/train.py --config recipes/demo.yaml           # one rank

Exit codes: 0 done, 2 something for the user to put right, 3 a loss or gradient was not finite.
"""

from __future__ import annotations

import importlib.util
import os
import sys

# As a script, Python puts this file's folder first on the import path, where this package's
# modules would shadow libraries of the same name; its parent takes that place.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _HERE]
if os.path.dirname(_HERE) not in sys.path:
    sys.path.insert(0, os.path.dirname(_HERE))

if importlib.util.find_spec("deepspeed") is None:
    print(
        f"cpo_ds: error: {sys.executable} has no package deepspeed; run bash scripts/setup.sh and "
        "source .venv/bin/activate.",
        file=sys.stderr,
    )
    sys.exit(2)

import hashlib  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from importlib import metadata  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import yaml  # noqa: E402

from cpo_ds.config import Config, load_config  # noqa: E402
from cpo_ds.schema import (  # noqa: E402
    EXIT_NON_FINITE,
    EXIT_USER_ERROR,
    NonFiniteError,
    PreferenceRow,
    TokenizedPair,
    UserError,
)

if TYPE_CHECKING:
    from cpo_ds.engine import Ranks
    from cpo_ds.trainer import Run


def main(argv: list[str]) -> int:
    """Runs a recipe; returns the exit code."""
    try:
        config, arguments = load_config(argv)
        if not arguments.verbose:
            silence_libraries()
        run_recipe(config)
    except UserError as error:
        return _fail("error", str(error), EXIT_USER_ERROR)
    except NonFiniteError as error:
        return _fail("stopped", str(error), EXIT_NON_FINITE)
    except KeyboardInterrupt:
        return _fail("stopped", "interrupted.", 130)
    except Exception as error:
        if "Connection closed by peer" in str(error) or "DistNetworkError" in repr(type(error)):
            time.sleep(15)  # the rank that ended first says why
            return _fail("stopped", "another rank ended; what it said is above.", 1)
        raise
    return 0


def _fail(kind: str, message: str, code: int) -> int:
    """Says it once: the ranks see the same error, so all but the first wait to be ended."""
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        time.sleep(10)
        message = f"(rank {rank}) {message}"
    print(f"\ncpo_ds: {kind}: {message}", file=sys.stderr, flush=True)
    return code


def silence_libraries() -> None:
    """Keeps what libraries say to themselves; `--verbose` lets them speak."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in ("DeepSpeed", "torch.distributed", "transformers", "datasets", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)


def run_recipe(config: Config) -> None:
    """Reads data, loads the policy, trains, exports."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from cpo_ds import checkpoint, engine
    from cpo_ds.deepspeed_config import read_deepspeed_config, zero_stage
    from cpo_ds.trainer import train

    quiet = logging.getLogger("DeepSpeed").level == logging.ERROR
    settings = read_deepspeed_config(config)
    ranks = engine.init_ranks()
    if quiet:
        _silence_after_import()
    folder = Path(config.output_dir)
    make_output_folder(folder)
    tokenizer, train_pairs, eval_pairs = prepare_pairs(config, tell=ranks.rank == 0)
    found = checkpoint.find_checkpoint(config.checkpoint, folder / "checkpoints")
    identity = run_identity(config, train_pairs, ranks.world_size, zero_stage(settings))
    first_step = checkpoint.read_step(found, identity) if found else 0
    if ranks.rank == 0:
        _write_config(config, folder, ranks.world_size)
    run = build_run(config, settings, ranks, train_pairs, eval_pairs, identity, first_step)
    if found:
        checkpoint.load(run.engine, ranks, found, adapter_only=config.trains_adapter)
        run.monitor.say(f"resumed from {found} at step {first_step} of {run.total_steps}")
    train(run)
    if config.checkpoint.export:
        from cpo_ds.pretrained import write_pretrained

        what = write_pretrained(run.engine, ranks, config, tokenizer, folder / "export")
        run.monitor.say(f"{what} written to {folder / 'export'}")
    run.monitor.close()
    torch.distributed.destroy_process_group()


def prepare_pairs(
    config: Config, *, tell: bool
) -> tuple[Any, list[TokenizedPair], list[TokenizedPair]]:
    """Reads, splits and tokenizes the data; returns tokenizer, training and held-out pairs."""
    from cpo_ds.data.plan import check_budget
    from cpo_ds.data.rows import read_rows, split_held_out
    from cpo_ds.data.tokenize import tokenize_rows
    from cpo_ds.model.load import check_token_ids, load_model_config, load_tokenizer

    model_config = load_model_config(config.model.name_or_path)
    tokenizer = load_tokenizer(config.model.name_or_path)
    render_chat = chat_renderer(tokenizer)
    rows, row_report = read_rows(config.data, render_chat)

    def say(*lines: str) -> None:
        if tell:
            print("\n".join(lines), flush=True)

    say(*row_report.lines())
    held_out: list[PreferenceRow] = []
    if config.data.eval_path:
        held_out, eval_report = read_rows(config.data, render_chat, path=config.data.eval_path)
        say("held out:", *eval_report.lines())
    elif config.data.eval_fraction:
        rows, held_out = split_held_out(rows, config.data.eval_fraction, config.train.seed)
    pairs = []
    for name, some in (("training pairs", rows), ("held-out pairs", held_out)):
        tokenized: list[TokenizedPair] = []
        if some:
            tokenized, report = tokenize_rows(
                some,
                tokenizer,
                max_prompt_tokens=config.data.max_prompt_tokens,
                max_tokens=config.data.max_tokens,
                sharing=config.batch.share_prefix,
            )
            say(f"{name}: {len(tokenized)}", *report.lines())
            check_budget(tokenized, config.batch.tokens_per_rank)
            check_token_ids(tokenized, model_config)
        pairs.append(tokenized)
    return tokenizer, pairs[0], pairs[1]


def chat_renderer(tokenizer: Any) -> Any:
    """The tokenizer's chat template as a function of messages, or None where it has none."""
    if tokenizer.chat_template is None:
        return None
    return lambda messages, add_generation_prompt: tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )


def build_run(
    config: Config,
    settings: dict[str, Any],
    ranks: Ranks,
    train_pairs: list[TokenizedPair],
    eval_pairs: list[TokenizedPair],
    identity: dict[str, Any],
    first_step: int,
) -> Run:
    """Loads the policy (sharded under ZeRO-3), starts the engine and the monitor."""
    import torch

    from cpo_ds.deepspeed_config import zero_stage
    from cpo_ds.engine import Engine, gather_parameters, sharded_loading
    from cpo_ds.model.load import load_policy
    from cpo_ds.monitor import Monitor
    from cpo_ds.trainer import Run, planned_steps

    sharded = zero_stage(settings) == 3
    options: dict[str, Any] = {"gather": gather_parameters} if sharded else {}
    with sharded_loading(settings):
        policy, attention = load_policy(
            config,
            device=ranks.device,
            place_on_device=not sharded and ranks.device.type == "cuda",
            **options,
        )
        engine = Engine(policy, config, settings)
    monitor = Monitor(
        Path(config.output_dir),
        is_writer=ranks.rank == 0,
        tensorboard=config.logging.tensorboard,
        first_step=first_step,
        total_steps=planned_steps(config, len(train_pairs)),
    )
    monitor.say(attention)
    monitor.say(
        f"training {'a LoRA adapter' if config.trains_adapter else 'all parameters'} with "
        f"{config.loss.name} in {config.model.dtype} on {ranks.world_size} rank(s) "
        f"({ranks.device.type}), ZeRO-{zero_stage(settings)}"
    )
    torch.manual_seed(config.train.seed * 100_003 + ranks.rank)  # dropout differs between ranks
    return Run(config, engine, ranks, monitor, train_pairs, eval_pairs, identity, first_step)


def run_identity(
    config: Config, pairs: list[TokenizedPair], world_size: int, stage: int
) -> dict[str, Any]:
    """What a run must share with a checkpoint that it resumes from."""
    from cpo_ds.model.load import load_model_config

    model = load_model_config(config.model.name_or_path).to_dict()
    shape = {k: v for k, v in model.items() if not k.startswith("_") and "version" not in k}
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(pair.tokens.tobytes())
        digest.update(f"{pair.num_prefix},{pair.chosen_start},{pair.rejected_start};".encode())
    identity = {
        "model": config.model.name_or_path,
        "model shape": _digest(shape),
        "starting adapter": config.model.adapter,
        "adapter mode": config.model.adapter_mode if config.model.adapter else None,
        "precision": config.model.dtype,
        "LoRA": config.lora.model_dump() if config.lora else None,
        "loss": config.loss.model_dump(),
        "training pairs (fingerprint)": digest.hexdigest()[:16],
        "pairs per step": config.batch.pairs,
        "seed": config.train.seed,
        "number of ranks": world_size,
        "ZeRO stage": stage,
    }
    return json.loads(json.dumps(identity))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _silence_after_import() -> None:
    """Some libraries set their own levels when they are imported."""
    import transformers
    from datasets.utils.logging import disable_progress_bar

    silence_libraries()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bar()


def make_output_folder(folder: Path) -> None:
    """Makes the run's folder. All ranks try, so that all see the same `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be written: {error.strerror}.") from None


def _write_config(config: Config, folder: Path, world_size: int) -> None:
    versions = {
        name: metadata.version(name)
        for name in ("torch", "deepspeed", "transformers", "peft", "datasets", "numpy")
    }
    about = {"versions": versions, "python": sys.version.split()[0], "ranks": world_size}
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    text += "".join(f"# {line}\n" for line in yaml.safe_dump(about, sort_keys=False).splitlines())
    (folder / "config.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
