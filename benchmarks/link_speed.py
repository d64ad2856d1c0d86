"""Real training over a slow link between two hosts, beside the planner's prediction.

    python benchmarks/link_speed.py              # as root; six minutes
    python benchmarks/link_speed.py --quick      # two configurations, one link

Two simulated hosts with two ranks each are joined by a link of limited speed (hosts/simulated.py).
DeepSpeed's launcher starts this trainer's real loop on them over pdsh, and the link changes from
phase to phase, between steps. Seconds of a step are noisy if four ranks share a few cores. The
bytes that pass the hosts' network adapters are not. Writes a line per configuration and link to
OUT.jsonl, then OUT.md and a chart beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hosts.link_model import CONFIGURATIONS, Link, deepspeed_settings, parse_link, predict
from hosts.simulated import SimulatedHosts, reason_against, simulated_hosts
from jobs.command import at_least_one, run_and_render
from jobs.job import Job
from jobs.processes import judge, module_environment
from models.synthetic import Lengths, rows_of_numbers, save_random_model
from models.workload import write_rows
from pages.results import Results, results_file

from cpo_ds.errors import UserError
from cpo_ds.model.shapes import SHAPES, shape_config

BENCHMARK = "link"
HOSTS = 2
PAIR = Lengths(16, 16, 16, 0)  # short, so that the link matters and not the computation
COUNTED_STEPS = 3  # as in link_worker.py, which is slow to import


@dataclass(frozen=True)
class Case:
    """One run: a configuration, the micro-batches of a rank's step, and links."""

    configuration: str
    micro_batches: int
    links: tuple[Link, ...]


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # links of namespaces carry Gloo's traffic, not NCCL's
    return run_and_render("link_speed", lambda folder: run_all(parse(argv), folder))


