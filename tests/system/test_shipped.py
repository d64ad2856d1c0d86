"""Recipes and DeepSpeed files of the package are found by their names from any folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from repository import ROOT

from cpo_ds.errors import UserError
from cpo_ds.recipe import load_config, parse_config, read_deepspeed_file
from cpo_ds.shipped import find_hostfile, set_up

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
DEEPSPEED = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
MINIMAL = {"model": {"name_or_path": "m"}, "data": {"format": "sample"}}
HOSTFILES = sorted(path.name for path in (ROOT / "hostfiles").iterdir())
SOURCES = (
    "cpo_ds",
    "ds_configs",
    "hostfiles",
    "recipes",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)

# With the package of an unpacked wheel: every recipe and DeepSpeed file by its bare name and by
# its path in a checkout, the planner's spelling.
LOOK_UP = """
import json, sys
import cpo_ds
from cpo_ds.recipe import load_config, parse_config, read_deepspeed_file
from cpo_ds.shipped import find_hostfile, set_up
recipes, deepspeed, hostfiles = json.loads(sys.argv[1])
values = {"model": {"name_or_path": "m"}, "data": {"format": "sample"}}
for name in recipes:
    config, _ = load_config(["--config", name])
    assert load_config(["--config", f"recipes/{name}.yaml"])[0] == config
    if config.deepspeed != "auto":  # the files that it may take are looked up below
        read_deepspeed_file(config)
for name in deepspeed:
    bare = read_deepspeed_file(parse_config(values | {"deepspeed": name}, "test"))
    old = values | {"deepspeed": f"ds_configs/{name}.json"}
    assert read_deepspeed_file(parse_config(old, "test")) == bare
for name in hostfiles:
    assert find_hostfile(name).read_text() == find_hostfile(f"hostfiles/{name}").read_text()
assert set_up() == f"pip install cpo-ds=={cpo_ds.__version__}"  # its folder has no scripts
print(cpo_ds.__file__, read_deepspeed_file(parse_config(values, "test"))[0])
"""


def deepspeed_file(name: str) -> Path:
    return read_deepspeed_file(parse_config(MINIMAL | {"deepspeed": name}, "test"))[0]


@pytest.mark.parametrize("name", DEEPSPEED)
def test_a_bare_name_is_a_shipped_deepspeed_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("a file of the same name is not meant")
    assert deepspeed_file(name) == ROOT / "ds_configs" / f"{name}.json"
    assert deepspeed_file(f"ds_configs/{name}.json") == ROOT / "ds_configs" / f"{name}.json"


@pytest.mark.parametrize("name", RECIPES)
def test_a_bare_name_is_a_shipped_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_path, _ = load_config(["--config", str(ROOT / "recipes" / f"{name}.yaml")])
    monkeypatch.chdir(tmp_path)
    config, arguments = load_config(["--config", name])
    assert config == by_path
    assert arguments.config == str(ROOT / "recipes" / f"{name}.yaml")  # `doctor` looks at the file


def test_a_file_of_one_s_own_comes_before_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("ds_configs/zero3.json", "zero3.json", "zero3"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("{}")
    for named in ("ds_configs/zero3.json", "zero3.json", "./zero3", str(tmp_path / "zero3")):
        assert deepspeed_file(named).resolve() == (tmp_path / named).resolve()
    (tmp_path / "recipes").mkdir()
    for path in ("recipes/demo.yaml", "demo.yaml", "demo"):
        (tmp_path / path).write_text(json.dumps(MINIMAL | {"output_dir": f"of {path}"}))
    for named in ("recipes/demo.yaml", "demo.yaml", "./demo"):
        config, _ = load_config(["--config", named])
        assert config.output_dir == f"of {named.removeprefix('./')}"


def test_an_unknown_name_lists_those_that_are_shipped() -> None:
    with pytest.raises(UserError) as caught:
        deepspeed_file("zero4")
    said = str(caught.value)
    assert said.startswith("deepspeed: ") and "zero4 (did you mean zero3?)" in said
    assert ", ".join(DEEPSPEED) in said
    with pytest.raises(UserError) as caught:
        load_config(["--config", "alma-7b-lora"])
    said = str(caught.value)
    assert "alma-7b-lora (did you mean alma-7b-r-lora?)" in said and ", ".join(RECIPES) in said
    assert "mine.yaml" in said and "\n" not in said  # how a file of one's own is named


def test_a_host_file_of_one_s_own_comes_before_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_hostfile("a100") == ROOT / "hostfiles" / "a100"
    assert find_hostfile("mine") == Path("mine")  # doctor says that it cannot be read
    (tmp_path / "a100").write_text("localhost slots=1")
    assert find_hostfile("a100") == Path("a100")
    assert set_up() == "bash scripts/setup.sh"


def build(kind: str, sources: Path, output: Path) -> Path:
    """Builds a wheel or sdist without a network, by the hooks that pip calls."""
    output.mkdir(exist_ok=True)
    code = f"import sys; from setuptools import build_meta as b; b.build_{kind}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(output)],
        cwd=sources, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that a build needs, since a build leaves files beside them."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", sources, tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_holds_the_package_and_what_it_ships(wheel: Path) -> None:
    names = contents(wheel)
    package = {name for name in names if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "py.typed", "sample/*.jsonl", "*.jinja", "evaluate/*.json")
        for path in (ROOT / "cpo_ds").rglob(pattern)
    }
    expected |= {f"cpo_ds/ds_configs/{name}.json" for name in DEEPSPEED}
    expected |= {f"cpo_ds/recipes/{name}.yaml" for name in RECIPES}
    expected |= {f"cpo_ds/hostfiles/{name}" for name in HOSTFILES}
    assert package == expected
    for name in package:
        source = ROOT / name
        if name.split("/")[1] in ("ds_configs", "hostfiles", "recipes"):
            source = ROOT / name.removeprefix("cpo_ds/")
        assert names[name] == source.read_bytes(), name


def test_a_wheel_finds_what_it_ships_anywhere(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LOOK_UP, json.dumps([RECIPES, DEEPSPEED, HOSTFILES])],
        cwd=tmp_path / "elsewhere", env={"PYTHONPATH": str(tmp_path / "unpacked")},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    package = tmp_path / "unpacked" / "cpo_ds"
    assert done.stdout.split() == [
        str(package / "__init__.py"), str(package / "ds_configs" / "zero3.json"),
    ]  # fmt: skip


def test_a_wheel_built_from_an_sdist_is_the_same(
    sources: Path, wheel: Path, tmp_path: Path
) -> None:
    shutil.unpack_archive(build("sdist", sources, tmp_path / "sdist"), tmp_path)
    (unpacked,) = (path for path in tmp_path.iterdir() if path.name.startswith("cpo_ds-"))
    again = contents(build("wheel", unpacked, tmp_path / "again"))
    assert again == contents(wheel)
