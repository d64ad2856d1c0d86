"""A real Slurm over simulated hosts: munged, slurmctld on the first host, slurmd on each."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hosts.simulated import Finished, SimulatedHosts, simulated_hosts
from hosts.simulated import reason_against as reason_against_hosts
from launch import ENVIRONMENT

_CONFIGURATION = """
ClusterName=simulated
SlurmctldHost={names[0]}({addresses[0]})
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1
"""


def reason_against() -> str | None:
    """The reason why Slurm cannot run on this machine, or None if it can."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    programs = ("munged", "slurmctld", "slurmd", "srun")
    missing = [name for name in programs if shutil.which(name, path=path) is None]
    if missing:
        return f"Slurm needs {', '.join(missing)} (Debian: slurmctld, slurmd, slurm-client, munge)"
    return reason_against_hosts()


@contextlib.contextmanager
def slurm_cluster(folder: Path, cpus: int = 2) -> Iterator[SlurmCluster]:
    """Runs Slurm on two hosts; everything ends with the block."""
    with simulated_hosts(folder) as hosts:
        cluster = SlurmCluster(hosts, cpus)
        cluster.boot()
        yield cluster


class SlurmCluster:
    """A running cluster; its commands run on the first host."""

    def __init__(self, hosts: SimulatedHosts, cpus: int) -> None:
        self.hosts = hosts
        self._cpus = cpus
        self._configuration = hosts.folder / "slurm.conf"

    def boot(self) -> None:
        """Starts the daemons and waits until all hosts are ready for jobs."""
        folder, hosts = self.hosts.folder, self.hosts
        text = _CONFIGURATION.format(folder=folder, names=hosts.names, addresses=hosts.addresses)
        for name, address in zip(hosts.names, hosts.addresses, strict=True):
            (folder / name).mkdir()
            text += f"NodeName={name} NodeAddr={address} CPUs={self._cpus} State=UNKNOWN\n"
        text += f"PartitionName=all Nodes={','.join(hosts.names)} Default=YES\n"
        self._configuration.write_text(text)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
        munge |= {"seed-file": "seed"}
        options = [f"--{name}={folder}/munge.{end}" for name, end in munge.items()]
        self._start(0, "munged", "--foreground", "--force", *options)
        self.wait(lambda: (folder / "munge.socket").exists())
        self._start(0, "slurmctld", "-D")
        for index, name in enumerate(hosts.names):
            self._start(index, "slurmd", "-D", "-N", name)
        self.wait(lambda: self.run("sinfo", "-hNo", "%t").output.split() == ["idle"] * 2)

    def run(self, *command: object, **environment: str) -> Finished:
        """Runs a command on the first host, which has Slurm's own commands."""
        environment |= {"SLURM_CONF": str(self._configuration)}
        return self.hosts.run(0, command, **ENVIRONMENT, **environment)

    def submit(self, *arguments: object, **environment: str) -> str:
        """Submits a job by `sbatch` and returns its number."""
        done = self.run("sbatch", "--parsable", *arguments, **environment)
        assert done.code == 0, done.output
        return done.output.strip()

    def job(self, number: str) -> dict[str, str]:
        """Fields of `scontrol show job`: JobState, Restarts, ExitCode, ..."""
        done = self.run("scontrol", "show", "--oneliner", "job", number)
        assert done.code == 0, done.output
        return dict(re.findall(r"(\S+?)=(\S*)", done.output))

    def wait_for_requeue(self, number: str, output: Path) -> None:
        """Waits until a job is requeued, and shortens the two minutes before it starts again.

        A moment remains: slurmd refuses a job in the second in which the job ended.
        """
        self.wait(lambda: self.job(number)["Reason"] == "BeginTime", output)
        done = self.run("scontrol", "update", f"JobId={number}", "StartTime=now+3")
        assert done.code == 0, done.output

    def wait_for_end(self, number: str, output: Path) -> dict[str, str]:
        """Waits for the end of a job and returns its fields; a requeued job has not ended."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        self.wait(lambda: self.job(number)["JobState"] in over, output)
        return self.job(number)

    def wait(self, happened: Callable[[], bool], log: Path | None = None) -> None:
        """Waits for a condition; if it is never met, the error shows the log of job or daemons."""
        deadline = time.monotonic() + 200
        while not happened():
            if time.monotonic() > deadline:
                logs = [log] if log else sorted(self.hosts.folder.glob("*.log"))
                raise AssertionError("\n".join(f.read_text(errors="replace") for f in logs))
            time.sleep(0.05)

    def _start(self, index: int, *command: object) -> None:
        quiet = ["bash", "-c", 'exec "$@" >/dev/null 2>&1', "bash"]  # they have their log files
        self.hosts.start(index, [*quiet, *command], SLURM_CONF=str(self._configuration))