def run_all(arguments: argparse.Namespace, folder: Path) -> Results:
    """Runs all cases one after the other, `--repeats` times."""
    if (reason := reason_against()) is not None:
        raise UserError(f"two hosts cannot be simulated here: {reason}.")
    save_random_model(arguments.shape, folder / "model", "float32", arguments.seed)
    shared = {"benchmark": BENCHMARK, "model": arguments.shape, "weights": "random"}
    results = Results(arguments.out, shared)
    with simulated_hosts(folder / "hosts", HOSTS) as hosts:
        for repeat in range(arguments.repeats):
            for case in cases(arguments):
                work = folder / f"{repeat}-{case.configuration}-{case.micro_batches}"
                work.mkdir()
                for line in run_case(arguments, case, hosts, work):
                    print(summary(results.add({"repeat": repeat} | line)), flush=True)
    return results


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Lists the runs: all links for the most micro-batches, no limit (bytes alone) for fewer."""
    links = tuple(arguments.links)
    listed = []
    for micro_batches in arguments.micro_batches:
        timed = micro_batches == max(arguments.micro_batches)
        for name in arguments.configurations:
            listed.append(Case(name, micro_batches, links if timed else (Link(),)))
    return listed


def run_case(
    arguments: argparse.Namespace, case: Case, hosts: SimulatedHosts, work: Path
) -> list[dict[str, Any]]:
    """Launches a case over both hosts; returns a line per link. Raises `UserError`."""
    # Write the settings and the job for all hosts.
    num_weights, ranks = count_weights(arguments.shape), arguments.ranks_per_host
    settings = deepspeed_settings(case.configuration, num_weights, ranks)
    (work / "deepspeed.json").write_text(json.dumps(settings), encoding="utf-8")
    steps_each = 1 + arguments.steps
    job = make_job(arguments, case, work, COUNTED_STEPS + len(case.links) * steps_each)
    task = {"job": asdict(job), "phases": len(case.links), "steps_each": steps_each}
    (work / "task.json").write_text(json.dumps(task), encoding="utf-8")
    # Train, then put measured and predicted values side by side.
    measured = launch(hosts, ranks, work, case.links, arguments.timeout)
    if "error" in measured:
        print(measured.get("output", ""), file=sys.stderr)
        raise UserError(f"{case.configuration}: {measured['error']}.")
    expected = predict(settings, HOSTS, ranks, num_weights, case.micro_batches)
    same = {
        "configuration": case.configuration,
        "micro_batches": case.micro_batches,
        "num_weights": num_weights,
        "hosts": HOSTS,
        "ranks_per_host": ranks,
        "pairs_per_step": job.pairs_per_step,
        "zero_optimization": settings["zero_optimization"],
        "predicted_planner_bytes": expected.planner,
        "predicted_gloo_bytes": expected.gloo,
        "collectives": measured["collectives"],
        "losses": measured["losses"],
    }
    return [
        asdict(link) | same | {f"step_{name}": [step[name] for step in steps] for name in steps[0]}
        for link, steps in zip(case.links, measured["phases"], strict=True)
    ]


def launch(
    hosts: SimulatedHosts,
    ranks_per_host: int,
    work: Path,
    links: tuple[Link, ...],
    timeout: float,
) -> dict[str, Any]:
    """Trains on all hosts and changes the link when rank 0 asks; returns the results."""
    # DeepSpeed's launcher on the first host starts the ranks of all hosts over ssh.
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--launcher", "pdsh"]
    command += ["--hostfile", str(hosts.write_hostfile([ranks_per_host] * HOSTS))]
    command += ["--master_addr", hosts.addresses[0], "--no_local_rank"]
    hosts.limit(None, None)
    command += ["--module", "jobs.link_worker", str(work / "task.json")]
    paths = {"PYTHONPATH": module_environment()["PYTHONPATH"]}  # DeepSpeed's launcher hands it on
    process = hosts.start(0, command, **paths)
    printed: list[str] = []
    reader = threading.Thread(target=lambda: printed.append(process.communicate()[0]))
    reader.start()
    # Rank 0 asks for the link of each phase by a file; another file answers.
    deadline = time.monotonic() + timeout
    phase = 0
    while reader.is_alive() and time.monotonic() < deadline:
        if phase < len(links) and (work / f"wanted-{phase}").exists():
            hosts.limit(links[phase].rate_mbit, links[phase].delay_ms)
            (work / f"set-{phase}").touch()
            phase += 1
        time.sleep(0.02)
    # Read the measurements, or find the reason why there are none.
    code = process.poll()
    if code is None:
        process.kill()
    reader.join()
    result = work / "result.json"
    measured = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    return judge([(code, printed[0], measured)], timeout)


def count_weights(shape: str) -> int:
    """Weights of a model of that shape."""
    import torch
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(shape_config(shape))
    return sum(parameter.numel() for parameter in model.parameters())


def make_job(arguments: argparse.Namespace, case: Case, work: Path, steps: int) -> Job:
    """The trainer's job; all cases train on the same pairs in the same steps."""
    most = max(arguments.micro_batches)
    pairs_per_step = HOSTS * arguments.ranks_per_host * most
    per_batch = -(-most // case.micro_batches)
    vocabulary = SHAPES[arguments.shape]["vocab_size"]
    rows = rows_of_numbers([PAIR] * (steps * pairs_per_step), vocabulary, arguments.seed)
    return Job(
        model=str(work.parent / "model"),
        rows=write_rows(rows, work / "rows.json"),
        dtype="float32",
        threads=1,
        pairs_per_step=pairs_per_step,
        warmup_steps=1,
        timed_steps=steps - 1,
        tokens_per_rank=per_batch * PAIR.unique,
        max_tokens=PAIR.prompt + PAIR.chosen,
        deepspeed=str(work / "deepspeed.json"),
        seed=arguments.seed,
    )


def summary(line: dict[str, Any]) -> str:
    """A line for the terminal."""
    link = Link(line["rate_mbit"], line["delay_ms"]).name
    sent = median(line["step_sent"]) / line["predicted_gloo_bytes"]
    return (
        f"{line['configuration']}, {line['micro_batches']} micro-batch(es), {link}: "
        f"{median(line['step_seconds']):.2f} s a step, {sent:.1%} of the bytes expected"
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Raises `UserError` for values out of range."""
    parser = argparse.ArgumentParser(
        description="Training steps over a slow link between two simulated hosts.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--shape", help=f"random weights of a shape: {', '.join(SHAPES)} (llama-5m)")
    add("--configurations", nargs="+", choices=CONFIGURATIONS, metavar="NAME",
        help=f"which to run: {', '.join(CONFIGURATIONS)} "
        "(all)")  # fmt: skip
    add("--links", nargs="+", metavar="LINK", help="none, RATE in Mbit/s, or RATE/DELAY with a "
        "one-way delay in ms (none 1000 400 200 100 200/2)")  # fmt: skip
    add("--micro-batches", nargs="+", type=int, metavar="N", help="micro-batches of a step on each "
        "rank; all but the most are run without limit, for their bytes (1 2)")  # fmt: skip
    add("--ranks-per-host", type=int, default=2, help="and the group of hierarchical partitioning "
        "(2)")  # fmt: skip
    add("--steps", type=int, default=2, help="steps on the clock for each link (2)")
    add("--repeats", type=int, default=1, help="launches of each configuration (1)")
    add("--seed", type=int, default=42, help="of weights and pairs (42)")
    add(
        "--timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="longest time of a launch (600)",
    )
    add("--quick", action="store_true", help="two configurations, one link, one micro-batch")
    add("--out", type=Path, metavar="FILE.jsonl", help="results; FILE.md and a chart are written "
        "beside it (benchmarks/results/link_SHAPE_DEVICE.jsonl)")  # fmt: skip
    arguments = parser.parse_args(argv)
    # Fill in defaults, which --quick makes small, then check the numbers.
    quick = arguments.quick
    arguments.shape = arguments.shape or "llama-5m"
    arguments.configurations = arguments.configurations or list(CONFIGURATIONS)[: 2 if quick else 4]
    arguments.micro_batches = arguments.micro_batches or ([1] if quick else [1, 2])
    default = ["none", "200"] if quick else ["none", "1000", "400", "200", "100", "200/2"]
    arguments.links = [parse_link(text) for text in arguments.links or default]
    shape_config(arguments.shape)
    at_least_one(steps=arguments.steps, repeats=arguments.repeats,
                 ranks_per_host=arguments.ranks_per_host,
                 micro_batches=min(arguments.micro_batches))  # fmt: skip
    if any(max(arguments.micro_batches) % count for count in arguments.micro_batches):
        raise UserError("--micro-batches: the most must be a multiple of each, of equal pairs.")
    arguments.out = results_file(arguments.out, BENCHMARK, arguments.shape)
    return arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
