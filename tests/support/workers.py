"""What tests run on several ranks: functions for `launch.on_ranks`, results in files."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
import transformers
from deepspeed.utils import safe_get_full_grad
from transformers.initialization import no_init_weights

import cpo_ds.run.build
from cpo_ds.checkpoint import save as saver
from cpo_ds.checkpoint.manifest import checkpoint_name
from cpo_ds.checkpoint.resume import find_checkpoint
from cpo_ds.config import CheckpointConfig
from cpo_ds.data import rows
from cpo_ds.data.pack import pack
from cpo_ds.engine import engine
from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.errors import UserError
from cpo_ds.export import folder as pretrained
from cpo_ds.export.from_checkpoint import export
from cpo_ds.losses import step_share
from cpo_ds.model.load import load_policy
from cpo_ds.ranks import watch
from cpo_ds.ranks.quiet import silence_libraries
from cpo_ds.ranks.ranks import Ranks, init_ranks
from cpo_ds.recipe import parse_config
from cpo_ds.run import trainer
from cpo_ds.run.build import build_run, prepare_pairs
from cpo_ds.schema import PackedBatch
from cpo_ds.storage import lock
from cpo_ds.train import main, run_recipe

Named = dict[str, torch.Tensor]
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def train_each(recipes: dict[str, dict[str, Any]], folder: str, controls: dict[str, str]) -> None:
    """Trains each recipe in turn and writes NAME.pt: losses, gradients, weights.

    `controls` names, for some recipes, a mistake to make on purpose.
    """
    silence_libraries()
    ranks = init_ranks()
    for name, values in recipes.items():
        with MISTAKES[controls.get(name, "none")](values):
            record = _train(values | {"output_dir": f"{folder}/{name}"}, ranks)
        if ranks.rank == 0:
            torch.save(record, f"{folder}/{name}.pt")
    torch.distributed.destroy_process_group()


def build(values: dict[str, Any], ranks: Ranks) -> trainer.Run:
    """A run that is ready to train, as `train.run_recipe` makes it."""
    config = parse_config(values, "test")
    settings = read_deepspeed_settings(config)
    _, train_pairs, eval_pairs = prepare_pairs(config, tell=False)
    return build_run(config, settings, ranks, train_pairs, eval_pairs, {})


def _train(values: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    run = build(values, ranks)
    gradients: list[Named] = []
    start = _whole_weights(run.engine)
    update = run.engine._deepspeed.optimizer.step

    def record_gradients_then_update(*arguments: Any) -> Any:
        gradients.append(_whole_gradients(run.engine))
        return update(*arguments)

    run.engine._deepspeed.optimizer.step = record_gradients_then_update
    trainer.train(run)
    run.monitor.close()
    steps = range(1, run.total_steps + 1)
    plans = [trainer.plan(run, step)[0] for step in steps]
    stand_ins = torch.tensor(sum(not batch.counted for batches in plans for batch in batches))
    weights = _whole_weights(run.engine)
    run.engine._deepspeed.destroy()
    lines = Path(run.config.output_dir, "metrics.jsonl").read_text().splitlines()
    return {
        "losses": [json.loads(line)["loss"] for line in lines if '"loss"' in line],
        "gradients": gradients,
        "start": start,
        "weights": weights,
        "micro_batches": [len(batches) for batches in plans],
        "pairs_in_each": [[batch.num_pairs for batch in batches] for batches in plans],
        "stand_ins": int(run.engine.sum_over_ranks(stand_ins)),
    }


def _whole_weights(policy_engine: engine.Engine) -> Named:
    return {n: w.clone() for n, w in policy_engine.whole_parameters(trained_only=False)}


def _whole_gradients(policy_engine: engine.Engine) -> Named:
    named = policy_engine.policy.language_model.named_parameters()
    trained = {name: parameter for name, parameter in named if parameter.requires_grad}
    return {name: safe_get_full_grad(p).detach().clone() for name, p in trained.items()}


def run_each(recipes: list[dict[str, Any]]) -> None:
    """Runs whole recipes one after the other, each to its export."""
    silence_libraries()
    init_ranks()
    with mock.patch.object(torch.distributed, "destroy_process_group"):
        for values in recipes:
            run_recipe(parse_config(values, "test"))
    torch.distributed.destroy_process_group()


def export_watched(
    run: str, output: str, merge: bool, shard_bytes: int, largest_file: int | None
) -> int:
    """Exports a run and writes OUTPUT.json: by how much this process's memory grew.

    With `largest_file`, files cannot grow beyond it, as if the disk were full.
    """
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    silence_libraries()
    try:
        with MemoryWatch() as memory:
            export(Path(run), output=Path(output), merge=merge, shard_bytes=shard_bytes)
    except UserError as error:
        print(error)
        return 2
    Path(f"{output}.json").write_text(json.dumps({"grown_bytes": memory.peak - memory.start}))
    return 0


def die_while_saving(step: int, *arguments: str) -> int:
    """Trains, but is killed where a step's checkpoint is written, though not yet under its name."""
    publish = saver.publish

    def publish_or_die(unfinished: Path, final: Path) -> None:
        if final.name == checkpoint_name(step):
            os.kill(os.getpid(), signal.SIGKILL)
        publish(unfinished, final)

    with mock.patch.object(saver, "publish", publish_or_die):
        return main(list(arguments))


