"""Translation memories of all kinds: TMX, XLIFF, tables and rows; what is dropped or refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from memories import dropped, from_tm, many, put, rows_of, texts, tmx, written

GOOD = ("Press the button.", "Drücken Sie die Taste.")


def test_broken_units_of_a_tmx_are_counted_and_the_first_is_named_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(
        tmp_path / "m.tmx",
        tmx(
            texts(*GOOD, ("en-US", "DE-de")),
            '<tuv xml:lang="en"><seg>Alone</seg></tuv>',
            texts("One", "Un", ("en", "fr")),
            '<tuv><seg>Whose?</seg></tuv><tuv xml:lang="de"><seg>Wessen?</seg></tuv>',
            '<tuv xml:lang="en"/><tuv xml:lang="de"><seg>Ohne Quelle</seg></tuv>',
            texts("Nothing here", "  "),
            texts("Same text", "Same  text"),
            texts("42", "42,0"),
            texts("Press the button.", "Drücken  Sie die Taste."),
            texts("Press the button.", "Taste drücken."),
        ),
    )
    assert from_tm(path, tmp_path / "out") == 0
    assert written(tmp_path / "out") == [GOOD, ("Press the button.", "Taste drücken.")]
    assert dropped(tmp_path / "out") == {
        "no text in de": 2,
        "a text without a language": 1,
        "empty source": 1,
        "empty target": 1,
        "target equals source": 1,
        "text without letters": 1,
        "duplicate": 1,
    }
    said = capsys.readouterr().out
    assert "read 10 segments, kept 2" in said
    assert (
        "codes of languages in the files: en: 8, de: 7, en-US: 1, DE-de: 1, fr: 1, none: 1" in said
    )
    assert f"dropped, no text in de: 2 (first: {path}, line 4)" in said
    assert "sources with several targets, all kept: 1 (first:" in said


def test_regions_of_languages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variants = (
        '<tuv xml:lang="en-GB"><seg>The colour</seg></tuv>'
        '<tuv xml:lang="EN_us"><seg>The color</seg></tuv>'
        '<tuv lang="de"><seg>Die Farbe</seg></tuv>'
    )
    path = put(tmp_path / "m.tmx", tmx(variants))
    assert from_tm(path, tmp_path / "any") == 0
    assert written(tmp_path / "any") == [("The colour", "Die Farbe")]
    assert dropped(tmp_path / "any", "notes") == {
        "several variants of a language, of which the first was taken": 1
    }
    names = ("--language", "en-US=English")
    assert from_tm(path, tmp_path / "us", *names, pair="en-US-de") == 0
    assert written(tmp_path / "us") == [("The color", "Die Farbe")]
    assert rows_of(tmp_path / "us" / "rows.jsonl")[0]["language_pair"] == "en-US-de"
    assert from_tm(path, tmp_path / "back", pair="de-en") == 0
    assert written(tmp_path / "back") == [("Die Farbe", "The colour")]
    # A text without a region is not one of a region.
    capsys.readouterr()
    assert from_tm(path, tmp_path / "at", pair="en-de-AT") == 2
    error = capsys.readouterr().err
    assert "no text in de-AT: 1" in error and "en-GB: 1" in error and "de: 1" in error
    assert not (tmp_path / "at").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
def test_encodings_and_gzip(tmp_path: Path, encoding: str) -> None:
    declared = encoding.removesuffix("-sig")
    doctype = '<!DOCTYPE tmx SYSTEM "tmx14.dtd">'  # which is not opened
    text = tmx(texts(*GOOD), doctype=doctype).replace('"1.0"?', f'"1.0" encoding="{declared}"?')
    path = put(tmp_path / "m.tmx.gz", gzip.compress(text.encode(encoding)))
    assert from_tm(path, tmp_path / "out") == 0
    assert written(tmp_path / "out") == [GOOD]


BOMB = '<!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE tmx [<!ENTITY b SYSTEM "file:///etc/hostname">]>'
ELSEWHERE = '<!DOCTYPE tmx SYSTEM "absent.dtd">'


@pytest.mark.parametrize("doctype", [BOMB, OUTSIDE, ELSEWHERE])
@pytest.mark.parametrize("name", ["m.tmx", "m.xliff"])
def test_entities_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], doctype: str, name: str
) -> None:
    content = tmx(texts("Two &b; words", "Zwei Worte"), doctype=doctype)
    content = content.replace("tmx", "xliff") if name.endswith("xliff") else content
    content = content.replace("<tu>", "<unit>").replace("</tu>", "</unit>")
    if name.endswith("tmx"):
        content = content.replace("unit>", "tu>")
    path = put(tmp_path / name, content)
    assert from_tm(path, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "uses the XML entity" in said and f"{path}, line " in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tmx(texts(*GOOD), texts("A & B", "A und B")), "m.tmx, line 4: not valid XML (not well-f"),
        (tmx(*many(3))[:-20], "m.tmx, line 5: not valid XML"),
        (tmx(texts("Tom <3 you", "x")), "m.tmx, line 3: not valid XML"),
        ("<html/>", "its root is <html> and not <tmx>"),
        ("", "not valid XML (no element found"),
        ('<?xml version="1.0" encoding="x-no"?><tmx/>', "m.tmx"),
        (tmx(), "no segment is left of 0 (the file has none"),
    ],
)
def test_damaged_files_are_refused_with_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    assert from_tm(put(tmp_path / "m.tmx", content), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


XLIFF = """\
<xliff version="1.2"><file source-language="en" target-language="de-DE" original="a"><body>
<trans-unit id="1" approved="yes"><source>Open the <g id="7">file</g>.</source>
<target state="final">Öffnen Sie die <g id="7">Datei</g>.</target>
<alt-trans match-quality="70" origin="memory"><source>Open it.</source><target>Auf.</target></alt-trans>
<alt-trans origin="machine"><target>Öffne <g id="7">Akte</g>.</target></alt-trans>
<alt-trans alttranstype="reference"><target xml:lang="fr">Ouvrez</target></alt-trans></trans-unit>
<trans-unit id="2"><source>Not yet</source><target state="needs-translation">Not yet</target></trans-unit>
<trans-unit id="3"><source>Check me</source><target state="needs-review-translation">Prüf</target></trans-unit>
<trans-unit id="4"><source>No target</source></trans-unit>
<trans-unit id="5" translate="no"><source>ACME</source><target>ACME</target></trans-unit>
<group><trans-unit id="6" approved="no"><source>Fuzzy</source><target>Unscharf</target></trans-unit></group>
</body></file>
<file source-language="en" target-language="fr"><body><trans-unit id="1"><source>Yes</source>
<target>Oui</target></trans-unit></body></file></xliff>
"""  # noqa: E501


def test_xliff_1_with_states_and_drafts(tmp_path: Path) -> None:
    assert from_tm(put(tmp_path / "a.xlf", XLIFF), tmp_path / "out") == 0
    (row,) = rows_of(tmp_path / "out" / "rows.jsonl")
    assert row == {
        "language_pair": "en-de",
        "source": "Open the <1>file</1>.",
        "reference": "Öffnen Sie die <1>Datei</1>.",
        "candidates": {"draft": "Öffne <1>Akte</1>."},
    }
    assert dropped(tmp_path / "out") == {
        "state says not translated": 1,
        "state says needs review": 1,
        "empty target": 1,
        "not to be translated": 1,
        "not approved": 1,
        "no text in de": 1,
    }
    (pair,) = rows_of(tmp_path / "out" / "pairs.jsonl")
    assert (pair["chosen"], pair["rejected"]) == (row["reference"], "Öffne <1>Akte</1>.")
    assert from_tm(put(tmp_path / "a.xlf", XLIFF), tmp_path / "out", "--tags", "drop") == 0
    assert written(tmp_path / "out") == [("Open the file.", "Öffnen Sie die Datei.")]


XLIFF_2 = """\
<xliff xmlns="urn:oasis:names:tc:xliff:document:2.0" version="2.0"
 xmlns:mtc="urn:oasis:names:tc:xliff:matches:2.0"
 srcLang="en-US" trgLang="de"><file id="f"><unit id="1">
