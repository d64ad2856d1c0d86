"""The choice of sources to translate, their texts, metrics, and the file of translations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from helpers import save_tiny_model
from recipes import MINIMAL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cpo_ds.data.reread import PairTexts, read_again
from cpo_ds.errors import UserError
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.recipe import parse_config
from cpo_ds.run.monitor import Monitor
from cpo_ds.run.pairs import prepare_pairs
from cpo_ds.run.sample_metrics import score_samples, scores_in_words
from cpo_ds.run.samples import cleaned, spread
from cpo_ds.settings.data import DataConfig
from cpo_ds.storage.metrics_file import cut_back_metrics
from cpo_ds.translate.answers import Cleaning
from cpo_ds.translate.job import Translation
from cpo_ds.translate.prompting import prompt_maker
from cpo_ds.translate.tokens import PromptSettings, tokenize_prompts


def test_sources_are_spread_over_directions_and_stay_the_same() -> None:
    directions = ["en-de"] * 50 + ["zh-en"] * 3 + ["cs-en"]
    state = np.random.get_state()[1].copy()
    numbers = spread(directions, 6, seed=1)
    assert numbers == spread(directions, 6, seed=1) != spread(directions, 6, seed=2)
    assert len(set(numbers)) == 6
    names = [directions[number] for number in numbers]
    assert sorted(names) == ["cs-en", *["en-de"] * 3, *["zh-en"] * 2] or sorted(names) == [
        "cs-en", *["en-de"] * 2, *["zh-en"] * 3
    ]  # fmt: skip
    assert sorted(spread(directions, 99, seed=1)) == list(range(54))
    assert spread([], 3, seed=1) == []
    assert (np.random.get_state()[1] == state).all()


ALMA_R = {
    "translation": {
        "language_pair": "en-de", "en": "A <s> house.", "de": "Ein Haus.", "gpt4_de": "Haus.",
        "alma_de": "Häuschen", "gpt4_en": "House.", "alma_en": "Houses.", "Delta": 0,
        "ref_de_kiwi": 0.1, "gpt4_de_kiwi": 0.5, "alma_de_kiwi": 0.2,
        "ref_en_kiwi": 0.9, "gpt4_en_kiwi": 0.5, "alma_en_kiwi": 0.2,
    }
}  # fmt: skip
TRIPLET = {
    "language_pair": "en-de", "source": "A house.", "reference": "Ein Haus!",
    "candidates": {"a": "Haus", "b": "Häuschen"}, "scores": {"kiwi": {"a": 0.9, "b": 0.1}},
}  # fmt: skip
TURNS = [{"role": "user", "content": "First"}, {"role": "assistant", "content": "One"}]
CONVERSATION = {
    "prompt": [*TURNS, {"role": "user", "content": "Translate: a house"}],
    "chosen": [{"role": "assistant", "content": "Haus"}],
    "rejected": [{"role": "assistant", "content": "Maus"}],
}
PLAIN = {"prompt": "English: a\nGerman:", "chosen": " Haus", "rejected": " Maus"}


def texts_of(folder: Path, row: dict[str, Any], **settings: Any) -> tuple[list[PairTexts], Any]:
    """The texts of all pairs of a file with two blank lines and a row, and the tokenizer."""
    file = folder / "rows.jsonl"
    file.write_text("\n\n" + json.dumps(row) + "\n")
    model = save_tiny_model(folder / "model")
    values = {"path": str(file)} | settings
    config = parse_config({"model": {"name_or_path": str(model)}, "data": values}, "test")
    _, pairs, _, _ = prepare_pairs(config, prints_counts=False)
    tokenizer = load_tokenizer(str(model))
    wanted = [(pair.origin, pair.direction) for pair in pairs]
    texts = read_again(config.data, tokenizer, None, wanted)
    # Where no token spans the end of the prompt, training has the same one.
    for pair, text in zip(pairs, texts, strict=True):
        assert list(text.tokens[: pair.starts[0]]) == pair.tokens[: pair.starts[0]].tolist()
    return texts, tokenizer


@pytest.mark.parametrize("style", ["alma", "chat"])
def test_texts_of_both_directions_have_the_prompts_of_translate(tmp_path: Path, style: str) -> None:
    settings = {"format": "alma-r", "scorer": "kiwi", "prompt_style": style}
    texts, tokenizer = texts_of(tmp_path, ALMA_R, **settings)
    assert [(t.chosen, t.rejected[0], t.reference) for t in texts] == [
        ("Haus.", "Ein Haus.", "Ein Haus."), ("A <s> house.", "Houses.", "A <s> house."),
    ]  # fmt: skip
    assert [(t.target, t.is_chat) for t in texts] == [
        ("German", style == "chat"),
        ("English",) * 1 + (style == "chat",),
    ]
    maker = prompt_maker(style, None, None)
    for text, source in zip(texts, ("A <s> house.", "Ein Haus."), strict=True):
        row = type("Row", (), {"language_pair": text.direction, "source": source, "where": "here"})
        (tokens,) = tokenize_prompts([maker(row)], tokenizer, PromptSettings())  # type: ignore[arg-type]
        assert list(text.tokens) == tokens
        assert source in text.prompt and text.request.endswith(f"{text.target}:")


def test_texts_of_other_formats(tmp_path: Path) -> None:
    ((triplet,), _) = texts_of(tmp_path, TRIPLET, format="triplets", scorer="kiwi")
    assert (triplet.reference, triplet.chosen) == ("Ein Haus!", "Haus")
    in_candidates = TRIPLET | {"reference": None}
    in_candidates["candidates"] = TRIPLET["candidates"] | {"reference": "Das Haus"}
    in_candidates["scores"] = {"kiwi": {"a": 0.9, "b": 0.1, "reference": 0.2}}
    ((triplet,), _) = texts_of(tmp_path, in_candidates, format="triplets", scorer="kiwi")
    assert triplet.reference == "Das Haus"
    ((plain,), _) = texts_of(tmp_path, PLAIN | {"reference": " "}, format="pairs")
    assert (plain.reference, plain.direction, plain.target, plain.is_chat) == (None, "", "", False)
    assert plain.prompt == plain.request == PLAIN["prompt"]
    ((talk,), _) = texts_of(tmp_path, CONVERSATION, format="pairs")
    assert talk.prompt == "<s>[user]First[assistant]One</s>[user]Translate: a house[assistant]"
    assert (talk.request, talk.chosen, talk.is_chat) == ("Translate: a house", "Haus", True)


@pytest.mark.parametrize("is_chat", [True, False])
def test_answers_are_cleaned_as_by_translate(is_chat: bool) -> None:
    request = "Translate this from English to German:\nEnglish: Hi\nGerman:"
    answers = [
        f"{request} Hallo", "German: Hallo\nNote: informal", "<think>so</think>\n```\nHallo\n```",
        "\n\n\n\nHallo", " Hallo \n", "", ": Hallo",
    ]  # fmt: skip
    text = PairTexts("en-de", "", (), request, "", "", None, "German", is_chat)
    rule = Cleaning("full" if is_chat else "alma")
    conversation = [{"role": "user", "content": request}]
    for answer in answers:
        whole = Translation(answer, True, 1, 1)
        expected = rule.text(whole, conversation if is_chat else request, "German")
        assert cleaned(answer, text) == expected
    assert len({cleaned(answer, text) for answer in answers}) == (3 if is_chat else 6)
    assert cleaned(": Hallo", replace(text, target="")) == ": Hallo"


def test_a_row_that_is_gone_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(PLAIN) + "\n")
    tokenizer = load_tokenizer(str(save_tiny_model(tmp_path / "model")))
    data = DataConfig(format="pairs", path=str(file))
    with pytest.raises(UserError, match=r"rows\.jsonl:2, a held-out row, is not in the data"):
        read_again(data, tokenizer, None, [(f"{file}:2", "")])


def a_text(direction: str, chosen: str, reference: str | None) -> PairTexts:
    return PairTexts(direction, "", (), "", chosen, "", reference, "", False)


def test_scores_are_those_of_sacrebleu_and_say_what_they_compare_with() -> None:
    outputs = ["Das ist ein altes Haus.", "Der Hund schläft heute.", "我们去看海。"]
    references = ["Das ist das alte Haus.", "Der Hund schläft heute lange.", "我们去看大海。"]
    texts = [
        a_text(direction, "nothing", reference)
        for direction, reference in zip(["en-de", "en-de", "en-zh"], references, strict=True)
    ]
    values = score_samples(["bleu", "chrf"], texts, outputs)
    german, chinese = (slice(0, 2), slice(2, 3))
    bleus = [
        sacrebleu.corpus_bleu(outputs[german], [references[german]]).score,
        sacrebleu.corpus_bleu(outputs[chinese], [references[chinese]], tokenize="zh").score,
    ]
    assert values["eval_sample_bleu"] == pytest.approx(sum(bleus) / 2, abs=1e-9) and bleus[1] > 10
    record = values["eval_samples"]
    assert record["compared_with"] == "reference" and record["decoding"] == "greedy"
    assert "tok:zh" in record["directions"]["en-zh"]["bleu_signature"]
    assert record["directions"]["en-de"]["translations"] == 2 and not record["interferes"]
    for selected_by, interferes in ((["kiwi", "chrF"], True), (["kiwi"], False), (None, False)):
        values = score_samples(["chrf"], texts, outputs, selected_by)
        assert values["eval_samples"]["interferes"] == interferes
    values = score_samples(["bleu", "chrf"], texts, outputs)
    assert scores_in_words(values).endswith(
        "against the references (greedy: not the published protocol)"
    )

    # One row without a reference: chosen texts stand in for all, under another name.
    texts[2] = a_text("", outputs[2], None)
    values = score_samples(["chrf"], texts, outputs)
    assert "eval_sample_chrf" not in values
    assert values["eval_samples"]["directions"]["unknown"]["chrf"] == pytest.approx(100)
    assert values["eval_samples"]["compared_with"] == "chosen"
    assert "eval_sample_chrf_to_chosen" in values
    assert "against the chosen texts, not references" in scores_in_words(values)
    assert score_samples([], texts, outputs) == {} and scores_in_words({}) == ""


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ({"sample_translations": 3}, "set data.eval_fraction or data.eval_path"),
        ({"sample_metrics": ["bleu"]}, "set train.sample_translations"),
        ({"sample_metrics": ["ter"]}, "train.sample_metrics"),
        ({"sample_max_tokens": 0}, "train.sample_max_tokens"),
    ],
)
def test_settings_without_an_effect_are_refused(train: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_config(MINIMAL | {"train": train}, "test")


def sample(step: int, text: str) -> dict[str, object]:
    return {"step": step, "language_pair": "en-de", "translation": text}


def test_samples_are_appended_shown_and_cut_back(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, tensorboard=True, first_step=0, total_steps=4)
    assert not (tmp_path / "samples.jsonl").exists()
    for step in (0, 2, 4):
        monitor.write_samples([sample(step, "Grüße\u2028*a*"), sample(step, "\ud800")])
    monitor.write({"step": 4, "eval_sample_chrf": 12.5, "eval_samples": {"decoding": "greedy"}})
    monitor.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (first, _, _) = events.Tensors("eval/samples/text_summary")
    assert "translation: Grüße" in first.tensor_proto.string_val[0].decode()
    assert [event.value for event in events.Scalars("eval/eval_sample_chrf")] == [12.5]

    # The evaluation of the step that a run resumes from is made again.
    cut_back_metrics(tmp_path, 2)
    file = tmp_path / "samples.jsonl"
    kept = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [line["step"] for line in kept] == [0, 0]
    assert [line["translation"] for line in kept] == ["Grüße\u2028*a*", "\ud800"]


def test_samples_wait_for_room_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = Monitor(tmp_path, tensorboard=False, first_step=0, total_steps=4)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cpo_ds.run.line_file.os.write", full)
        monitor.write_samples([sample(0, "a")])
        monitor.write_samples([sample(2, "b")])
    assert capsys.readouterr().out.count("samples.jsonl cannot be written, its lines wait") == 1
    monitor.write_samples([sample(4, "c")])
    monitor.close()
    kept = [json.loads(line)["step"] for line in (tmp_path / "samples.jsonl").open()]
    assert kept == [0, 2, 4]