def main_without_patience(*arguments: str) -> int:
    """Does not wait for a run that holds the folder."""
    with mock.patch.object(lock, "_LOCK_SECONDS", 0.0):
        return main(list(arguments))


def hang(step: int, *arguments: str) -> int:
    """Trains, but rank 1 never gets past the planning of a step; the watch is less patient."""
    plan = trainer.plan

    def plan_or_hang(run: trainer.Run, now: int) -> Any:
        while now == step and run.ranks.rank == 1:
            time.sleep(1)
        return plan(run, now)

    with (
        mock.patch.object(trainer, "plan", plan_or_hang),
        mock.patch.object(watch, "_GRACE_SECONDS", 2.0),
    ):
        return main(list(arguments))


def hang_before_training(where: str, rank: int, *arguments: str) -> int:
    """Trains, but a rank never comes back from a function that is called before the first step."""
    module, _, name = where.rpartition(".")
    original = getattr(importlib.import_module(module), name)

    def call_or_hang(*inputs: Any, **options: Any) -> Any:
        while os.environ["RANK"] == str(rank):
            time.sleep(1)
        return original(*inputs, **options)

    with mock.patch(where, call_or_hang), mock.patch.object(watch, "_GRACE_SECONDS", 2.0):
        return main(list(arguments))


def start_and_export_slowly(seconds: float, *arguments: str) -> int:
    """Trains, but reading rows and writing the export take so long each, moving all the time."""
    make_row, save_file = rows._make_row, pretrained.save_file
    pauses = 20
    slow_rows = iter(range(pauses))

    def make_row_slowly(*inputs: Any) -> Any:
        if next(slow_rows, None) is not None:
            time.sleep(seconds / pauses)
        return make_row(*inputs)

    def save_file_slowly(tensors: Named, path: Path, **options: Any) -> None:
        with tempfile.TemporaryFile() as file:
            for _ in range(pauses):
                time.sleep(seconds / pauses)
                file.write(bytes(2**20))
                file.flush()
        save_file(tensors, path, **options)

    with (
        mock.patch.object(rows, "_make_row", make_row_slowly),
        mock.patch.object(pretrained, "save_file", save_file_slowly),
        mock.patch.object(watch, "_GRACE_SECONDS", 2.0),
    ):
        return main(list(arguments))


def train_while_the_clock_is_set(step: int, *arguments: str) -> int:
    """Trains, but from a step on the system says that it was started three seconds later."""
    plan, boot_time = trainer.plan, psutil._pslinux.boot_time

    def plan_and_set(run: trainer.Run, now: int) -> Any:
        if now == step:
            psutil._pslinux.boot_time = lambda: boot_time() + 3
            time.sleep(5 * watch.BEAT_SECONDS)
        return plan(run, now)

    with (
        mock.patch.object(trainer, "plan", plan_and_set),
        mock.patch.object(psutil._pslinux, "boot_time", boot_time),
        mock.patch.object(watch, "_GRACE_SECONDS", 1.0),
    ):
        return main(list(arguments))


