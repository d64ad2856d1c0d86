"""Silences the libraries that a program imports, unless `--verbose` is given."""

from __future__ import annotations

import logging
import os
import sys
import warnings


class _OneLineOfRetries(logging.Filter):
    """Lets through one line when the hub does not answer, instead of two for each attempt."""

    def __init__(self) -> None:
        super().__init__()
        self._is_said = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show a message of the hub's client; the first of a failure is rewritten."""
        message = record.getMessage()
        if message.startswith(("Retrying in ", "Rate limited. ")):
            return False
        failure, is_request, _ = message.partition(" thrown while requesting ")
        if not is_request:
            return True
        record.msg = (
            f"the Hugging Face hub does not answer ({failure.strip(chr(39))}); trying again, up to "
            "5 times for each file"
        )
        record.args = ()
        is_first, self._is_said = not self._is_said, True
        return is_first


_ONE_LINE_OF_RETRIES = _OneLineOfRetries()


def silence_libraries() -> None:
    """Hides the warnings, log messages and progress bars of libraries."""
    # A filter, since the library sets its own level when it is imported. Added once.
    logging.getLogger("huggingface_hub.utils._http").addFilter(_ONE_LINE_OF_RETRIES)
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    loud = ("DeepSpeed", "torch.distributed", "transformers", "datasets", "absl", "bitsandbytes")
    for name in loud:
        logging.getLogger(name).setLevel(logging.ERROR)


def silence_after_import() -> None:
    """Silences libraries that set their own log levels when they are imported.

    datasets does so by its variables; it is not imported for this, since that takes a while.
    """
    import transformers

    silence_libraries()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if of_datasets := sys.modules.get("datasets.utils.logging"):
        of_datasets.disable_progress_bar()
