"""Runs a recipe by its command line, as one of the ranks, and turns errors into exit codes.

Exit codes: 0 done, 2 something for the user to put right, 3 a loss or gradient was not finite,
4 stopped on request (run it again to go on), 5 a rank was lost or hung (run it again).
"""

from __future__ import annotations

import os
import sys
import time

from cpo_ds.errors import (
    EXIT_NON_FINITE,
    EXIT_RANK_LOST,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    NonFiniteError,
    Stopped,
    UserError,
)

# None of these imports torch: the environment is set before, and --help answers at once.
from cpo_ds.ranks.console import plain_console
from cpo_ds.ranks.environment_file import apply_environment_files
from cpo_ds.ranks.launchers import launchers_above
from cpo_ds.ranks.place import Place, place
from cpo_ds.ranks.quiet import silence_libraries
from cpo_ds.ranks.stopping import end_by_signals, interrupt_by_signals
from cpo_ds.recipe import load_config
from cpo_ds.run.allocators import let_gpu_memory_grow
from cpo_ds.run.imports import quick_imports


def main(argv: list[str], planned: Place | None = None) -> int:
    """Runs a recipe; returns the exit code.

    `planned` is a rank for a dry run, which starts no others; by default this process is one.
    """
    with plain_console(may_lose_text=True):
        return _main(argv, planned)


def _main(argv: list[str], planned: Place | None) -> int:
    if "--verbose" not in argv:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    interrupt_by_signals()
    launchers = launchers_above()  # now, because one may be gone when the imports are done
    try:
        # Set the environment that torch, DeepSpeed and transformers read when they are imported.
        apply_environment_files()
        own_place = place()
        if own_place.launcher != "none":
            os.environ.update(own_place.variables())
        config, arguments = load_config(argv)
        if not arguments.verbose:
            silence_libraries()
        let_gpu_memory_grow()
        with quick_imports(with_bitsandbytes=config.model.quantization is not None):
            _choose_accelerator()
            if arguments.dry_run:
                from cpo_ds.run.dry_run import dry_run  # as below
            else:
                from cpo_ds.run.session import run_recipe  # imports these libraries

        if not arguments.dry_run:
            run_recipe(config, verbose=arguments.verbose, launchers=launchers)
        elif own_place.rank == 0:
            dry_run(config, planned or own_place, verbose=arguments.verbose)
    except UserError as error:
        return _fail("error", str(error), error.exit_code)
    except NonFiniteError as error:
        return _fail("stopped", str(error), EXIT_NON_FINITE)
    except Stopped as error:
        return EXIT_STOPPED if _rank() else _fail("stopped", str(error), EXIT_STOPPED)
    except KeyboardInterrupt:
        return _fail("stopped", "asked to before training began; nothing is lost.", EXIT_STOPPED)
    except Exception as error:
        from cpo_ds.ranks.limits import limit_problem  # both import torch
        from cpo_ds.ranks.watch import is_loss_of_others

        if problem := limit_problem(error):
            return _fail("error", problem, EXIT_USER_ERROR)
        if is_loss_of_others(error):
            # The watch is about to find out which rank was lost. It says so and ends this process.
            time.sleep(60)
            return _fail("stopped", f"lost the other ranks: {error}", EXIT_RANK_LOST)
        raise
    return 0


def _choose_accelerator() -> None:
    """Names the CPU to DeepSpeed if there is no GPU; else each process warns that it found none."""
    import torch  # here, since the environment has to be set before

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _fail(kind: str, message: str, code: int) -> int:
    """Prints an error and returns its exit code.

    All ranks raise the same error. Rank 0 prints it at once and ends, after which a launcher ends
    the others; one that is not ended within 10 seconds prints it as well.
    """
    end_by_signals()  # launchers send SIGTERM
    if _rank():
        time.sleep(10)
        message = f"(rank {_rank()}) {message}"
    print(f"\ncpo_ds: {kind}: {message}", file=sys.stderr, flush=True)
    return code