def write_limits(report: str, *arguments: str) -> int:
    """Trains; each rank writes for how many minutes its groups of ranks wait for one of them."""
    train = cpo_ds.run.trainer.train

    def write_and_train(run: trainer.Run) -> None:
        c10d = torch.distributed.distributed_c10d
        groups = [group for group in c10d._world.pg_map if isinstance(group, c10d.ProcessGroup)]
        limits = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]
        limits += [c10d._get_default_timeout("nccl"), c10d._get_default_timeout("gloo")]
        limits.append(c10d._get_default_store().timeout)
        minutes = [limit.total_seconds() / 60 for limit in limits]
        Path(f"{report}-{run.ranks.rank}.json").write_text(json.dumps(minutes))
        train(run)

    with mock.patch.object(cpo_ds.run.trainer, "train", write_and_train):
        return main(list(arguments))


def suspend(step: int, *arguments: str) -> int:
    """Trains, but rank 0's process is stopped at a step; others count as lost soon."""
    plan = trainer.plan

    def plan_or_stop(run: trainer.Run, now: int) -> Any:
        if now == step and run.ranks.rank == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        return plan(run, now)

    with (
        mock.patch.object(trainer, "plan", plan_or_stop),
        mock.patch.multiple(watch, SILENT_SECONDS=4.0, _GRACE_SECONDS=2.0),
    ):
        return main(list(arguments))


def fail_alone(step: int, rank: int, *arguments: str) -> int:
    """Trains, but one rank fails at a step, and the others do not know.

    The watch asks all the time: also between the rank's telling of its error and its end.
    """
    plan = trainer.plan

    def plan_or_fail(run: trainer.Run, now: int) -> Any:
        if now == step and run.ranks.rank == rank:
            raise ValueError(f"of rank {rank} alone")
        return plan(run, now)

    with (
        mock.patch.object(trainer, "plan", plan_or_fail),
        mock.patch.object(watch, "BEAT_SECONDS", 0.01),
    ):
        return main(list(arguments))


def count_tokenized(*arguments: str) -> int:
    """Trains, and says each time that rows are tokenized."""
    tokenize_rows = cpo_ds.run.build.tokenize_rows

    def tokenize_and_say(rows: Any, *others: Any, **options: Any) -> Any:
        print(f"tokenized rows: {len(rows)}", flush=True)
        return tokenize_rows(rows, *others, **options)

    with mock.patch.object(cpo_ds.run.build, "tokenize_rows", tokenize_and_say):
        return main(list(arguments))


def train_with_other_dropout(*arguments: str) -> int:
    """Trains with other random numbers from the first step on, all else equal."""
    plan = trainer.plan

    def plan_and_draw(run: trainer.Run, step: int) -> Any:
        torch.rand(1)
        return plan(run, step)

    with mock.patch.object(trainer, "plan", plan_and_draw):
        return main(list(arguments))


def stop_each(recipes: dict[str, dict[str, Any]], folder: str) -> None:
    """Trains each recipe until it stops and writes NAME.json: why, and what became of weights."""
    silence_libraries()
    ranks = init_ranks()
    for name, values in recipes.items():
        run = build(values | {"output_dir": f"{folder}/{name}"}, ranks)
        record: dict[str, Any] = {"refused": 0}
        update = run.engine.update

        def watch_weights(
            rate: float, run: Any = run, update: Any = update, to: Any = record
        ) -> Any:
            before = _whole_weights(run.engine)
            done = update(rate)
            after = _whole_weights(run.engine)
            same = all(_same_bits(before[name], after[name]) for name in before)
            to["refused"] += not done.applied
            to["changed after refusal"] = not done.applied and not same
            to["changed by a step"] = to.get("changed by a step") or (done.applied and not same)
            return done

        run.engine.update = watch_weights  # type: ignore[method-assign]
        try:
            trainer.train(run)
        except trainer.NonFiniteError as error:
            record["error"] = str(error)
        run.monitor.close()
        if ranks.rank == 0:
            Path(folder, f"{name}.json").write_text(json.dumps(record))
    torch.distributed.destroy_process_group()


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(torch.nan_to_num(a, nan=1e30), torch.nan_to_num(b, nan=1e30))


