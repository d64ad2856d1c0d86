"""Weights & Biases, MLflow and trackio behind one interface.

Each is imported only if a recipe names it. They take servers, projects and keys from their own
environment variables and log-ins, as in any other program.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cpo_ds.errors import UserError, one_line

_PROJECT = "cpo_ds"  # unless the tracker's own variable names another one
# A name in each library that a folder or file of the same name does not have.
_ENTRIES = {"wandb": "init", "mlflow": "MlflowClient", "trackio": "init"}
_TITLES = {"wandb": "Weights & Biases", "mlflow": "MLflow", "trackio": "trackio"}
_LONGEST_PARAMETER = 500  # characters that every version of MLflow takes
_PARAMETERS_AT_ONCE = 100


@dataclass(frozen=True)
class Start:
    """A start of a run, for its trackers."""

    folder: Path  # the run's, absolute
    settings: dict[str, Any]  # the resolved configuration, nested
    earlier: dict[str, str] | None  # `TrackedRun.identity` of the start that this one goes on from


class TrackedRun(Protocol):
    """A run in a tracker. All methods may raise any error of its library."""

    identity: dict[str, str]  # enough to go on with this run
    address: str  # says in which project it is, and how to look at it

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Adds numbers of a step; a step may come again."""

    def close(self, *, complete: bool) -> None:
        """Ends the run; `complete` says whether all steps are trained."""


def check_trackers(names: Sequence[str]) -> None:
    """Imports the libraries of trackers. Raises `UserError` for one that is not installed."""
    os.environ.setdefault("WANDB_SILENT", "true")  # else it asks for a key if it has none
    for name in (name for name in names if name in _ENTRIES):
        out = f"take {name} out of logging.trackers"
        try:
            library = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise UserError(
                    f"logging.trackers names {name}, which needs {error.name}, and that is not "
                    f"installed: pip install {error.name}, or {out}."
                ) from None
            raise _not_installed(name, out) from None
        except Exception as error:
            raise UserError(
                f"logging.trackers names {name}, which cannot be imported: {one_line(error)}; "
                f"mend its installation, or {out}."
            ) from None
        if not hasattr(library, _ENTRIES[name]):  # a folder of this name
            raise _not_installed(name, out)


def _not_installed(name: str, out: str) -> UserError:
    return UserError(
        f"logging.trackers names {name} ({_TITLES[name]}), which is not installed: pip install "
        f"{name}, or {out}."
    )


class _WandbRun:
    def __init__(self, start: Start) -> None:
        import wandb

        new = {"id": uuid.uuid4().hex[:8], "project": os.environ.get("WANDB_PROJECT", _PROJECT)}
        self.identity = start.earlier or new
        # Older versions do not know all of these.
        wanted = {"console": "off", "silent": True, "init_timeout": 60.0, "finish_timeout": 50.0}
        known = {k: v for k, v in wanted.items() if k in wandb.Settings.model_fields}
        self._run = wandb.init(
            **self.identity,
            name=os.environ.get("WANDB_NAME", start.folder.name),
            dir=str(start.folder / "trackers"),
            resume="allow",
            settings=wandb.Settings(**known),
        )
        self._run.config.update(start.settings, allow_val_change=True)
        # The step is a number like others: W&B drops lines of a step below the last one.
        self._run.define_metric("*", step_metric="step")
        self.address = (
            self._run.url or f"offline; `wandb sync {Path(self._run.dir).parent}` sends it"
        )

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log({"step": step} | numbers)

    def close(self, *, complete: bool) -> None:
        self._run.finish(exit_code=0 if complete else 1)


class _MlflowRun:
    def __init__(self, start: Start) -> None:
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        own = os.environ.get("MLFLOW_TRACKING_URI")
        earlier = start.earlier or {}
        store = own or earlier.get("store") or mlflow.get_tracking_uri()
        self._mlflow = mlflow
        self._client = mlflow.MlflowClient(store)
        self._id = earlier.get("run") or self._new_run(start)
        self.identity = {"run": self._id, "store": store}
        if earlier:
            self._client.update_run(self._id, status="RUNNING")
        self._describe(dict(flat_settings(start.settings)))
        self.address = f"run {self._id} in {store}"

    def _new_run(self, start: Start) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_name = os.environ.get("MLFLOW_RUN_NAME", start.folder.name)
        return self._client.create_run(number, run_name=run_name).info.run_id

    def _describe(self, settings: dict[str, str]) -> None:
        """Logs settings as parameters, which never change: changed ones become tags."""
        logged = self._client.get_run(self._id).data.params
        for name in settings.keys() & logged.keys():
            if settings[name] != logged[name]:
                self._client.set_tag(self._id, name, settings[name])
        new = [self._mlflow.entities.Param(*s) for s in settings.items() if s[0] not in logged]
        for first in range(0, len(new), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self._id, params=new[first : first + _PARAMETERS_AT_ONCE])

    def write(self, step: int, numbers: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        metric = self._mlflow.entities.Metric
        metrics = [metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, complete: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")


class _TrackioRun:
    def __init__(self, start: Start) -> None:
        import trackio

        self._problems: list[str] = []
        self._redirect(trackio)
        project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
        # trackio goes on with a run by its name, so no other run may have it.
        new = {"project": project, "name": f"{start.folder.name}-{uuid.uuid4().hex[:8]}"}
        self.identity = start.earlier or new
        self._run = trackio.init(**self.identity, resume="allow", config=start.settings)
        project = self.identity["project"]
        self.address = f"run {self.identity['name']}; `trackio show --project {project}` shows it"
        self._raise_problem()

    def _redirect(self, trackio: Any) -> None:
        """Keeps trackio from printing, and notes the warnings that it makes of failures."""
        for module in (trackio, trackio.run, trackio.utils):
            module.print = _print_nothing
            if hasattr(module, "_emit_nonfatal_warning"):
                module._emit_nonfatal_warning = lambda text, *_, **__: self._problems.append(text)

    def _raise_problem(self) -> None:
        if self._problems:
            raise RuntimeError(self._problems[0])

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)
        self._raise_problem()

    def close(self, *, complete: bool) -> None:
        self._run.finish()
        self._raise_problem()


def _print_nothing(*_: object, **__: object) -> None: ...


def flat_settings(settings: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Settings by dotted names, such as `loss.beta`, as they are written on the command line."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flat_settings(value, f"{above}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"{above}{key}", "none" if value is None else one_line(text, _LONGEST_PARAMETER)


OPENERS: dict[str, Callable[[Start], TrackedRun]] = {
    "wandb": _WandbRun,
    "mlflow": _MlflowRun,
    "trackio": _TrackioRun,
}
