"""Settings of decoding, a model's own, sampling, re-ranking and the published protocol."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sacrebleu.metrics import CHRF
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from cpo_ds.errors import UserError
from cpo_ds.translate.cleaning import clean_as_alma
from cpo_ds.translate.decoding import Decoding, own_settings
from cpo_ds.translate.protocol import Protocol, differences
from cpo_ds.translate.rerank import choose_by_chrf
from cpo_ds.translate.sampling import SeededChoice, sampling_arguments

PUBLISHED = Protocol(5, 256, False, "alma", "auto", "alma", 256, 0, "serve", False)


def test_settings_of_a_model_that_count_are_told_from_others() -> None:
    settings = {
        "do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1,
        "eos_token_id": 2, "max_length": 4096, "num_return_sequences": 4, "typical_p": 0.5,
    }  # fmt: skip
    search = own_settings(settings, "m", samples=False)
    assert search.applied == {"repetition_penalty": 1.1}
    assert search.lines == [
        "settings of the model's generation_config.json that apply: repetition_penalty 1.1",
        "settings of the model's generation_config.json that have no effect here: do_sample True, "
        "max_length 4096, num_return_sequences 4, temperature 0.6, top_p 0.9, typical_p 0.5",
    ]
    del settings["typical_p"]
    own = own_settings(settings, "m", samples=True).applied
    assert own == {"repetition_penalty": 1.1, "temperature": 0.6, "top_p": 0.9}
    # Options come first, then the model's own, then no change of the distribution.
    decoding = Decoding(1, 9, 2, top_p=0.5, seed=7).with_own(own)
    assert decoding == Decoding(1, 9, 2, 0.6, 0, 0.5, 0.0, 7)
    assert Decoding().with_own(own) == Decoding()


@pytest.mark.parametrize(
    "settings, samples",
    [
        ({"num_beam_groups": 2}, False),
        ({"penalty_alpha": 0.6}, False),
        ({"stop_strings": ["\n"]}, False),
        ({"typical_p": 0.5}, True),
        ({"eta_cutoff": 0.1}, True),
    ],
)
def test_other_ways_of_decoding_are_refused_by_name(
    settings: dict[str, Any], samples: bool
) -> None:
    (name,) = settings
    with pytest.raises(UserError, match=rf"of the model m sets {name} .*remove it"):
        own_settings(settings, "m", samples=samples)
    neutral = {name: 1 if name == "num_beam_groups" else 0}
    own_settings(neutral, "m", samples=samples)


def test_samples_have_the_probabilities_of_transformers() -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, 7) * 2
    ids = torch.zeros(1, 3, dtype=torch.long)
    decoding = Decoding(1, 1, 1, temperature=1.7, top_k=5, top_p=0.9, min_p=0.0)
    warped = scores
    for warper in (TemperatureLogitsWarper(1.7), TopKLogitsWarper(5), TopPLogitsWarper(0.9)):
        warped = warper(ids, warped)
    counts = torch.zeros(7)
    for seed in range(4000):
        made = scores
        for processor in sampling_arguments(decoding, [seed])["logits_processor"]:
            made = processor(ids, made)
        counts[made.argmax()] += 1
    expected = warped.softmax(-1)[0]
    assert 1 < (expected > 0).sum() < 7  # some tokens are cut off
    assert (counts[expected == 0] == 0).all()
    assert torch.allclose(counts / 4000, expected, atol=0.025)


def test_a_row_draws_the_same_beside_any_other() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4, 3, 50)  # [steps, rows, vocabulary]

    def draw(rows: list[int]) -> list[list[int]]:
        choice = SeededChoice([100 + row for row in rows], 4)
        ids = torch.zeros(len(rows), 6, dtype=torch.long)
        tokens = []
        for step in scores:
            tokens.append(choice(ids, step[rows]).argmax(-1).tolist())
            ids = torch.cat([ids, ids[:, :1]], dim=1)
        return [list(column) for column in zip(*tokens, strict=True)]

    whole = draw([0, 1, 2])
    assert draw([2, 0]) == [whole[2], whole[0]] and draw([1]) == [whole[1]]
    assert len({tuple(row) for row in whole}) == 3


@pytest.mark.parametrize(
    "answer, text",
    [
        (" Hallo \n\nUnd mehr", "Hallo"),
        ("\n\n Hallo", "Hallo"),
        ("\n\n\nHallo", ""),  # beyond the three lines that ALMA looks at
        ("Hallo\n", "Hallo"),
        ("", ""),
        ("German: Hallo", "German: Hallo"),
    ],
)
def test_cleaning_is_that_of_alma(answer: str, text: str) -> None:
    assert clean_as_alma(answer)[0] == text


def test_what_cleaning_did_is_counted() -> None:
    assert clean_as_alma("a\nb")[1] == ("cut after the first line",)
    assert clean_as_alma(" a")[1] == ("spaces around it removed",)
    assert clean_as_alma("\n\n\na")[1] == ("cut after the first line",)
    assert clean_as_alma("a")[1] == clean_as_alma("")[1] == ()


def test_the_translation_that_is_likest_to_the_others_is_chosen() -> None:
    texts = ["a dog runs", "the cat sits here", "the cat sits", "the cat sat", "", "the cats"]
    chrf = CHRF()
    likeness = [
        sum(chrf.sentence_score(a, [b]).score for j, b in enumerate(texts) if b and i != j)
        for i, a in enumerate(texts)
    ]
    assert choose_by_chrf(texts) == likeness.index(max(likeness)) != 0
    assert choose_by_chrf(["", "x"]) == 1 and choose_by_chrf(["", ""]) == 0
    assert choose_by_chrf(["abc", "xyz", "xyz"]) == 1  # twice counts twice; the first of equals


def test_only_the_published_protocol_is_called_so() -> None:
    assert differences(PUBLISHED) == []
    changes: list[dict[str, Any]] = [
        {"num_beams": 4}, {"max_new_tokens": 512}, {"samples": True}, {"style": "chat"},
        {"add_bos": "never"}, {"cleaning": "full"}, {"max_prompt_tokens": 512}, {"num_long": 3},
        {"own_do_sample": True}, {"is_vllm": True},
    ]  # fmt: skip
    reasons = [differences(PUBLISHED._replace(**change)) for change in changes]
    assert [len(reason) for reason in reasons] == [1] * len(changes)
    assert {tuple(c) for c in changes} == {(n,) for n in Protocol._fields if n != "long"}
