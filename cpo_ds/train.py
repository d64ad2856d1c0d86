"""The script that `deepspeed` launches: parse, build, run.

    deepspeed --num_accelerators 2 cpo_ds/train.py --config recipes/demo.yaml
    python cpo_ds/train.py --config recipes/demo.yaml           # one rank

Exit codes: 0 done, 2 something for the user to put right, 3 a loss or gradient was not finite,
4 stopped on request (run it again to go on), 5 a rank was lost or hung (run it again).
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

if "--verbose" not in sys.argv:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it when it is imported

if importlib.util.find_spec("deepspeed") is None:
    print(
        f"cpo_ds: error: {sys.executable} has no package deepspeed; run bash scripts/setup.sh and "
        "source .venv/bin/activate.",
        file=sys.stderr,
    )
    sys.exit(2)

import logging  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from cpo_ds.config import Config  # noqa: E402
from cpo_ds.errors import (  # noqa: E402
    EXIT_NON_FINITE,
    EXIT_RANK_LOST,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    NonFiniteError,
    Stopped,
    UserError,
)
from cpo_ds.ranks.environment_file import apply_environment_files  # noqa: E402
from cpo_ds.ranks.place import place  # noqa: E402
from cpo_ds.ranks.quiet import silence_after_import, silence_libraries  # noqa: E402
from cpo_ds.recipe import load_config  # noqa: E402

if TYPE_CHECKING:
    from cpo_ds.engine.settings import DeepSpeedSettings
    from cpo_ds.ranks.ranks import Ranks
    from cpo_ds.ranks.stopping import StopRequest


def main(argv: list[str]) -> int:
    """Runs a recipe; returns the exit code."""
    try:
        apply_environment_files()
        here = place()
        if here.launcher != "none":
            os.environ.update(here.variables())
        config, arguments = load_config(argv)
        if not arguments.verbose:
            silence_libraries()
        run_recipe(config)
    except UserError as error:
        return _fail("error", str(error), EXIT_USER_ERROR)
    except NonFiniteError as error:
        return _fail("stopped", str(error), EXIT_NON_FINITE)
    except Stopped as error:
        return EXIT_STOPPED if _rank() else _fail("stopped", str(error), EXIT_STOPPED)
    except KeyboardInterrupt:
        return _fail("stopped", "interrupted.", 130)
    except Exception as error:
        from cpo_ds.ranks.watch import is_loss_of_others

        if is_loss_of_others(error):
            time.sleep(60)  # the watch finds out which rank was lost, says so and ends this process
            return _fail("stopped", f"lost the other ranks: {error}", EXIT_RANK_LOST)
        raise
    return 0


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _fail(kind: str, message: str, code: int) -> int:
    """Says it once: the ranks see the same error, so all but the first wait to be ended."""
    if _rank():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what a launcher ends them by
        time.sleep(10)
        message = f"(rank {_rank()}) {message}"
    print(f"\ncpo_ds: {kind}: {message}", file=sys.stderr, flush=True)
    return code


def run_recipe(config: Config) -> None:
    """Reads data, loads the policy, trains, exports."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from cpo_ds.engine.settings import read_deepspeed_settings
    from cpo_ds.ranks.logs import RankLog
    from cpo_ds.ranks.ranks import init_ranks
    from cpo_ds.ranks.stopping import StopRequest
    from cpo_ds.ranks.watch import Watch
    from cpo_ds.run.folder import make_output_folder
    from cpo_ds.storage.lock import hold_folder

    quiet = logging.getLogger("DeepSpeed").level == logging.ERROR
    settings = read_deepspeed_settings(config)
    ranks = init_ranks(config.train.stall_minutes)
    stop = StopRequest(config.train.max_hours)
    stop.listen()
    if quiet:
        silence_after_import()
    folder = Path(config.output_dir)
    ranks.everywhere(lambda: make_output_folder(folder))
    lock: list[Any] = []  # kept open as long as this runs
    in_folders = ranks.per_folder(is_local=settings.keeps_local_checkpoints)
    in_folders(lambda: lock.append(hold_folder(folder)))
    log = RankLog(ranks.rank, folder)
    log.open()
    with Watch(ranks, folder, config.train.stall_minutes, log.console):
        _run_watched(config, settings, ranks, stop)
        ranks.wait_for_all()
    log.close()
    torch.distributed.destroy_process_group()


def _run_watched(
    config: Config, settings: DeepSpeedSettings, ranks: Ranks, stop: StopRequest
) -> None:
    from cpo_ds.run.build import as_trained, build_run, find_resume, prepare_pairs, run_identity
    from cpo_ds.run.folder import clear_finished, finished_step, write_config, write_finished
    from cpo_ds.run.trainer import planned_steps, train

    def say(text: str) -> None:
        if ranks.rank == 0:
            print(text, flush=True)

    folder = Path(config.output_dir)
    # Read and tokenized once; the other ranks wait for what comes out.
    pairs = ranks.on_first(lambda: prepare_pairs(config, tell=True))
    tokenizer, train_pairs, eval_pairs = pairs
    identity = ranks.on_first(lambda: run_identity(config, train_pairs))
    resume = find_resume(config, settings, ranks, identity, say)
    steps = planned_steps(config, len(train_pairs))
    if resume and resume.manifest.step > steps:
        raise UserError(
            f"{resume.found} is of step {resume.manifest.step}, but train.epochs and train."
            f"max_steps make a run of {steps}; raise them, or name an earlier checkpoint.resume."
        )
    if resume and resume.manifest.step == steps:
        # Nothing is trained any more. What is left of an interrupted end is done by the settings
        # that did train, and said of them.
        if ranks.on_first(lambda: finished_step(config)) == steps:
            say(
                f"{folder} is finished, at step {steps} of {steps}. Nothing was trained again and "
                "nothing rewritten; for a run with other settings choose another output_dir."
            )
            ranks.on_first(lambda: write_finished(folder, steps))
            return
        config = as_trained(config, resume.manifest)
    ranks.on_first(lambda: clear_finished(folder))
    ranks.on_first(lambda: write_config(config, folder, ranks.world_size))
    run = build_run(config, settings, ranks, train_pairs, eval_pairs, identity, resume)
    if resume:
        say(f"resumed from {resume.found} at step {run.first_step} of {run.total_steps}")
    run.stop = stop
    try:
        train(run)
    except (Stopped, NonFiniteError):
        ranks.on_first(run.monitor.close)
        raise
    if config.checkpoint.export:
        from cpo_ds.export.folder import write_pretrained

        about = replace(run.saver.about, step=run.total_steps)
        what = write_pretrained(run.engine, ranks, config, tokenizer, folder / "export", about)
        run.monitor.say(f"{what} written to {folder / 'export'}")
    run.saver.check_last(run.total_steps)
    ranks.on_first(run.monitor.close)
    ranks.on_first(lambda: write_finished(folder, steps))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