def load_sharded(recipes: dict[str, dict[str, Any]], folder: str) -> None:
    """Loads each recipe's policy and writes NAME-RANK.json: what this rank holds of it."""
    silence_libraries()
    ranks = init_ranks()
    for name, values in recipes.items():
        config = parse_config(values, "test")
        settings = read_deepspeed_settings(config)
        with MemoryWatch() as memory, engine.sharded_loading(settings, ranks):
            policy, _ = load_policy(config, device=ranks.device, gather=engine.gather_parameters)
        named = list(policy.named_parameters())
        base = [parameter for name, parameter in named if "lora_" not in name]
        record = {
            "whole": sum(parameter.ds_numel for parameter in base),
            "here": sum(parameter.ds_tensor.numel() for parameter in base),
            "gathered": sum(parameter.numel() for parameter in base),
            "grown_bytes": memory.peak - memory.start,
        }
        Path(folder, f"{name}-{ranks.rank}.json").write_text(json.dumps(record))
    torch.distributed.destroy_process_group()


def print_fingerprints(recipes: dict[str, dict[str, Any]]) -> None:
    """Prints `fingerprint NAME HEX` of each recipe's policy as it is loaded."""
    silence_libraries()
    ranks = init_ranks()
    for name, values in recipes.items():
        config = parse_config(values, "test")
        with engine.sharded_loading(read_deepspeed_settings(config), ranks):
            policy, _ = load_policy(config, device=ranks.device, gather=engine.gather_parameters)
        print(f"fingerprint {name} {policy.fingerprint}", flush=True)
    torch.distributed.destroy_process_group()


def find_damaged(folder: str, newest: str, report: str) -> None:
    """Damages each file of a checkpoint in each way, looks for one to resume from, sets it right.

    Writes down what was found and said where the run may fall back, where it has to stop, and
    where this checkpoint is named.
    """
    ranks, checkpoints = init_ranks(), Path(folder)
    found: dict[str, list[Any]] = {"damaged": [], "untouched": []}
    for path in sorted((checkpoints / newest).iterdir()):
        content = path.read_bytes()
        found["untouched"].append(_find_each_way(checkpoints, newest, ranks))
        for way, changed in _ways_to_damage(content, bits=(0, 4 * len(content), -1)):
            path.unlink()
            if changed is not None:
                path.write_bytes(changed)
            fall_back, said, stop, named = _find_each_way(checkpoints, newest, ranks)
            case = {"file": path.name, "way": way, "fall_back": fall_back}
            found["damaged"].append(case | {"said": said, "stop": stop, "named": named})
            path.write_bytes(content)
    found["untouched"].append(_find_each_way(checkpoints, newest, ranks))
    Path(report).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def find_with_damaged_latest(folder: str, newest: str, report: str) -> None:
    """The same for every bit of the file `latest`."""
    ranks, checkpoints, cases = init_ranks(), Path(folder), []
    path = checkpoints / "latest"
    content = path.read_bytes()
    for way, changed in _ways_to_damage(content, bits=range(8 * len(content))):
        path.unlink(missing_ok=True)
        if changed is not None:
            path.write_bytes(changed)
        found, said, stop, _ = _find_each_way(checkpoints, newest, ranks)
        stopped = None if stop == found else stop
        cases.append({"way": way, "found": found, "said": said, "stop": stopped})
    Path(report).write_text(json.dumps(cases))
    torch.distributed.destroy_process_group()


def _ways_to_damage(content: bytes, bits: Iterable[int]) -> list[tuple[str, bytes | None]]:
    """What a file may have become; None: it is gone."""
    ways: list[tuple[str, bytes | None]] = [("removed", None), ("emptied", b"")]
    ways += [(f"truncated to {size}", content[:size]) for size in {1, len(content) - 1}]
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit % (8 * len(content)) // 8] ^= 1 << bit % 8
        ways.append((f"bit {bit}", bytes(flipped)))
    return ways