<mtc:matches><mtc:match ref="#s1" type="mt"><source>Hello <ph id="1" dataRef="d"/>!</source>
<target>Moin <ph id="1" dataRef="d"/>!</target></mtc:match>
<mtc:match ref="#s2" type="tm"><source>Bye.</source><target>Tja.</target></mtc:match></mtc:matches>
<originalData><data id="d">{name}</data><data id="o">&lt;b&gt;</data><data id="c">&lt;/b&gt;</data>
</originalData>
<segment id="s1" state="reviewed"><source>Hello <ph id="1" dataRef="d"/>!</source>
<target>Hallo, <ph id="1" dataRef="d"/>!</target></segment>
<ignorable><source> </source></ignorable>
<segment id="s2"><source>Bye, <pc id="2" dataRefStart="o" dataRefEnd="c">you</pc>.</source>
<target>Tschüs, <pc id="2" dataRefStart="o" dataRefEnd="c">du</pc>.</target></segment>
<segment id="s3" state="initial"><source>Later</source><target>Later</target></segment></unit>
<unit id="2"><segment><source>Tab<cp hex="0009"/>here</source>
<target>Tab<cp hex="0009"/>hier</target>
</segment></unit></file></xliff>
"""


def test_xliff_2_with_segments_data_and_matches(tmp_path: Path) -> None:
    assert from_tm(put(tmp_path / "a.xliff", XLIFF_2), tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out" / "rows.jsonl")
    assert [(row["source"], row["reference"]) for row in rows] == [
        ("Hello {name}!", "Hallo, {name}!"),
        ("Bye, <b>you</b>.", "Tschüs, <b>du</b>."),
        ("Tab\there", "Tab\thier"),
    ]
    assert [row.get("candidates") for row in rows] == [{"draft": "Moin {name}!"}, None, None]
    assert dropped(tmp_path / "out") == {"state says not translated": 1}


def test_tables_and_their_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path / "a.csv", "en,de,mt\nThe old house.,Das alte Haus.,Alte Haus.\nTea,,x\n")
    assert from_tm(path, tmp_path / "out") == 0
    assert written(tmp_path / "out") == [("The old house.", "Das alte Haus.")]
    (pair,) = rows_of(tmp_path / "out" / "pairs.jsonl")
    assert (pair["rejected"], pair["rejected_system"]) == ("Alte Haus.", "mt")
    assert dropped(tmp_path / "out") == {"empty target": 1}
    path = put(tmp_path / "b.tsv", "English\tPost\tMachine\nThe house.\tDas Haus.\tHaus das da.\n")
    capsys.readouterr()
    assert from_tm(path, tmp_path / "b") == 2
    error = capsys.readouterr().err
    assert "has no column for the target" in error and "--columns target=NAME" in error
    assert "English, Post, Machine" in error and not (tmp_path / "b").exists()
    assert from_tm(path, tmp_path / "b", "--columns", "target=Post, draft=Machine") == 0
    assert rows_of(tmp_path / "b" / "pairs.jsonl")[0]["rejected"] == "Haus das da."
    for columns, said in (
        ("target=Posts", "has no column 'Posts'; did you mean Post?"),
        ("goal=Post", "'goal=Post' is not like source=NAME"),
    ):
        capsys.readouterr()
        assert from_tm(path, tmp_path / "c", "--columns", columns) == 2
        assert said in capsys.readouterr().err
    capsys.readouterr()
    assert from_tm(path, tmp_path / "c", pair=None) == 2
    assert "give --language-pair" in capsys.readouterr().err


def test_a_folder_holds_memories_of_any_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "in" / "a.tmx", tmx(texts(*GOOD)))
    put(tmp_path / "in" / "b" / "c.csv", "source,target\nTea,Tee\n")
    put(tmp_path / "in" / "notes.txt", "no memory")
    put(tmp_path / "in" / "d.jsonl", '{"source": "Milk", "target": "Milch"}\n')
    assert from_tm(tmp_path / "in", tmp_path / "out") == 0
    assert written(tmp_path / "out") == [GOOD, ("Tea", "Tee"), ("Milk", "Milch")]
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    assert from_tm(tmp_path / "empty", tmp_path / "x") == 2
    assert from_tm(tmp_path / "absent.tmx", tmp_path / "x") == 2
    assert from_tm(tmp_path / "in" / "notes.txt", tmp_path / "x") == 2
    error = capsys.readouterr().err
    assert "has no file ending in .tmx" in error and "does not exist" in error
    assert from_tm(put(tmp_path / "a.sdlxliff", XLIFF), tmp_path / "x") == 2
    assert "is a tool's own format" in capsys.readouterr().err and not (tmp_path / "x").exists()
