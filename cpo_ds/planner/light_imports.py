"""Stand-ins for libraries that torch and transformers import and that no plan uses.

A third of the time of `cpo-ds plan` went into them: torch's compiler, its distributed tensors,
scipy, and what serves many requests at once. They are for a process that does nothing but plan.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

# Optional for the libraries that import them, which do without.
_MISSING = ("bitsandbytes", "scipy")
# Imported whether they are used or not, with the modules inside them.
_UNUSED = (
    "torch._dynamo",
    "torch.distributed.tensor",
    "transformers.generation.continuous_batching",
)
_WITH_ALL = "CPO_DS_PLAN_IMPORTS_ALL"  # in the environment: no stand-ins
# Once one of these is there, it has references to what would be replaced.
_IMPORTERS = ("torch", "transformers", "peft", "deepspeed")


def import_lightly() -> bool:
    """Puts the stand-ins in place; returns whether it did.

    It does not if a library that would import the originals is there, nor in a process that
    `start_again_with_all` started.
    """
    if _WITH_ALL in os.environ or any(name in sys.modules for name in _IMPORTERS):
        return False
    for name in _MISSING:
        sys.modules[name] = None  # type: ignore[assignment]
    sys.meta_path.insert(0, _Finder())
    return True


def start_again_with_all() -> NoReturn:
    """Replaces this process by the same command without stand-ins, as if it had just begun."""
    os.environ[_WITH_ALL] = "1"
    os.execv(sys.executable, [sys.executable, "-m", "cpo_ds.cli", *sys.argv[1:]])


class _Finder(MetaPathFinder, Loader):
    """Gives stand-ins for the unused modules."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if not any(f"{fullname}.".startswith(f"{name}.") for name in _UNUSED):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _StandIn(ModuleType):
    """A module whose names are classes without anything in them, and decorators without effect."""

    __all__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _undecorated if name.islower() else type(name, (_Empty,), {})
        setattr(self, name, made)
        return made


class _Empty:
    """A class that nothing is an instance of; what it would do is missing, which is an error."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass


def _undecorated(function: Any = None, *given: Any, **named: Any) -> Any:
    """A decorator such as `torch._dynamo.disable`, of what is never compiled."""
    return function if callable(function) else _undecorated
