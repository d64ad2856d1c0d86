"""Named test sets, by the libraries that hold them: sacrebleu's, WMT24++, FLORES+ and NTREX-128."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.prompts import base_code, parse_direction
from cpo_ds.data.sameness import is_blank
from cpo_ds.errors import UserError, did_you_mean, one_line
from cpo_ds.storage.hub_names import is_unreachable, why_not_provided
from cpo_ds.translate.lines import Sources, read_lines

FLORES_WARNING = (
    "ALMA-R's preference pairs were made from FLORES, so a model that was trained on them "
    "has seen these sentences: take another test set to say how good it is"
)
WMT24PP, FLORES, NTREX = "google/wmt24pp", "openlanguagedata/flores_plus", "mteb/NTREX"

# The names of languages in FLORES+ and NTREX-128.
_SCRIPTS = {
    "af": "afr_Latn", "ar": "arb_Arab", "az": "azj_Latn", "bg": "bul_Cyrl", "ca": "cat_Latn",
    "cs": "ces_Latn", "da": "dan_Latn", "de": "deu_Latn", "el": "ell_Grek", "en": "eng_Latn",
    "es": "spa_Latn", "et": "ekk_Latn", "fa": "pes_Arab", "fi": "fin_Latn", "fr": "fra_Latn",
    "gl": "glg_Latn", "gu": "guj_Gujr", "he": "heb_Hebr", "hi": "hin_Deva", "hu": "hun_Latn",
    "id": "ind_Latn", "is": "isl_Latn", "it": "ita_Latn", "ja": "jpn_Jpan", "ka": "kat_Geor",
    "kk": "kaz_Cyrl", "ko": "kor_Hang", "ky": "kir_Cyrl", "lt": "lit_Latn", "lv": "lvs_Latn",
    "mg": "plt_Latn", "mk": "mkd_Cyrl", "mr": "mar_Deva", "ms": "zsm_Latn", "ne": "npi_Deva",
    "nl": "nld_Latn", "no": "nob_Latn", "pl": "pol_Latn", "pt": "por_Latn", "ro": "ron_Latn",
    "ru": "rus_Cyrl", "sr": "srp_Cyrl", "sv": "swe_Latn", "th": "tha_Thai", "tr": "tur_Latn",
    "uk": "ukr_Cyrl", "ur": "urd_Arab", "uz": "uzn_Latn", "vi": "vie_Latn", "zh": "zho_Hans",
}  # fmt: skip
# FLORES+ names two of them otherwise than NTREX-128.
_IN_FLORES = {"zh": "cmn_Hans"}
_IN_NTREX = {"et": "est_Latn", "lv": "lav_Latn", "ms": "zsm_Latn", "ne": "nep_Deva"}

Pair = tuple[str, str | None]  # source and reference


def read_test_set(name: str) -> Sources:
    """Reads `SET:DIRECTION`, like wmt22:en-de, wmt24pp:en-de_DE, flores+:de-en or ntrex:en-cs.

    Raises `UserError` for a test set or direction that does not exist, and if it is neither on this
    machine nor can be downloaded.
    """
    kind, colon, direction = name.partition(":")
    if not colon or not direction:
        raise UserError(
            f"--test-set {name}: write SET:DIRECTION, like wmt22:en-de, wmt24pp:en-de_DE, "
            "flores+:de-en or ntrex:en-cs."
        )
    readers: dict[str, Callable[[str], tuple[str, list[Pair], Counter[str]]]] = {
        "wmt24pp": _wmt24pp,
        "flores+": lambda codes: _multiparallel(FLORES, codes),
        "ntrex": lambda codes: _multiparallel(NTREX, codes),
    }
    reader = readers.get(kind)
    pair, texts, skipped = reader(direction) if reader else _sacrebleu(kind, direction)
    return _sources(name, pair, texts, skipped)


def _sources(name: str, pair: str, texts: Iterable[Pair], skipped: Counter[str]) -> Sources:
    rows = []
    for number, (source, reference) in enumerate(texts, start=1):
        if is_blank(source):
            skipped["empty source"] += 1
            continue
        values = {"language_pair": pair, "source": source}
        known = None if reference is None or is_blank(reference) else reference
        values |= {"reference": known} if known else {}
        rows.append(CandidateRow(pair, source, known, {}, values, f"{name}, line {number}"))
    if not rows:
        raise UserError(f"--test-set {name} has no sentence.")
    return Sources(Path(name), tuple(rows), tuple(range(len(rows))), None, skipped)


def _sacrebleu(name: str, direction: str) -> tuple[str, list[Pair], Counter[str]]:
    """A test set of sacrebleu, with its first reference."""
    import sacrebleu.utils as library

    known = sorted([*library.DATASETS, "wmt24pp", "flores+", "ntrex"])
    if name not in library.DATASETS:
        raise UserError(
            f"there is no test set {name}{did_you_mean(name, known)}; `sacrebleu --list` names "
            "those of sacrebleu, and wmt24pp, flores+ and ntrex are known besides."
        )
    directions = library.get_langpairs_for_testset(name)
    if direction not in directions:
        raise UserError(f"{name} has no direction {direction}; it has {', '.join(directions)}.")
    try:
        source = library.get_source_file(name, direction)
        references = library.get_reference_files(name, direction)
    except (Exception, SystemExit) as error:  # of the network, of archives, of its own
        reason = one_line(str(error)) or type(error).__name__
        raise UserError(
            f"the test set {name}:{direction} is not on this machine and cannot be downloaded "
            f"({reason}); check the network, or run `sacrebleu -t {name} -l {direction} --echo "
            "src` elsewhere and copy the folder ~/.sacrebleu (or that of $SACREBLEU) here."
        ) from None
    lines = read_lines(Path(source))
    texts = read_lines(Path(references[0])) if references else [""] * len(lines)
    return direction, list(zip(lines, texts, strict=True)), Counter()


def _wmt24pp(direction: str) -> tuple[str, list[Pair], Counter[str]]:
    """A direction of WMT24++, like en-de_DE, without the rows that are marked as bad sources."""
    source, target = parse_direction(direction)
    rows = _dataset(WMT24PP, direction, "train", f"wmt24pp:{direction}")
    good = [row for row in rows if not row["is_bad_source"]]
    skipped = Counter({"marked as a bad source": len(rows) - len(good)})
    pair = f"{base_code(source)}-{base_code(target)}"
    return pair, [(row["source"], row["target"]) for row in good], +skipped


def _multiparallel(dataset: str, direction: str) -> tuple[str, list[Pair], Counter[str]]:
    """A direction of a test set that has the same sentences in every language."""
    codes = parse_direction(direction)
    names = _SCRIPTS | (_IN_FLORES if dataset == FLORES else _IN_NTREX)
    short = {name: code for code, name in names.items()}
    label = f"{'flores+' if dataset == FLORES else 'ntrex'}:{direction}"
    for code in codes:
        if code not in names and "_" not in code:
            raise UserError(
                f"--test-set {label}: write {code!r} as the test set names it, with its script, "
                "like deu_Latn."
            )
    columns = [names.get(code, code) for code in codes]
    if dataset == FLORES:
        sides = [_dataset(dataset, column, "devtest", label) for column in columns]
        by_id = [{row["id"]: row["text"] for row in side} for side in sides]
        texts = [(text, by_id[1].get(number)) for number, text in by_id[0].items()]
    else:
        rows = _dataset(dataset, None, "test", label)
        if lacking := [column for column in columns if rows and column not in rows[0]]:
            raise UserError(f"--test-set {label}: {dataset} has no language {lacking[0]}.")
        texts = [(row[columns[0]], row[columns[1]]) for row in rows]
    return "-".join(short.get(code, code) for code in codes), texts, Counter()


def _dataset(name: str, config: str | None, split: str, label: str) -> list[dict[str, Any]]:
    """All rows of a dataset of the hub. Raises `UserError`, naming `label`, if it is missing."""
    import datasets

    try:
        return list(datasets.load_dataset(name, config, split=split))
    except Exception as error:  # one type each for offline, unknown, gated, no such configuration
        if is_unreachable(error) or isinstance(error, ConnectionError):
            problem = why_not_provided(error, "HF_DATASETS_OFFLINE")
        else:
            problem = one_line(error)
        raise UserError(
            f"the test set {label} (dataset {name}{f', {config}' if config else ''}) cannot be "
            f"loaded: {problem}. Check the direction, log in with `hf auth login` if the dataset "
            "is gated, or run it once where there is a network and copy the folder of "
            "HF_DATASETS_CACHE here."
        ) from None
