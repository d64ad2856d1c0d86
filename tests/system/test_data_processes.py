"""Data sets and their order in fresh processes: offline, and with other hash seeds."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from preference_data import run_python


def test_unreachable_dataset_is_named(tmp_path: Path) -> None:
    code = (
        "from cpo_ds.settings.data import DataConfig\nfrom cpo_ds.data.rows import read_rows\n"
        "from cpo_ds.errors import UserError\n"
        "try:\n    read_rows(DataConfig(format='alma-r', path='someone/nothing'), None)\n"
        "except UserError as error:\n    print(error)\n"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    output = run_python(code, offline)
    assert "dataset 'someone/nothing', split 'train', cannot be loaded" in output
    assert "check data.path" in output and "download it" in output
    assert "HF_DATASETS_OFFLINE is set" in output


def test_order_and_split_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "from cpo_ds.settings.data import DataConfig\n"
        "from cpo_ds.data.held_out import split_held_out\n"
        "from cpo_ds.data.rows import read_rows\n"
        "rows, report = read_rows(DataConfig(format='sample'), None)\n"
        "print([r.origin for r in rows], report.lines())\n"
        "print([r.origin for r in split_held_out(rows, 0.1, 7)[1]])\n"
    )
    with ThreadPoolExecutor() as both:
        one, other = both.map(lambda seed: run_python(code, {"PYTHONHASHSEED": seed}), ("1", "2"))
    assert one == other
