"""CPO with Liger's fused head and loss: padded concatenated forward pass, plain loop, torch AdamW.

Liger brings the loss and no trainer. The decoder runs on chosen and rejected sequences padded to
one length, as in TRL; the head and the loss are LigerFusedLinearCPOLoss, a pair at a time.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import torch
from measures.memory_split import plain_parts, states_gib
from measures.probe import Probe

from cpo_ds.schema import TokenizedPair
from jobs.job import BETA, MAX_GRAD_NORM, WEIGHT_DECAY, Job
from jobs.train_ours import tokenized_pairs
from jobs.train_trl import lora_config, start_dtype

_NO_TARGET = -100


def padded_batch(pairs: list[TokenizedPair], pad: int) -> tuple[torch.Tensor, ...]:
    """Token ids, attention mask and targets, [2 pairs, longest] each, chosen sequences first.

    A target is the next token if that token is scored, else -100.
    """
    longest = max(pair.longest_sequence for pair in pairs)
    ids = torch.full((2 * len(pairs), longest), pad)
    targets = torch.full_like(ids, _NO_TARGET)
    mask = torch.zeros_like(ids)
    for row, pair in enumerate(pairs):
        tokens = torch.from_numpy(pair.tokens).long()
        chosen_end = pair.num_prefix + pair.branch_lengths[0]
        chosen_start, rejected_start = pair.starts
        rejected = torch.cat([tokens[: pair.num_prefix], tokens[chosen_end:]])
        for index, sequence, start in (
            (row, tokens[:chosen_end], chosen_start),
            (row + len(pairs), rejected, rejected_start),
        ):
            ids[index, : len(sequence)] = sequence
            mask[index, : len(sequence)] = 1
            targets[index, start - 1 : len(sequence) - 1] = sequence[start:]
    return ids, mask, targets


def run_liger(job: Job, probe: Probe, folder: str) -> dict[str, Any]:
    """Trains with Liger; returns the measurements. Nothing is written to `folder`."""
    import peft
    import transformers

    chunked_loss = importlib.import_module("liger_kernel.chunked_loss")

    from cpo_ds.data.plan import epoch_order

    # Pairs in the order of training, the loss, the model and its optimizer.
    pairs = tokenized_pairs(job)
    order = epoch_order(len(pairs), job.seed, 0).tolist()
    loss_of = chunked_loss.LigerFusedLinearCPOLoss(beta=BETA, alpha=1.0, compiled=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    probe.libraries_are_loaded()
    model = transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=start_dtype(job))
    model.to(device).train()
    if job.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if job.training == "lora":
        transformers.set_seed(job.seed)  # the same starting adapter as in the other methods
        model = peft.get_peft_model(model, lora_config(job))
    base = model.get_base_model() if job.training == "lora" else model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=job.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
    )
    # The loop: a step is one padded batch.
    autocast = job.dtype == "bfloat16"
    held: dict[str, float] = {}
    for step in range(job.steps):
        of_step = order[step * job.pairs_per_step : (step + 1) * job.pairs_per_step]
        batch = padded_batch([pairs[i] for i in of_step], pad=0)
        ids, mask, targets = (tensor.to(device) for tensor in batch)
        with torch.autocast(device, torch.bfloat16) if autocast else contextlib.nullcontext():
            hidden = base.get_decoder()(
                input_ids=ids, attention_mask=mask, use_cache=False
            ).last_hidden_state
            loss, _ = loss_of(base.get_output_embeddings().weight, hidden, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        if step == 0:  # before the clock starts
            held.update(states_gib(model, None, optimizer))
        optimizer.step()
        optimizer.zero_grad()
        probe.losses.append(loss.detach())
        probe.step_is_done()
    held["optimizer"] = states_gib(model, None, optimizer)["optimizer"]
    measured = probe.result()
    return measured | plain_parts(measured["peak_memory_gib"], probe.libraries_gib, held)
