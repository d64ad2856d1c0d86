"""The shape of the code: which way imports point, who may know what, how long things may get."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch.nn.attention.varlen as torch_varlen
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cpo_ds"

# A module imports only from modules above it: earlier in its layer, or in an earlier layer.
LAYERS = {
    "base": [
        "schema",
        "files",
        "config",
        "shipped",
        "recipe",
        "devices",
        "places",
        "logs",
        "processes",
        "liveness",
        "metrics",
    ],
    "data": [
        "data.prompts",
        "data.sources",
        "data.candidates",
        "data.formats",
        "data.rows",
        "data.tokenize",
        "data.plan",
        "data.pack",
    ],
    "model": [
        "model.attention",
        "model.attention_choice",
        "model.logprobs",
        "model.hub",
        "model.file_checks",
        "model.fingerprint",
        "model.policy",
        "model.adapter",
        "model.load",
        "model.shapes",
        "model.offline",
    ],
    "loss": ["losses"],
    "engine": [
        "partitioning",
        "deepspeed_config",
        "ranks",
        "watch",
        "sharding",
        "engine",
        "manifest",
        "writer",
        "checkpoint",
        "saver",
        "universal",
        "events",
        "monitor",
        "model_card",
        "pretrained",
    ],
    "run": ["run_folder", "stopping", "schedule", "trainer", "precompute", "build", "train"],
    "use": [
        "inventory",
        "export",
        "parts",
        "progress",
        "translate",
        "scoring",
        "evaluate",
        "prepare",
        "hosts",
        "planner",
        "report",
        "cli",
    ],
}
ORDER = [name for layer in LAYERS.values() for name in layer]

KNOW_DEEPSPEED = [*LAYERS["engine"], "export"]

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
LONG_FILES: dict[str, int] = {}  # "path" -> lines
LONG_FUNCTIONS: dict[str, int] = {}  # "path:function" -> lines


def module_name(path: Path) -> str:
    """`cpo_ds/data/rows.py` -> `data.rows`, `cpo_ds/data/__init__.py` -> `data`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
SCRIPTS = [path for folder in ("benchmarks", "scripts") for path in (ROOT / folder).glob("*.py")]
SOURCES = sorted([*MODULES.values(), *SCRIPTS])


def place_of(module: str, order: list[str]) -> int | None:
    """Index of a module in `order`, or of the folder it is listed by; None if it is not listed."""
    while module:
        if module in order:
            return order.index(module)
        module = module.rpartition(".")[0]
    return None


def imported_names(source: str, module: str = "") -> set[str]:
    """Full names of everything that `source` imports, wherever in it; relative ones resolved."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = f"cpo_ds.{module}".split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def wrong_imports(module: str, source: str, modules: set[str], order: list[str]) -> list[str]:
    """Modules of the package that `module` imports although they do not come before it."""
    here = place_of(module, order)
    assert here is not None, f"{module} is in no layer: add it to LAYERS, where it belongs"
    wrong = []
    for name in imported_names(source, module):
        if not name.startswith("cpo_ds."):
            continue
        target = name.removeprefix("cpo_ds.")
        while target not in modules and "." in target:  # a function or class of that module
            target = target.rpartition(".")[0]
        there = place_of(target, order)
        same_folder = there == here and target != module and order[here] != module
        if target in modules and (there is None or (there >= here and not same_folder)):
            wrong.append(target)
    return sorted(wrong)


def packages_of(source: str) -> set[str]:
    """Top-level packages that `source` imports."""
    return {name.partition(".")[0] for name in imported_names(source)}


def too_long(path: str, source: str) -> dict[str, int]:
    """Files and functions over the caps, each with its lines."""
    found = {}
    if (lines := len(source.splitlines())) > MAX_FILE_LINES:
        found[path] = lines
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found[f"{path}:{node.name}"] = length
    return found


def real_modules() -> dict[str, Path]:
    """Modules with code to place: a package's empty `__init__.py` has none."""
    listed_folders = {name for name in MODULES if name in ORDER}
    return {
        name: path
        for name, path in MODULES.items()
        if name and (path.name != "__init__.py" or name in listed_folders)
    }


