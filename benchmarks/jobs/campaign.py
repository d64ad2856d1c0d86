"""All runs of one call of `memory_vs_dpo.py`: planned, run in turns, one line of results each."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from measures.environment import describe_environment
from models.workload import (
    Workload,
    is_synthetic,
    make_workload,
    matrix_weights,
    prepare_model,
    write_rows,
)
from pages.results import read_lines
from pages.text import Line

from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.errors import UserError
from cpo_ds.model.flops import MatrixWeights, step_flops
from cpo_ds.model.load import load_model_config
from cpo_ds.model.offline import outline
from jobs.job import (
    BENCHMARK,
    OURS,
    WITH_REFERENCE_PASS,
    Job,
    combinations,
    why_not,
)
from jobs.processes import OUT_OF_MEMORY, Processes, largest_that_fits
from jobs.team import Team
from jobs.train_ours import config_of

MOST_PAIRS = 4096  # the search for the largest micro-batch ends here
_LIMIT_STEPS = (1, 1)  # the second has optimizer states from its beginning
_NO_TIME = "not run: --minutes are over"
_NOT_MEASURED = dict.fromkeys(("pairs_per_second", "tokens_per_second", "peak_memory_gib"))
_SAME = ("dtype", "threads", "learning_rate", "lora_rank", "lora_targets", "deepspeed", "seed",
         "gradient_checkpointing")  # fmt: skip


class Campaign:
    """Runs everything that the command line asks for; all ranks take part, rank 0 writes."""

    def __init__(self, arguments: argparse.Namespace, team: Team, folder: Path) -> None:
        self._arguments, self._team, self._folder = arguments, team, folder
        self._pairs, left_out = combinations(arguments.methods, arguments.training)
        self._processes = Processes(team, folder, arguments.threads, arguments.timeout)
        self._say(*left_out)
        self._model = team.prepare(self._prepare_model)
        self._body, self._head, self._shapes = matrix_weights(load_model_config(self._model))
        self._ceiling: float | None = None
        self._lines: list[Line] = []
        self._environment = describe_environment()
        self._ends = time.monotonic() + 60 * (arguments.minutes or float("inf"))

    def run(self) -> list[Line]:
        """Returns the lines that it wrote to `--out`."""
        arguments = self._arguments
        # Pairs of each length; settings that a run would refuse are refused now.
        lengths: list[int | None] = list(arguments.sequence_lengths or [None])
        workloads = {length: self._workload(length) for length in lengths}
        self._check_recipes(workloads[lengths[0]])
        if self._team.rank == 0:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            if not arguments.append:
                arguments.out.write_text("", encoding="utf-8")
        # The order of runs: methods take turns, so that a slow spell hits all of them.
        first = self._next_repeat() if arguments.append else 0
        self._ceiling = self._measure_ceiling(workloads[lengths[0]])
        planned = [
            (length, training, method, repeat)
            for repeat in range(first, first + arguments.repeats)
            for length in lengths
            for training, method in self._pairs
            if repeat == first or why_not(method, self._team.world_size) is None
        ]
        # Run them, a line of results each.
        for number, (length, training, method, repeat) in enumerate(planned, start=1):
            if not self._time_is_left():
                self._say(f"{len(planned) - number + 1} runs are left out: {_NO_TIME}")
                break
            workload = workloads[length]
            job = self._job(workload, arguments.pairs_per_step, length, training, method, repeat)
            line = self._run(job, workload)
            self._say(f"[{number}/{len(planned)}] {_summary(line)}")
        if arguments.find_limit:
            for training, method in self._pairs:
                for length in lengths:
                    self._say(f"[limit] {_summary(self._find_limit(training, method, length))}")
        return self._lines

    def _next_repeat(self) -> int:
        """The number of the next repeat in a file that is added to, the same on all ranks."""
        out, next_repeat = self._arguments.out, 0
        if self._team.rank == 0 and out.exists():
            next_repeat = max((line["repeat"] + 1 for line in read_lines(out)), default=0)
        return self._team.share(next_repeat)[0]

    def _check_recipes(self, workload: Workload) -> None:
        """Raises `UserError` at the start for values that a run would refuse hours later."""
        for training, method in self._pairs:
            if method in OURS:
                job = self._job(workload, 1, None, training, method, 0)
                config = config_of(job, str(self._folder))
                read_deepspeed_settings(config)
                outline(config)

    def _time_is_left(self) -> bool:
        return bool(self._team.share(time.monotonic() < self._ends)[0])

    def _prepare_model(self) -> str:
        if not torch.cuda.is_available():
            return prepare_model(self._arguments, self._folder)
        # Another process makes the model: this one must take no GPU memory from those measured.
        names = ("model", "shape", "dtype", "seed", "wmt", "data_format")
        wanted = {name: getattr(self._arguments, name) for name in names}
        made = self._processes.run_single({"model": wanted, "folder": str(self._folder)})
        if "error" in made:
            raise UserError(f"the model could not be made: {made['error']}.")
        return str(made["folder"])

    def _workload(self, sequence_length: int | None) -> Workload:
        steps = (self._arguments.warmup_steps, self._arguments.steps)
        pairs = self._arguments.pairs_per_step
        return make_workload(self._arguments, self._model, pairs, steps, sequence_length)

    def _job(
        self,
        workload: Workload,
        pairs_per_step: int,
        sequence_length: int | None,
        training: str,
        method: str,
        repeat: int,
        steps: tuple[int, int] | None = None,
    ) -> Job:
        arguments = self._arguments
        rows = self._folder / f"rows-{self._team.rank}.json"
        warmup, timed = steps or (arguments.warmup_steps, arguments.steps)
        # A micro-batch holds a whole step, or this rank's share of it.
        budget = workload.most_tokens
        if self._team.world_size > 1:  # pairs do not split evenly
            budget = -(-budget // self._team.world_size) + workload.longest_pair
        return Job(
            method=method,
            training=training,
            repeat=repeat,
            sequence_length=sequence_length,
            model=self._model,
            rows=write_rows(workload.rows, rows),
            pairs_per_step=pairs_per_step,
            warmup_steps=warmup,
            timed_steps=timed,
            tokens_per_rank=arguments.tokens_per_rank or budget,
            max_tokens=workload.max_tokens,
            memory_limit_gib=arguments.memory_limit,
            **{name: getattr(arguments, name) for name in _SAME},
        )

    def _run(self, job: Job, workload: Workload) -> Line:
        problem = why_not(job.method, self._team.world_size)
        measured: Line = {"error": problem} if problem else self._processes.run(vars(job))
        if "error" in measured:
            self._say(measured.pop("output", ""))
            return self._write(job, _NOT_MEASURED | measured)
        return self._write(job, measured | self._rates(job, workload, measured["seconds"]))

    def _rates(self, job: Job, workload: Workload, seconds: float) -> Line:
        totals = workload.totals
        flops = step_flops(
            MatrixWeights(self._body, self._head),
            totals.unique_tokens,
            totals.scored_tokens,
            trains_adapter=job.training == "lora",
            runs_reference=job.method in WITH_REFERENCE_PASS,
        )
        tflops = flops / seconds / self._team.world_size / 1e12
        utilization = tflops / self._ceiling if self._ceiling else None
        return {
            "pairs_per_second": round(totals.pairs / seconds, 4),
            "tokens_per_second": round(totals.unique_tokens / seconds, 2),
            "padded_tokens_per_second": round(totals.padded_tokens / seconds, 2),
            "scored_tokens_per_second": round(totals.scored_tokens / seconds, 2),
            "unique_tokens_per_pair": round(totals.unique_tokens / totals.pairs, 2),
            "padded_tokens_per_pair": round(totals.padded_tokens / totals.pairs, 2),
            "model_tflops": float(f"{tflops:.4g}"),
            "ceiling_tflops": self._ceiling and float(f"{self._ceiling:.4g}"),
            "utilization": utilization and round(utilization, 4),
        }

    def _measure_ceiling(self, workload: Workload) -> float | None:
        """Measures the matrix-product ceiling in a process of its own; prints why if that fails."""
        steps = self._arguments.steps * self._team.world_size
        tokens = max(1, workload.totals.unique_tokens // steps)
        scored = max(1, workload.totals.scored_tokens // steps)
        budget = self._arguments.tokens_per_rank or tokens
        task = {
            "shapes": self._shapes,
            "rows": min(tokens, budget),
            "head_rows": min(scored, budget),
            "dtype": self._arguments.dtype,
            "threads": self._arguments.threads,
        }
        result = self._processes.run_single({"ceiling": task}) if self._team.rank == 0 else {}
        ceiling, error = self._team.share([result.get("ceiling_tflops"), result.get("error")])[0]
        if error:
            self._say(f"the matrix-product ceiling was not measured: {error}")
        return ceiling

    def _find_limit(self, training: str, method: str, sequence_length: int | None) -> Line:
        """A line with the largest micro-batch, in pairs of each rank, that trains."""
        best: Line = {}
        problems: list[str] = []

        def fits(pairs: int) -> bool:
            if not self._time_is_left():
                problems.append(_NO_TIME)
                return False
            in_all = pairs * self._team.world_size
            try:
                workload = make_workload(
                    self._arguments, self._model, in_all, _LIMIT_STEPS, sequence_length
                )
            except UserError as error:  # the data has no more pairs
                problems.append(str(error))
                return False
            job = self._job(
                workload, in_all, sequence_length, training, method, 0, steps=_LIMIT_STEPS
            )
            result = self._processes.run(vars(job))
            if "error" in result and result["error"] != OUT_OF_MEMORY:
                problems.append(result["error"])
            outcome = result.get("error", "trains")
            self._say(f"[limit] {training}, {method}: {pairs} pair(s) a rank: {outcome}")
            if "error" not in result:
                best.update(job=job, tokens=job.tokens_per_rank, peak=result["peak_memory_gib"])
            return "error" not in result

        # Search, unless the method cannot run at all; then write the line.
        problem = why_not(method, self._team.world_size)
        search = {"first": self._arguments.limit_from, "within": self._arguments.limit_within}
        largest = 0 if problem else largest_that_fits(fits, MOST_PAIRS, **search)
        line = {
            "largest_micro_batch_pairs": None if problem else largest,
            "largest_micro_batch_tokens": best.get("tokens"),
            "search_ended_early": largest == MOST_PAIRS or bool(problems),
        }
        if problem or problems:
            line["error"] = problem or problems[0]
        workload = self._workload(sequence_length)
        job = best.get("job") or self._job(workload, 1, sequence_length, training, method, 0)
        return self._write(job, _NOT_MEASURED | {"peak_memory_gib": best.get("peak")} | line)

    def _write(self, job: Job, measured: Line) -> Line:
        arguments = self._arguments
        shared = {
            "model": arguments.model_name,
            "weights": "given" if arguments.model else "random",
            "data": self._data_name(job.sequence_length),
            "ranks": self._team.world_size,
        }
        line = {"benchmark": BENCHMARK} | shared | job.settings() | measured | self._environment
        self._lines.append(line)
        if self._team.rank == 0:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return line

    def _data_name(self, sequence_length: int | None) -> str:
        arguments = self._arguments
        if sequence_length:
            return f"synthetic, sequences of {sequence_length} tokens"
        if is_synthetic(arguments):
            return "synthetic, lengths drawn from WMT22's"
        given = arguments.wmt or arguments.data_path or "the built-in sample"
        return Path(given).name

    def _say(self, *texts: str) -> None:
        for text in texts:
            if text and self._team.rank == 0:
                print(text, flush=True)


def _summary(line: Line) -> str:
    run = f"{line['method']}, {line['training']}"
    if line["sequence_length"]:
        run += f", {line['sequence_length']} tokens"
    if line.get("largest_micro_batch_pairs") is not None:
        return f"{run}: at most {line['largest_micro_batch_pairs']} pairs"
    if "error" in line:
        return f"{run}: {line['error']}"
    return f"{run}: {line['pairs_per_second']:.2f} pairs/s, {line['peak_memory_gib']:.2f} GiB"