def _find_each_way(folder: Path, newest: str, ranks: Ranks) -> tuple[Any, list[str], Any, Any]:
    """What is found, and said, by default; with on_damage: stop; and where `newest` is named."""

    def find(say: Any, **settings: Any) -> str:
        try:
            found = find_checkpoint(CheckpointConfig(**settings), folder, ranks, say)
        except UserError as error:
            return str(error)
        return found[0].name if found else "none"

    said: list[str] = []
    named = find(lambda text: None, resume=str(folder / newest))
    return find(said.append), said, find(lambda text: None, on_damage="stop"), named


class MemoryWatch:
    """Peak of this process's own memory, files mapped into it aside, in bytes."""

    def __enter__(self) -> MemoryWatch:
        # Freed memory goes back to the system at once: what is there is what is held.
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**18)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**20)
        libc.malloc_trim(0)
        self.start = self.peak = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024


@contextlib.contextmanager
def _no_mistake(values: dict[str, Any]) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _mean_of_means(values: dict[str, Any]) -> Iterator[None]:
    """The mistake of other trainers: each micro-batch's own mean, then the mean of these."""
    batches: list[PackedBatch] = []
    number = values["batch"]["pairs"]
    plan = trainer.plan

    def remember(run: trainer.Run, step: int) -> Any:
        nonlocal number
        found, totals = plan(run, step)
        batches[:] = found
        number = len(found)
        return found, totals

    def share(terms: Any, totals: Any, loss: Any) -> torch.Tensor:
        batch = batches.pop(0)
        own = type(totals)(
            **vars(totals)
            | {"pairs": batch.num_pairs, "chosen_tokens": batch.num_chosen_tokens.sum()}
        )
        return step_share(terms, own, loss) / number

    with mock.patch.multiple(trainer, plan=remember, step_share=share):
        yield


@contextlib.contextmanager
def _count_stand_ins(values: dict[str, Any]) -> Iterator[None]:
    def counted(pairs: Any, micro_batch: Any, stand_in: int) -> PackedBatch:
        return pack(pairs, micro_batch or (stand_in,))

    with mock.patch.object(trainer, "pack_micro_batch", counted):
        yield


MISTAKES = {"none": _no_mistake, "mean of means": _mean_of_means, "stand-ins": _count_stand_ins}


def cpo_ds_command(*arguments: str) -> int:
    """`cpo-ds ...` as one of several ranks."""
    from cpo_ds import cli

    return cli.main(list(arguments))


def split_encoder(folder: str) -> None:
    """Splits an XLM-R encoder over the ranks and compares it with the whole one, seeing memory."""
    from cpo_ds.engine.frozen import shard_frozen

    ranks = init_ranks()
    settings = transformers.XLMRobertaConfig(
        vocab_size=2000, hidden_size=512, intermediate_size=2048, num_hidden_layers=14,
        num_attention_heads=8, max_position_embeddings=66,
    )  # fmt: skip
    with torch.device("meta"):
        layout = transformers.XLMRobertaModel(settings, add_pooling_layer=False).state_dict()

    def weight(name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        return 0.05 * torch.randn(layout[name].shape, generator=generator)

    inputs = {"input_ids": torch.arange(4 + ranks.rank, 34 + ranks.rank).view(2, 15)}
    with torch.no_grad(), MemoryWatch() as memory:
        with no_init_weights():
            model = transformers.XLMRobertaModel(settings, add_pooling_layer=False)

        def fill(name: str, part: torch.nn.Module) -> None:
            for own, parameter in part.named_parameters(recurse=False):
                parameter.data = weight(f"{name}.{own}")

        engine = shard_frozen(model, fill, ranks.world_size)
        found = model(**inputs).last_hidden_state.clone()
    held = sum(parameter.ds_tensor.numel() for parameter in model.parameters())
    whole = transformers.XLMRobertaModel(settings, add_pooling_layer=False).eval()
    whole.load_state_dict({name: weight(name) for name in layout}, strict=False)
    with torch.no_grad():
        expected = whole(**inputs).last_hidden_state
    seen = {
        "equal": torch.equal(found, expected),
        "whole_bytes": 4 * sum(parameter.numel() for parameter in whole.parameters()),
        "held_bytes": 4 * held,
        "grown_bytes": memory.peak - memory.start,
    }
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps(seen))
    del engine
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