@pytest.mark.parametrize("module", sorted(real_modules()))
def test_imports_point_one_way(module):
    source = real_modules()[module].read_text(encoding="utf-8")
    assert wrong_imports(module, source, set(MODULES), ORDER) == []


def test_package_files_import_nothing_of_the_package():
    for name, path in MODULES.items():
        if path.name == "__init__.py" and name not in ORDER:
            source = path.read_text(encoding="utf-8")
            assert not any(n.startswith("cpo_ds") for n in imported_names(source, name)), path


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_listed_modules_exist():
    required = [n for layer, names in LAYERS.items() if layer != "use" for n in names]
    assert [name for name in required if name not in MODULES] == []


def test_wrong_imports_are_found():
    modules = {"a", "b", "folder", "folder.x", "folder.y"}
    order = ["a", "b", "folder"]
    assert wrong_imports("b", "from cpo_ds.a import f", modules, order) == []
    assert wrong_imports("a", "def f():\n    from cpo_ds.b import g", modules, order) == ["b"]
    assert wrong_imports("a", "from cpo_ds import b", modules, order) == ["b"]
    assert wrong_imports("a", "import cpo_ds.folder.x", modules, order) == ["folder.x"]
    assert wrong_imports("folder.x", "from .y import g", modules, order) == []
    assert wrong_imports("folder.x", "from ..b import g", modules, order) == []
    with pytest.raises(AssertionError, match="no layer"):
        wrong_imports("new", "", modules, order)


def test_deepspeed_is_known_to_the_engine_and_comet_to_scoring():
    for name, path in MODULES.items():
        packages = packages_of(path.read_text(encoding="utf-8"))
        if "deepspeed" in packages:
            assert name in KNOW_DEEPSPEED, f"{name} imports deepspeed"
        if "comet" in packages:
            assert name.split(".")[0] == "scoring", f"{name} imports comet"


def test_packages_are_found_in_every_form():
    source = "import deepspeed.comm as d\ndef f():\n    from comet.models import x"
    assert packages_of(source) == {"deepspeed", "comet"}


def test_files_and_functions_are_short():
    found: dict[str, int] = {}
    for path in SOURCES:
        found |= too_long(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    allowed = LONG_FILES | LONG_FUNCTIONS
    assert {k: n for k, n in found.items() if n > allowed.get(k, 0)} == {}
    assert sorted(set(allowed) - set(found)) == [], "no longer long: remove from the exceptions"


def test_long_files_and_functions_are_found():
    long_function = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert too_long("m.py", long_function) == {"m.py:f": MAX_FUNCTION_LINES + 1}
    assert too_long("m.py", "x = 1\n" * (MAX_FILE_LINES + 1)) == {"m.py": MAX_FILE_LINES + 1}
    assert too_long("m.py", "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)) == {}


def test_every_module_imports_without_optional_packages():
    """In a fresh interpreter; a module that starts CUDA or needs CUDA or MPI would show."""
    modules = [f"cpo_ds.{name}" for name in real_modules()]
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized(), 'CUDA was started by an import'\n"
        "found = {'flash_attn', 'mpi4py', 'comet'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_oldest_torch_allowed_is_one_that_works():
    """Before 2.12 `varlen_attn` has no `enable_gqa`."""
    (torch,) = re.findall(r'"(torch[<>=!~][^"]*)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    allowed = Requirement(torch).specifier
    assert "2.11.0" not in allowed and "2.12.0" in allowed
    varlen_attn = inspect.signature(torch_varlen.varlen_attn)
    assert "enable_gqa" in varlen_attn.parameters


def test_no_text_names_a_folder_of_one_machine():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in names.split("\0") if name and not name.endswith(".jsonl")]
    pattern = re.compile(r"(?<![\w./])/(work|opt|root)/", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files
        if path.is_file() and (match := pattern.search(path.read_text("utf-8", errors="ignore")))
    ]
    assert found == []
