"""`cpo-ds prepare candidates`: files of systems, models of transformers, prompts, cleaning.

Servers are tested in test_prepare_server.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import launch
import pytest
import torch
import transformers
from helpers import save_tiny_adapter, save_tiny_model, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds import cli
from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.prompts import alma_prompt, few_shot_prompt, gpt4_messages
from cpo_ds.errors import UserError
from cpo_ds.prepare.translation.cleaning import FIRST_LINE, LABEL, PROMPT, REASONING, SPACES, clean
from cpo_ds.prepare.translation.generate import Generation, Item, plan_batches, tokenize_prompts
from cpo_ds.prepare.translation.job import Kept, Translation
from cpo_ds.prepare.translation.local_model import LocalModel, folder_fingerprint, padding_id
from cpo_ds.prepare.translation.prompting import prompt_maker
from cpo_ds.ranks.progress import Progress, duration
from cpo_ds.ranks.quiet import silence_after_import

GREEDY = ["--dtype", "float32", "--beams", "1", "--max-new-tokens", "12"]
SENTENCES = [
    "the old house",
    "by the sea",
    "English to Czech",
    "a",
    "old old old house",
    "by the sea",
]
SENTENCES += [f"the house {number} by the sea" for number in range(6)]


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def candidates(*arguments: object) -> int:
    return cli.main(["prepare", "candidates", *map(str, arguments)])


def row(source: str, language_pair: str = "en-de") -> CandidateRow:
    return CandidateRow(language_pair, source, None, {}, {}, "x.jsonl, line 1")


# Prompts.


def test_few_shot_and_gpt4_prompts_are_those_of_the_papers() -> None:
    assert few_shot_prompt("Hi.", "en", "de", [("One.", "Eins."), ("Two.", "Zwei.")]) == (
        "Translate this from English to German:\nEnglish: One.\nGerman: Eins.\n"
        "English: Two.\nGerman: Zwei.\nEnglish: Hi.\nGerman:"
    )
    assert few_shot_prompt("Hi.", "en", "zh", []) == alma_prompt("Hi.", "en", "zh")
    assert gpt4_messages("Hallo.", "de", "en") == [
        {"role": "system", "content": "You are a helpful translator and only output the result."},
        {
            "role": "user",
            "content": "### Translate this from German to English, German: Hallo. ### English:",
        },
    ]


def test_chat_prompt_goes_through_the_models_template_and_alma_begins_with_its_first_token() -> (
    None
):
    tokenizer = tiny_tokenizer()
    alma = "Translate this from English to German:\nEnglish: Hi.\nGerman:"
    chat = prompt_maker("chat", None, None)(row("Hi."))
    assert chat == [{"role": "user", "content": alma}]
    assert prompt_maker("alma", None, None)(row("Hi.")) == alma
    (ids,) = tokenize_prompts([chat], tokenizer)
    assert tokenizer.decode(ids) == f"<s>[user]{alma}[assistant]"


def test_prompts_lose_an_end_that_the_tokenizer_adds() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(tiny_tokenizer().backend_tokenizer).from_str(
            tiny_tokenizer().backend_tokenizer.to_str()
        ),
        eos_token="</s>",
        bos_token="<s>",
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    (ids,) = tokenize_prompts(["the old house"], tokenizer)
    assert ids[0] == 1 and ids[-1] != 2
    with pytest.raises(UserError, match="no chat template"):
        tokenize_prompts([gpt4_messages("Hi.", "en", "de")], tokenizer)


def test_examples_are_the_first_of_the_direction_and_never_the_sentence_itself(
    tmp_path: Path,
) -> None:
    pairs = [("en-de", "A", "a"), ("de-en", "x", "X"), ("en-de", "B", "b"), ("en-de", "C", "c")]
    keys = ("language_pair", "source", "reference")
    lines = [json.dumps(dict(zip(keys, pair, strict=True))) for pair in pairs]
    file = write(tmp_path / "shots.jsonl", *lines)
    prompt = prompt_maker("few-shot", file, 2)
    assert prompt(row("A")) == few_shot_prompt("A", "en", "de", [("B", "b"), ("C", "c")])
    assert prompt(row("Q")) == few_shot_prompt("Q", "en", "de", [("A", "a"), ("B", "b")])
    with pytest.raises(UserError, match="has 1 examples with a reference of de-en"):
        prompt(row("q", "de-en"))


# Cleaning.


@pytest.mark.parametrize(
    "raw, text, done",
    [
        ("Hallo.", "Hallo.", ()),
        (" Hallo.", "Hallo.", (SPACES,)),
        ("Hallo.\nEnglish: Next\nGerman: Weiter", "Hallo.", (FIRST_LINE,)),
        ("\n\n Hallo. \r\nmore", "Hallo.", (FIRST_LINE, SPACES)),
        ("Hallo.\n\n", "Hallo.", (SPACES,)),
        ("German: Hallo.", "Hallo.", (LABEL, SPACES)),
        ("\n\n### German:\nHallo.", "Hallo.", (LABEL, SPACES)),
        ("Germany: Hallo.", "Germany: Hallo.", ()),
        ("In German: Hallo.", "In German: Hallo.", ()),
        ("English: Hi.\nGerman: Hallo.\nEnglish:", "Hallo.", (PROMPT, FIRST_LINE, SPACES)),
        ("<think>\nEasy.\n</think>\n\nHallo.", "Hallo.", (REASONING, SPACES)),
        ("Easy.</think>Hallo.", "Hallo.", (REASONING,)),
        ("<think>So, first", "", (REASONING,)),
        ("", "", ()),
        (" \n ", "", ()),
        ("German:", "", (LABEL,)),
        ("你好。\n再见。", "你好。", (FIRST_LINE,)),
    ],
)
def test_cleaning_by_hand(raw: str, text: str, done: tuple[str, ...]) -> None:
    assert clean(raw, "German", "English: Hi.\nGerman:") == (text, done)


@given(st.text(alphabet="ab: \n\r\t#<>/thinkGerman\u2028", max_size=40))
def test_cleaning_gives_one_line_and_says_if_anything_was_done(raw: str) -> None:
    text, done = clean(raw, "German")
    assert "\n" not in text and text == text.strip()
    assert text in raw
    assert (text == raw) == (not done) or not text.strip()


@given(st.text(alphabet="abc ", min_size=1), st.lists(st.text(alphabet="xyz \n"), max_size=3))
def test_a_first_line_survives_whatever_follows(line: str, more: list[str]) -> None:
    if line.strip():
        assert clean("\n".join([line, *more]), "German")[0] == line.strip()


# Translations from files.


def test_systems_are_added_to_plain_text_and_chained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "s.txt", "One.", "", "Three.", "Four.")
    reference = write(tmp_path / "r.txt", "Eins.", "x", "", "Vier.")
    first = write(tmp_path / "a.txt", " Ein.", "ignored", "Drei.", "")
    second = write(tmp_path / "b.txt", "Uno.", "ignored", "Tre.", "Quattro.\u2028!")
    plain = ["--input", source, "--language-pair", "en-de", "--references", reference]
    one = tmp_path / "one.jsonl"
    assert candidates(*plain, "--output", one, "--system", f"a={first}") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"read 3 rows of {source}",
        "  left out, empty source: 1",
        "  left out, empty reference: 1",
        f"{one}: 3 rows, 2 with a translation by a",
        "  cleaned, spaces around it removed: 1",
        "  no translation, empty line: 1",
    ]
    pair = {"language_pair": "en-de"}
    assert rows_of(one)[:2] == [
        pair | {"source": "One.", "reference": "Eins.", "candidates": {"a": "Ein."}},
        pair | {"source": "Three.", "candidates": {"a": "Drei."}},
    ]
    three = write(tmp_path / "c.txt", "Uno.", "Tre.", "Quattro.\u2028!")
    two = tmp_path / "two.jsonl"
    assert candidates("--input", one, "--output", two, "--system", f"b=x={three}") == 2
    assert candidates("--input", one, "--output", two, "--system", f"b={three}") == 0
    both = tmp_path / "both.jsonl"
    systems = ["--system", f"a={first}", "--system", f"b={second}"]
    assert candidates(*plain, "--output", both, *systems) == 0
    assert both.read_bytes() == two.read_bytes()
    last = json.loads(both.read_text(encoding="utf-8").split("\n")[2])
    assert last["candidates"] == {"b": "Quattro.\u2028!"}


def test_fields_and_candidates_of_rows_are_kept(tmp_path: Path) -> None:
    values = {"id": 7, "language_pair": "en-de", "source": "One.", "candidates": {"b": "Eins."}}
    source = write(tmp_path / "rows.jsonl", json.dumps(values), "")
    same = write(tmp_path / "b.txt", "Eins.")
    output = tmp_path / "new" / "out.jsonl"
    arguments = ["--input", source, "--output", output, "--system"]
    assert candidates(*arguments, f"a={write(tmp_path / 'a.txt', 'Ein.')}") == 0
    assert rows_of(output) == [values | {"candidates": {"b": "Eins.", "a": "Ein."}}]
    assert candidates(*arguments, f"b={same}") == 0
    assert rows_of(output) == [values]


@pytest.mark.parametrize(
    "lines, said",
    [
        ([b"Eins.\n"], "a.txt has 1 lines, but {s} has 2"),
        ([b"Eins.\n", b"\n", b"Zwei\n"], "a.txt has 3 lines, but {s} has 2"),
        ([b"Eins.\n", b"Zw\xe4i\n"], "a.txt, line 2: not valid UTF-8 at byte 3"),
        (None, "a.txt cannot be read (No such file or directory)"),
    ],
)
def test_files_that_do_not_fit_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[bytes] | None, said: str
) -> None:
    source = write(tmp_path / "s.txt", "One.", "Two.")
    file = tmp_path / "a.txt"
    if lines is not None:
        file.write_bytes(b"".join(lines))
    output = tmp_path / "out.jsonl"
    arguments = ["--input", source, "--language-pair", "en-de", "--output", output]
    assert candidates(*arguments, "--system", f"a={file}") == 2
    assert said.format(s=source) in capsys.readouterr().err
    assert not output.exists()


ROW = json.dumps({"language_pair": "en-de", "source": "One.", "candidates": {"b": "Eins."}})
NO_SOURCE = json.dumps({"language_pair": "en-de", "source": " "})


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("--input {rows} --output {out}", "say where translations come from"),
        ("--input {rows} --output {out} --system b={lines}", "another candidate of b already"),
        ("--input {rows} --output {out} --system {lines}", "write NAME=FILE"),
        ("--input {rows} --output {out} --system reference={lines}", "row's own reference"),
        ("--input {rows} --output {out} --system a={lines} --system a={lines}", "a system a alre"),
        ("--input {gap} --output {out} --system a={lines}", "not clear which line of"),
        ("--input {lines} --output {out} --system a={lines}", "give its --language-pair"),
        ("--input {lines} --language-pair en-x --output {out} --system a={lines}", "language 'x'"),
        ("--input {rows} --language-pair en-de --output {out} --system a={lines}", "each row of"),
        ("--input {rows} --references {lines} --output {out} --system a={lines}", "plain text"),
        ("--input {rows} --output {rows} --system a={lines}", "is the input"),
        ("--input {rows} --output out.txt --system a={lines}", "must end in .jsonl"),
        ("--input {rows} --output {out} --system a={lines} --model m", "not both"),
        ("--input {rows} --output {out} --system a={lines} --beams 2", "--beams has no effect"),
        ("--input {rows} --output {out} --system a={lines} --ranks 2", "--ranks has no effect"),
        ("--input {rows} --output {out} --model m --retries 2", "--retries has no effect without"),
        ("--input {rows} --output {out} --server --model m --beams 2", "no effect with --server"),
        ("--input {rows} --output {out} --server", "--server needs --model"),
        ("--input {rows} --output {out} --model m --seed 2", "--seed has no effect without"),
        ("--input {rows} --output {out} --model m --temperature 0", "is no sampling"),
        ("--input {rows} --output {out} --model m --beams 0", "of at least 1"),
        ("--input {rows} --output {out} --model m --top-p 0", "above 0"),
        ("--input {rows} --output {out} --model m --top-p 1.5", "up to 1"),
        ("--input {rows} --output {out} --model m --prompt few-shot", "needs --examples"),
        ("--input {rows} --output {out} --model m --shots 2", "belong to --prompt few-shot"),
        ("--input {rows} --output {out} --model m --name reference", "row's own reference"),
        ("--input {rows} --output {out} --model m --ranks 2 --hostfile h", "not both"),
        ("--input {rows} --output {out} --model m --hostfile no", "--hostfile no is not there"),
    ],
)  # fmt: skip
def test_commands_that_make_no_sense_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    places = {
        "rows": write(tmp_path / "rows.jsonl", ROW),
        "gap": write(tmp_path / "gap.jsonl", ROW, NO_SOURCE),
        "lines": write(tmp_path / "lines.txt", "Ein."),
        "out": tmp_path / "out.jsonl",
    }
    assert candidates(*arguments.format(**places).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("cpo_ds: error: ") and said in error and error.count("\n") == 1
    assert not places["out"].exists() and places["rows"].read_text() == f"{ROW}\n"


# What is kept, and in which batches.


def test_kept_translations_survive_any_text(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "out.jsonl")
    texts = ["a\u2028b\x85c\x0bd", "", '"\\', "你"]
    whole = {str(i): Translation(text, True, 1, 2) for i, text in enumerate(texts)}
    kept.add(whole)
    Kept(tmp_path / "out.jsonl", rank=1).add({"x": Translation("y", False, 0, 0)})
    assert kept.read() == whole | {"x": Translation("y", False, 0, 0)}


ITEMS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), max_size=12)


@given(ITEMS, st.integers(1, 3), st.integers(1, 120), st.randoms())
def test_batches_hold_every_prompt_once_whatever_the_order(
    prompts: list[list[int]], beams: int, budget: int, random: Any
) -> None:
    items = [Item(str(tokens), tuple(tokens)) for tokens in prompts]
    generation = Generation("float32", beams, 5, None, None, 0)
    batches = plan_batches(items, generation, budget)
    assert sorted(i.key for b in batches for i in b) == sorted({item.key for item in items})
    for batch in batches:
        longest = max(len(item.tokens) for item in batch)
        assert len(batch) == 1 or len(batch) * beams * (longest + 5) <= budget
    lengths = [len(item.tokens) for batch in batches for item in batch]
    assert lengths == sorted(lengths, reverse=True)
    random.shuffle(items)
    assert plan_batches(items, generation, budget) == batches


def test_progress_foretells_the_time_by_the_work_that_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    clock = iter([0.0, 4.0, 10.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = Progress("  {done} of {total} sentences", 20, 10, 100, said.append)  # of two ranks
    progress.advance(2, 40)
    progress.advance(1, 10)
    assert said == ["  6 of 20 sentences, 10 s left"]
    assert [duration(s) for s in (59.6, 75, 3700)] == ["1 min 0 s", "1 min 15 s", "1 h 1 min"]


# Models of transformers.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source") / "s.txt", *SENTENCES, "", "the old " * 300)


def run_on_rank(die_after: int, *arguments: str) -> int:
    """`cpo-ds prepare candidates`; with `die_after` above 0 kill -9 once it has kept so many."""
    add, added = Kept.add, 0

    def add_and_die(self: Kept, translations: dict[str, Translation]) -> None:
        nonlocal added
        add(self, translations)
        added += 1
        if added == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    Kept.add = add_and_die  # type: ignore[method-assign,assignment]
    silence_after_import()  # this process has imported all before the program can silence it
    return candidates(*arguments)


def translate(
    source: Path, model: Path, output: Path, *options: str, ranks: int = 1, die_after: int = 0
) -> list[launch.Finished]:
    plain = ["--input", str(source), "--language-pair", "en-de", "--output", str(output)]
    arguments = [die_after, *plain, "--model", str(model), *options]
    return launch.on_ranks(run_on_rank, arguments, ranks=ranks)


def plain_generate(model: Path, text: str, beams: int) -> str:
    """transformers by itself, one sentence at a time."""
    tokenizer = tiny_tokenizer()
    causal_lm = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    ids = torch.tensor([tokenizer(alma_prompt(text, "en", "de"))["input_ids"]])
    made = causal_lm.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        num_beams=beams,
        do_sample=False,
        max_new_tokens=12,
    )
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("beams", [1, 3])
def test_translations_are_those_of_plain_generate(
    tmp_path: Path, model: Path, source: Path, beams: int
) -> None:
    output = tmp_path / "out.jsonl"
    options = ["--dtype", "float32", "--max-new-tokens", "12", "--batch-tokens", "200"]
    (run,) = translate(source, model, output, *options, "--beams", str(beams))
    assert run.code == 0, run.output
    assert "11 different sentences\n" in run.output and "Loading" not in run.output
    assert "no translation, prompt longer than the model's context: 1\n" in run.output
    rows = rows_of(output)
    assert [row["source"] for row in rows] == [*SENTENCES, "the old " * 300]
    assert rows[-1]["candidates"] == {}
    for values in rows[:-1]:
        expected = clean(plain_generate(model, values["source"], beams), "German")[0]
        assert values["candidates"] == ({"tiny": expected} if expected else {})


def test_the_launcher_gives_the_same_on_two_ranks(
    tmp_path: Path, model: Path, source: Path
) -> None:
    adapter = save_tiny_adapter(model, tmp_path / "lora")
    options = [*GREEDY, "--batch-tokens", "150", "--prompt", "chat", "--adapter", str(adapter)]
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    (run,) = translate(source, model, one, *options)
    assert run.code == 0, run.output
    command = [sys.executable, "-m", "cpo_ds.cli", "prepare", "candidates"]
    command += ["--input", str(source), "--language-pair", "en-de", "--output", str(two)]
    done = launch.finish(launch.start([*command, "--model", str(model), *options, "--ranks", "2"]))
    assert done.code == 0, done.output
    assert two.read_bytes() == one.read_bytes()
    assert done.output.replace("two.jsonl", "one.jsonl") == run.output
    shares = [
        sum(len(json.loads(line)) for line in path.read_text().split("\n") if line)
        for path in sorted(Path(f"{two}.cache").glob("translations.*"))
    ]
    assert sum(shares) == 11 and min(shares) > 0 and len(shares) == 2
    assert "tiny+lora" in rows_of(one)[0]["candidates"]
    plain = tmp_path / "plain.jsonl"
    translate(source, model, plain, *GREEDY, "--prompt", "chat", "--name", "tiny+lora")
    assert plain.read_bytes() != one.read_bytes()  # the adapter counts


def kept_keys(output: Path) -> list[str]:
    files = sorted(Path(f"{output}.cache").glob("translations.*"))
    lines = [line for file in files for line in file.read_text().split("\n") if line]
    return [key for line in lines for key in json.loads(line)]


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, model: Path, source: Path) -> None:
    """Samples, so that seeds count: of each batch, whatever was translated before it."""
    options = [*GREEDY, "--temperature", "1.5", "--batch-tokens", "150", "--seed", "3"]
    whole, killed = tmp_path / "a" / "out.jsonl", tmp_path / "b" / "out.jsonl"
    (run,) = translate(source, model, whole, *options)
    assert run.code == 0, run.output
    first, _ = translate(source, model, killed, *options, ranks=2, die_after=1)
    assert first.code == -signal.SIGKILL and not killed.exists()
    before = kept_keys(killed)
    assert 0 < len(before) < 11
    (run,) = translate(source, model, killed, *options)
    assert run.code == 0, run.output
    assert f"{len(before)} of them translated before\n" in run.output
    assert killed.read_bytes() == whole.read_bytes()
    assert sorted(kept_keys(killed)) == sorted(kept_keys(whole))  # each once
    (again,) = translate(source, model, killed, *options)
    assert "11 different sentences, 11 of them translated before\n" in again.output
    assert "translated in" not in again.output and killed.read_bytes() == whole.read_bytes()
    reversed_lines = write(tmp_path / "r.txt", *reversed(source.read_text().splitlines()))
    other = tmp_path / "r.jsonl"
    (run,) = translate(reversed_lines, model, other, *options)
    assert rows_of(other)[::-1] == rows_of(whole)
    (run,) = translate(source, model, other, *options[:-1], "4")
    assert run.code == 0 and other.read_bytes() != whole.read_bytes()  # another seed


def test_a_model_is_known_by_what_is_in_its_folder(tmp_path: Path, model: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    assert folder_fingerprint(copy) == folder_fingerprint(model)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "README.md").write_text("nothing that counts")
    seen = {folder_fingerprint(copy)}
    weights.write_bytes(data[: 2**12] + bytes(2**23) + b"x" * 2**12)  # larger than is read whole
    seen.add(folder_fingerprint(copy))
    weights.write_bytes(data[: 2**12] + bytes(2**23) + b"y" * 2**12)
    seen.add(folder_fingerprint(copy))
    (copy / "tokenizer.json").write_text("{}")
    seen.add(folder_fingerprint(copy))
    assert len(seen) == 4


@pytest.mark.parametrize(
    "change, said",
    [
        ("missing", "there is no tokenizer"),
        ("weights", "the model in"),
        ("template", "the model's tokenizer has no chat template"),
        ("adapter", "there is no LoRA adapter"),
        ("name", "line 1: there is a candidate of x already"),
        ("context", "the model's context of 512 tokens is too short"),
        ("tokens", "300 embeddings; take the tokenizer that belongs to the model"),
    ],
)
def test_what_a_model_lacks_is_said(tmp_path: Path, model: Path, change: str, said: str) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    row = {"language_pair": "en-de", "source": "One.", "candidates": {"x": "Eins."}}
    rows = write(tmp_path / "rows.jsonl", json.dumps(row))
    options = []
    if change == "missing":
        copy = tmp_path / "nowhere"
    elif change == "weights":
        (copy / "model.safetensors").write_bytes(b"no weights")
    elif change == "template":
        (copy / "chat_template.jinja").unlink()
        options = ["--prompt", "gpt4"]
    elif change == "adapter":
        options = ["--adapter", str(tmp_path / "nowhere")]
    elif change == "name":
        options = ["--name", "x"]
    elif change == "tokens":
        copy = save_tiny_model(tmp_path / "small", vocab_size=300)
    else:
        options = ["--max-new-tokens", "512"]
    output = tmp_path / "out.jsonl"
    arguments = [0, "--input", str(rows), "--output", str(output), "--model", str(copy)]
    (run,) = launch.on_ranks(run_on_rank, [*arguments, *GREEDY, *options])
    assert run.code == 2 and "Traceback" not in run.output, run.output
    assert said in run.output.splitlines()[-1] and not output.exists()
    assert not kept_keys(output)  # nothing was translated


# Padding.


@pytest.fixture(scope="module")
def ending_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that ends some answers by itself, so that a batch fills them up."""
    folder = save_tiny_model(tmp_path_factory.mktemp("ending") / "tiny")
    causal_lm = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        causal_lm.get_output_embeddings().weight[2] *= 2.5  # the end, likelier
    causal_lm.save_pretrained(folder)
    return folder


