"""Silences the libraries that a program imports, unless `--verbose` is given."""

from __future__ import annotations

import logging
import os
import warnings


def silence_libraries() -> None:
    """Hides the warnings, log messages and progress bars of libraries."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loud = ("DeepSpeed", "torch.distributed", "transformers", "datasets", "absl", "bitsandbytes")
    for name in loud:
        logging.getLogger(name).setLevel(logging.ERROR)


def silence_after_import() -> None:
    """Silences libraries that set their own log levels when they are imported."""
    import transformers
    from datasets.utils.logging import disable_progress_bar

    silence_libraries()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bar()
