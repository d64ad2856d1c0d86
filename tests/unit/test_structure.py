"""The shape of the code: the direction of imports, libraries behind walls, lengths of files."""

import ast
import inspect
import re
import shutil
import subprocess

import architecture
import pytest
import torch.nn.attention.varlen as torch_varlen
from packaging.requirements import Requirement
from repository import ROOT

# Folders and modules that may import these libraries; everything else goes through them.
ALLOWED = {
    "deepspeed": {
        "engine", "ranks.ranks", "checkpoint.writer", "checkpoint.reshard",
        "export.from_checkpoint",
    },
    "comet": {"scoring"},
}  # fmt: skip

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
# Modules and fixtures that start ranks, hosts or COMET, which the unit tier must not need.
MODULES_BEYOND_UNIT = {"launch", "workers", "hosts", "slurm_cluster", "small_disk", "export_runs"}
FIXTURES_BEYOND_UNIT = {"two_hosts", "disk", "export_runs"}

IMPORTS = architecture.package_imports()
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("cpo_ds", "benchmarks", "scripts", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def misplaced_imports(rooms: dict[str, set[str]], order: list[str]) -> list[tuple[str, str]]:
    """Imports between rooms that point to a later room."""
    return [
        (room, target)
        for room, targets in rooms.items()
        for target in targets
        if order.index(target) > order.index(room)
    ]


def forbidden_imports(module: str, source: str) -> set[str]:
    """Libraries that `module` imports although neither it nor its folder is allowed to."""
    libraries = {name.partition(".")[0] for name in architecture.imported_names(source, module)}
    return {
        library
        for library, modules in ALLOWED.items()
        if library in libraries and not {module, module.partition(".")[0]} & modules
    }


def beyond_unit(source: str) -> set[str]:
    """Modules and fixtures of a test file that start ranks, hosts or COMET."""
    tree = ast.parse(source)
    modules = {name.partition(".")[0] for name in architecture.imported_names(source)}
    fixtures = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    marks = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    comet = {"venv-comet"} if ".venv-comet" in source else set()
    needed = modules & MODULES_BEYOND_UNIT | fixtures & FIXTURES_BEYOND_UNIT
    return needed | marks & {"multinode"} | comet


def too_long(source: str) -> list[str]:
    """The file if it is over the cap, and the functions that are."""
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    long = [name for name, length in lengths.items() if length > MAX_FUNCTION_LINES]
    return long + ["the file"] * (len(source.splitlines()) > MAX_FILE_LINES)


def test_imports_point_one_way_and_in_no_circle():
    rooms = architecture.room_imports(IMPORTS)
    assert sorted(rooms) == sorted(architecture.ROOMS) and len(rooms) <= 27
    assert misplaced_imports(rooms, architecture.ROOMS) == []
    assert architecture.find_circle(IMPORTS) == []


def test_every_folder_with_code_is_a_package_that_imports_nothing():
    folders = {path.parent for path in architecture.PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
    packages = [name for name in IMPORTS if name and architecture.path_of(name).stem == "__init__"]
    assert {name: IMPORTS[name] for name in packages if IMPORTS[name]} == {}


def test_deepspeed_and_comet_are_imported_where_they_belong():
    for path, source in SOURCES.items():
        if path.startswith("cpo_ds/"):
            assert not forbidden_imports(architecture.module_name(ROOT / path), source), path


def test_the_engine_keeps_deepspeed_to_itself():
    reached = re.compile(r"\._deepspeed\b|\bengine\.deepspeed\b")
    outside = [p for p in SOURCES if not p.startswith(("cpo_ds/engine/", "tests/"))]
    assert [path for path in outside if reached.search(SOURCES[path])] == []


def test_files_and_functions_are_short():
    assert {path: long for path, source in SOURCES.items() if (long := too_long(source))} == {}


def test_the_unit_tier_needs_no_ranks_hosts_or_comet():
    """So nothing in it is skipped on a machine without them."""
    for path, source in SOURCES.items():
        if path.startswith("tests/unit/") and path != "tests/unit/test_structure.py":
            assert not beyond_unit(source), path


def test_no_module_on_pytests_path_hides_another():
    folders = [ROOT / name for name in ("tests/support", "scripts", "benchmarks")]
    names = [
        path.stem
        for folder in folders
        for path in folder.iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    ]
    assert len(names) > 50 and sorted(names) == sorted(set(names))


def test_the_picture_is_current():
    drawn = architecture.draw(architecture.room_imports(IMPORTS))
    assert architecture.PICTURE.read_text(encoding="utf-8") == drawn, "scripts/architecture.py"


def test_the_page_names_every_module_on_its_floor():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_.]+)`", text))
    modules = {
        name for name in IMPORTS if name and architecture.path_of(name).name != "__init__.py"
    }
    assert sorted(modules - named) == []
    rows = re.findall(r"^\| \d+ \| (.+?) \|", text, re.MULTILINE)
    floors = [re.findall(r"`(\w+)`", row) for row in rows]
    assert floors == [list(floor) for floor in reversed(architecture.FLOORS)]


def test_wrong_imports_are_found():
    assert misplaced_imports({"a": {"b"}, "b": {"a"}}, ["a", "b"]) == [("a", "b")]
    assert architecture.find_circle({"a": {"b"}, "b": {"a"}}) and not architecture.find_circle(
        {"a": {"b"}, "b": set()}
    )
    assert forbidden_imports("run.main", "def f():\n    import deepspeed.comm as d") == {
        "deepspeed"
    }
    assert forbidden_imports("scoring.run", "from comet.models import x") == set()
    assert architecture.imported_names("from ..b import g", "folder.x") == {"cpo_ds.b.g"}
    assert beyond_unit("from launch import on_ranks\ndef test(two_hosts): ...") == {
        "launch", "two_hosts"
    }  # fmt: skip
    assert beyond_unit("@pytest.mark.multinode\ndef test(x=ROOT / '.venv-comet'): ...") == {
        "multinode", "venv-comet"
    }  # fmt: skip
    assert too_long("def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES) == ["f"]
    assert too_long("x = 1\n" * (MAX_FILE_LINES + 1)) == ["the file"]


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
    named = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files
        if path.is_file() and (match := pattern.search(path.read_text("utf-8", errors="ignore")))
    ]
    assert named == []
