"""A translation memory to a domain adapter, as docs/domain.md leads: drafts, pairs, a run."""

from __future__ import annotations

from pathlib import Path

from helpers import save_tiny_model
from launch import main_on_ranks, on_ranks
from memories import from_tm, many, put, rows_of, texts, tmx
from runs import lines
from translation_runs import GREEDY, run_on_rank

from cpo_ds.recipe import load_config


def test_the_recipe_differs_from_the_one_for_own_pairs_in_paths_alone() -> None:
    domain, own = (load_config(["--config", name])[0] for name in ("domain-adapter", "own-pairs"))
    ours, theirs = domain.model_dump(), own.model_dump()
    for section, names in {
        "data": ("path", "eval_path", "eval_fraction"),
        "train": ("eval_every_steps",),
        "model": (),
    }.items():
        for name in names:
            ours[section].pop(name), theirs[section].pop(name)
    ours.pop("output_dir"), theirs.pop("output_dir")
    assert ours == theirs
    assert domain.data.eval_path and domain.train.eval_every_steps


def test_from_a_memory_to_an_adapter_with_general_text_beside(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")

    # The memory, and general text, with drafts by the model.
    memory = put(tmp_path / "m.tmx", tmx(*many(40)))
    news = put(
        tmp_path / "news.tmx",
        tmx(*[texts(f"It rains in town {n}.", f"Es regnet in Stadt {n}.") for n in range(5)]),
    )
    for path, name, options in (
        (memory, "pairs", ("--held-out", 0.2)),
        (news, "general", ("--label", "general")),
    ):
        assert from_tm(path, tmp_path / f"{name}.tm", *options) == 0
        rows, drafts = tmp_path / f"{name}.tm" / "rows.jsonl", tmp_path / f"{name}.jsonl"
        command = ["--input", rows, "--output", drafts, "--model", model, *GREEDY]
        (translated,) = on_ranks(run_on_rank, [0, *map(str, command)])
        assert translated.code == 0, translated.output
        assert from_tm(drafts, tmp_path / name, *options, pair=None) == 0
    files = [tmp_path / "pairs" / "held_out_pairs.jsonl", tmp_path / "general" / "pairs.jsonl"]
    held_out = put(tmp_path / "held_out.jsonl", b"".join(file.read_bytes() for file in files))

    # The run watches both.
    (done,) = main_on_ranks(
        "--config", "domain-adapter", "--model.name_or_path", model,
        "--data.path", tmp_path / "pairs" / "pairs.jsonl", "--data.eval_path", held_out,
        "--train.max_steps", 2, "--train.epochs", 4, "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.output
    evaluated = [line for line in lines(tmp_path / "run") if "eval_loss" in line]
    assert [line["step"] for line in evaluated] == [0, 2]
    for line in evaluated:
        pairs = {name: of_set["pairs"] for name, of_set in line["eval_directions"].items()}
        assert pairs == {"en-de": len(rows_of(files[0])), "en-de_general": len(rows_of(files[1]))}
    assert (tmp_path / "run" / "export" / "adapter_model.safetensors").is_file()
