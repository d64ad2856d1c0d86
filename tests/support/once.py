"""Computes constants that every run would look up anew; the fork server imports this last."""

import gc

import deepspeed.ops
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

deepspeed.ops.__compatible_ops__  # noqa: B018 - found on first access, with a compiler
get_checkpoint_conversion_mapping("llama")
gc.collect()
gc.freeze()  # nothing of this is garbage in a forked process: its collector need not look
