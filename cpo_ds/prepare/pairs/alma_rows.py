"""Writes pairs in the schema of ALMA-R-Preference, so that ALMA's own loader picks the same texts.

ALMA's rule (`get_chosen_reject` in its utils.py) chooses among three slots, `ref`, `gpt4` and
`alma`. If Delta is above 0 it prefers `gpt4`, if below 0 `alma`. If Delta is 0, it chooses the
highest score and rejects the lowest. Of equal scores the first slot in this order counts.

So each pair gets a row of its own, for one direction, with three of the source's translations in
the slots. The systems' real names stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import yaml

from cpo_ds.data.candidates import REFERENCE, row_line
from cpo_ds.data.json_text import UNPAIRED
from cpo_ds.data.prompts import parse_direction
from cpo_ds.data.sameness import best_and_worst
from cpo_ds.prepare.pairs.choose import Pair, scorer_name
from cpo_ds.scoring.metrics import short_name
from cpo_ds.storage.files import replacing, sync

SLOTS = ("ref", "gpt4", "alma")
_MOST_HELD = 2**20  # characters


def config_name(direction: str) -> str:
    """The configuration of both directions, like `de-en`: English last, else alphabetically."""
    first, second = sorted(parse_direction(direction), key=lambda code: (code == "en", code))
    return f"{first}-{second}"


def picks(names: Sequence[str], means: Mapping[str, float], pair: tuple[str, str]) -> bool:
    """Whether ALMA's rule chooses and rejects `pair` if `names` stand in its three slots.

    cpo_ds, which takes means for equal if they differ by rounding, must pick the same.
    """
    exactly = max(names, key=means.__getitem__), min(names, key=means.__getitem__)
    return exactly == pair == best_and_worst({name: means[name] for name in names})


def slot_names(pair: Pair) -> tuple[str, str, str]:
    """The translations of the row, by name, that stand in the slots ref, gpt4 and alma.

    The reference takes its own slot and a third translation the slot that is left, if ALMA's rule
    then still picks the pair. Otherwise the chosen or the rejected text stands in two slots.
    """
    chosen, rejected, means = pair.chosen_system, pair.rejected_system, pair.rated.means
    # A person's choice is between gpt4 and alma, by Delta.
    if pair.is_human:
        reference = REFERENCE if pair.rated.row.reference else chosen
        first, second = sorted((chosen, rejected), key=_by_slot)
        return reference, first, second
    # Else try the allocations in the order of preference, until ALMA's rule picks the pair.
    systems = sorted((name for name in means if name != REFERENCE), key=_by_slot)
    couples = [*permutations(systems, 2), *((name, name) for name in systems)]
    both = {chosen, rejected} - {REFERENCE}
    return next(
        (reference, first, second)
        for reference in ([REFERENCE] if REFERENCE in means else []) + [chosen]
        for first, second in couples
        if both <= {first, second} and picks((reference, first, second), means, (chosen, rejected))
    )


def _by_slot(name: str) -> int:
    """A sort key: names with GPT in them come first, with ALMA last."""
    return ("alma" in name.lower()) - ("gpt" in name.lower())


def alma_row(pair: Pair) -> dict[str, Any]:
    """The row of a pair. It has the columns of both directions; the other direction's are null."""
    rated = pair.rated
    source, target = parse_direction(pair.direction)
    codes = parse_direction(config_name(pair.direction))
    names = dict(zip(SLOTS, slot_names(pair), strict=True))
    text = {slot: rated.row.translations[name] for slot, name in names.items()}

    # What the row is: languages, direction and texts.
    prefers_gpt4 = names["gpt4"] == pair.chosen_system
    values: dict[str, Any] = {
        "language_pair": config_name(pair.direction),
        "required_directions": pair.direction,
        "Delta": (1.0 if prefers_gpt4 else -1.0) if pair.is_human else 0.0,
        **{code: pair.source if code == source else text["ref"] for code in codes},
    }

    # The translations and their scores, for both languages.
    for code in codes:
        for slot in SLOTS[1:]:
            values[f"{slot}_{code}"] = text[slot] if code == target else None
        for scorer, scores in _scores(pair).items():
            for slot, name in names.items():
                values[f"{slot}_{code}_{scorer}"] = scores.get(name) if code == target else None
    values |= {f"{slot}_system": name for slot, name in names.items()}
    return {"translation": values}


def _scores(pair: Pair) -> dict[str, Mapping[str, float]]:
    """`{name in data.scorer: {translation: score}}`, for each metric and for the mean of all."""
    scores = {short_name(metric): values for metric, values in pair.rated.scores.items()}
    return {**scores, scorer_name(tuple(scores)): pair.rated.means} if scores else {}


class AlmaFolder:
    """Writes `xx-en.jsonl` for each language pair, and a dataset card that names the files.

    Lines are held and written a MiB at a time, since all files together may be more than a
    process can have open. The folder must be a new one. Methods raise `OSError`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._columns: dict[str, list[str]] = {}  # by configuration
        self._lines: dict[str, list[str]] = {}
        self._held = 0  # characters
        folder.mkdir(parents=True)

    def add(self, pair: Pair) -> None:
        """Writes the row of a pair."""
        row, name = alma_row(pair), config_name(pair.direction)
        line = row_line(row)
        self._columns.setdefault(name, list(row["translation"]))
        self._lines.setdefault(name, []).append(line)
        self._held += len(line)
        if self._held > _MOST_HELD:
            self._write()

    def finish(self) -> None:
        """Writes the rest and the card."""
        self._write()
        for name in self._columns:
            sync(self._folder / _file_name(name))
        columns = {name: self._columns[name] for name in sorted(self._columns)}
        with replacing(self._folder / "README.md") as unfinished:
            unfinished.write_text(_card(columns), encoding="utf-8")

    def _write(self) -> None:
        for name, lines in self._lines.items():
            with (self._folder / _file_name(name)).open(
                "a", encoding="utf-8", errors=UNPAIRED
            ) as file:
                file.writelines(lines)
        self._lines, self._held = {}, 0


def _file_name(name: str) -> str:
    """The file of a configuration."""
    return f"{name}.jsonl"


def _card(columns: Mapping[str, Iterable[str]]) -> str:
    """The dataset card. `columns` are those of each configuration.

    The card fixes their types, since `datasets` cannot infer the type of a column of nulls.
    """
    head = {
        "dataset_info": [
            {
                "config_name": name,
                "features": [
                    {
                        "name": "translation",
                        "struct": [{"name": c, "dtype": _dtype(c, name)} for c in names],
                    }
                ],
            }
            for name, names in columns.items()
        ],
        "configs": [
            {"config_name": name, "data_files": [{"split": "train", "path": _file_name(name)}]}
            for name in columns
        ],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{_CARD}"


def _dtype(column: str, name: str) -> str:
    """The type of a column in the configuration `name`.

    Scores are named by slot, language and metric; a language's code may hold underscores itself.
    """
    codes = parse_direction(name)
    starts = tuple(f"{slot}_{code}" for slot in SLOTS for code in codes)
    is_score = column.startswith(tuple(f"{start}_" for start in starts)) and column not in starts
    return "float64" if is_score or column == "Delta" else "string"


_CARD = """
Preference pairs in the schema of ALMA-R-Preference, written by `cpo-ds prepare select`.

Each row is one pair, for the direction in `required_directions`. `ref_system`, `gpt4_system` and
`alma_system` say whose translations stand in the slots: `ref` (under the language's own key),
`gpt4` and `alma`. `Delta` is 0 if scores decided, above 0 if a person preferred `gpt4`, below 0 if
a person preferred `alma`. Columns of the other direction are null.
"""