def with_padding(model: Path, folder: Path, change: str) -> Path:
    """The model with an id for padding, or for the end, that has no embedding."""
    shutil.copytree(model, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    beyond = len(tokenizer)
    settings: dict[str, Any] = {}
    if change == "tokenizer":
        assert tokenizer.add_special_tokens({"pad_token": "<PAD>"}) == 1
        assert tokenizer.pad_token_id == beyond
    elif change == "end":
        tokenizer.pad_token = None
        settings = {"eos_token_id": [beyond + 3, 2], "pad_token_id": None}
    else:
        settings = {"pad_token_id": beyond + 1 if change == "beyond" else int(change)}
        tokenizer.pad_token = None if change == "-1" else "<pad>"
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text()) | settings
        (folder / name).write_text(json.dumps(values))
    return folder


def answers(model: Path, beams: int, adapter: Path | None = None) -> list[Translation]:
    """Of one batch, whose prompts differ in length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    prompts = tokenize_prompts([alma_prompt(text, "en", "de") for text in SENTENCES], tokenizer)
    assert len({len(prompt) for prompt in prompts}) > 3
    place = ("float32", tokenizer, torch.device("cpu"))
    local = LocalModel(str(model), str(adapter) if adapter else None, *place)
    return local.translate(prompts, 0, num_beams=beams, do_sample=False, max_new_tokens=12)


def test_what_pads_has_an_embedding() -> None:
    assert padding_id((3, 2), 4) == 3
    assert padding_id((4, None, 2), 4) == padding_id((-1, 2, 3), 4) == 2
    assert padding_id((None, 4, 5), 4) == padding_id((), 4) == 0


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("change", ["tokenizer", "beyond", "-1", "-1000", "end"])
def test_padding_without_an_embedding_changes_no_translation(
    tmp_path: Path, ending_model: Path, change: str, beams: int
) -> None:
    expected = answers(ending_model, beams)
    assert len({answer.is_whole for answer in expected}) == 2  # some end, some do not
    assert answers(with_padding(ending_model, tmp_path / "m", change), beams) == expected


def test_an_end_without_an_embedding_is_no_padding(tmp_path: Path, model: Path) -> None:
    """Where a tokenizer has nothing else to pad with; no answer ever ends by it."""
    folders = [shutil.copytree(model, tmp_path / name) for name in ("padded", "bare")]
    for folder in folders:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"eos_token": "<END>"})
        if folder.name == "bare":
            tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
        for name in ("config.json", "generation_config.json"):
            values = json.loads((folder / name).read_text()) | {"eos_token_id": None}
            (folder / name).write_text(json.dumps(values))
    assert answers(folders[0], 1) == answers(folders[1], 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": [5, 6]},
    ],
    ids=str,
)
def test_padding_without_an_embedding_with_an_adapter(
    tmp_path: Path, ending_model: Path, settings: dict[str, Any]
) -> None:
    adapter = save_tiny_adapter(ending_model, tmp_path / "lora", **settings)
    changed = with_padding(ending_model, tmp_path / "m", "tokenizer")
    assert answers(changed, 1, adapter) == answers(ending_model, 1, adapter)


def test_padding_is_kept_where_the_embeddings_were_resized_for_it(
    tmp_path: Path, ending_model: Path
) -> None:
    changed = with_padding(ending_model, tmp_path / "m", "tokenizer")
    causal_lm = transformers.AutoModelForCausalLM.from_pretrained(changed)
    causal_lm.resize_token_embeddings(causal_lm.config.vocab_size + 1, mean_resizing=False)
    with torch.no_grad():
        causal_lm.get_output_embeddings().weight[-1] = 0  # never said
    causal_lm.save_pretrained(changed)
    assert answers(changed, 1) == answers(ending_model, 1)


def test_the_command_with_padding_beyond_the_embedding(
    tmp_path: Path, model: Path, source: Path
) -> None:
    outputs = []
    for folder in (model, with_padding(model, tmp_path / model.name, "tokenizer")):
        outputs.append(tmp_path / f"{len(outputs)}.jsonl")
        (run,) = translate(source, folder, outputs[-1], *GREEDY)
        assert run.code == 0, run.output
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
