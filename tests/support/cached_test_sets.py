"""Test sets in the places where sacrebleu and datasets keep what they downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter
from datasets.naming import camelcase_to_snakecase
from sacrebleu.utils import DATASETS


def cache_dataset(cache: Path, name: str, config: str, split: str, rows: list[Any]) -> None:
    """Puts a dataset of the hub into a folder like that of HF_DATASETS_CACHE."""
    owner, _, own_name = name.partition("/")
    short = camelcase_to_snakecase(own_name)
    folder = cache / f"{owner}___{short}" / config / "0.0.0" / "stand-in"
    folder.mkdir(parents=True)
    features = datasets.Dataset.from_list(rows).features
    writer = ArrowWriter(path=str(folder / f"{short}-{split}.arrow"), features=features)
    for row in rows:
        writer.write(row)
    writer.finalize()
    splits = datasets.SplitDict(dataset_name=short)
    splits.add(datasets.SplitInfo(split, num_examples=len(rows)))
    datasets.DatasetInfo(
        features=features,
        dataset_name=short,
        config_name=config,
        builder_name="parquet",
        version="0.0.0",
        splits=splits,
    ).write_to_directory(str(folder))


def cache_wmt(folder: Path, name: str, direction: str, pairs: list[tuple[str, str]]) -> None:
    """Puts a direction of a WMT test set into sacrebleu's folder, as XML of WMT."""
    test_set = DATASETS[name]
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for url in test_set.data:
        (raw / test_set._get_tarball_filename(url)).write_text("an archive")
    file = test_set.langpairs[direction]
    file = raw / (file[0] if isinstance(file, list) else file["path"])
    file.parent.mkdir(parents=True)
    source, target = direction.split("-")
    texts = [
        "".join(f'<seg id="{n}">{pair[side]}</seg>' for n, pair in enumerate(pairs, start=1))
        for side in (0, 1)
    ]
    file.write_text(
        f'<dataset id="x"><doc id="d" origlang="{source}"><src lang="{source}"><p>{texts[0]}</p>'
        f'</src><ref lang="{target}" translator="A"><p>{texts[1]}</p></ref></doc></dataset>',
        encoding="utf-8",
    )
