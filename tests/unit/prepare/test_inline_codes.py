"""Inline codes of formatting become the same text in source and target; placeholders are found."""

from __future__ import annotations

from pathlib import Path

import pytest
from memories import dropped, from_tm, put, rows_of, texts, tmx, written

from cpo_ds.prepare.memory.codes import placeholders


@pytest.mark.parametrize(
    ("source", "target", "kept", "without"),
    [
        (  # codes that spell tags and placeholders stay as they are
            'A <bpt i="1">&lt;b&gt;</bpt>big<ept i="1">&lt;/b&gt;</ept> <ph x="2">{name}</ph>',
            'Ein <ph x="2">{name}</ph> <bpt i="3">&lt;b&gt;</bpt>groß<ept i="3">&lt;/b&gt;</ept>',
            ("A <b>big</b> {name}", "Ein {name} <b>groß</b>"),
            ("A big {name}", "Ein {name} groß"),
        ),
        (  # others get numbers, by x across languages, by i inside of one
            'An <bpt i="1" x="7">{\\b </bpt>old<ept i="1">}</ept> dog<ph x="8">{\\tab}</ph>',
            'Hund<ph x="8">{\\tab}</ph>, <bpt i="5" x="7">{\\b </bpt>alt<ept i="5">}</ept>',
            ("An <1>old</1> dog<2/>", "Hund<2/>, <1>alt</1>"),
            ("An old dog", "Hund, alt"),
        ),
        (  # without an id they pair by their order
            'One<ph>\\n</ph> two<it pos="begin">x y</it>',
            'Eins<ph>\\n</ph> zwei<it pos="begin">x y</it>',
            ("One<1/> two<2/>", "Eins<1/> zwei<2/>"),
            ("One two", "Eins zwei"),
        ),
        (  # marks leave their text, translatable text inside of codes is left out
            "A <hi>marked</hi> word<ph x='1'>&lt;i alt='<sub>text</sub>'/&gt;</ph>",
            "Ein <hi>markiertes</hi> Wort<ph x='1'>&lt;i alt='<sub>Text</sub>'/&gt;</ph>",
            ("A marked word<i alt=''/>", "Ein markiertes Wort<i alt=''/>"),
            ("A marked word", "Ein markiertes Wort"),
        ),
        ("Over\n    lines", "Über\r\n\tZeilen", ("Over lines", "Über Zeilen"), None),
    ],
)
def test_codes_of_tmx(
    tmp_path: Path, source: str, target: str, kept: tuple[str, str], without: tuple[str, str] | None
) -> None:
    path = put(tmp_path / "m.tmx", tmx(texts(source, target)))
    assert from_tm(path, tmp_path / "out") == 0
    assert written(tmp_path / "out") == [kept]
    assert from_tm(path, tmp_path / "out", "--tags", "drop") == 0
    assert written(tmp_path / "out") == [without or kept]


def test_codes_of_xliff_name_what_they_stand_for(tmp_path: Path) -> None:
    path = put(
        tmp_path / "a.xlf",
        '<xliff version="1.2"><file source-language="en" target-language="de"><body><trans-unit>'
        '<source>Hi <x id="INTERPOLATION" equiv-text="{{name}}"/><x id="BREAK"/>, '
        '<bx id="4" rid="1"/>you<ex id="5" rid="1"/> <mrk mtype="term">there</mrk></source>'
        '<target>Na <x id="INTERPOLATION"/>, <bx id="4" rid="1"/>du<ex id="5" rid="1"/> '
        '<mrk mtype="term">da</mrk><x id="BREAK"/></target></trans-unit></body></file></xliff>',
    )
    assert from_tm(path, tmp_path / "out") == 0
    assert written(tmp_path / "out") == [
        ("Hi {{name}}<1/>, <2>you</2> there", "Na {{name}}, <2>du</2> da<1/>")
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hello {name}, {{ count }} of {0}{}", {"{name}", "{{count}}", "{0}", "{}"}),
        ("%s and %2$s of %d, %(n)s %.1f%% %@", {"%s", "%d", "%(n)s", "%.1f", "%@"}),
        ("100% safe, 100%ige Sicherheit, 5 % d", set()),
        ("<b>x</b> <a href='https://x'>y</a><br/><1>z</1>", {"<b>", "<a>", "<br>", "<1>"}),
        ("a < b > c, <3", set()),
        ("${user} {x:.2f} {y!r}", {"${user}", "{x:.2f}", "{y!r}"}),
        ("{n, plural, one {Tag} other {# Tage}}", {"{n, plural}"}),
        ("{d, date, short}", {"{d, ...}"}),
    ],
)
def test_placeholders_are_found(text: str, found: set[str]) -> None:
    assert placeholders(text) == found


def test_targets_that_lose_or_invent_placeholders_are_dropped(tmp_path: Path) -> None:
    units = [
        texts("Add {name} now", "{name} jetzt hinzufügen"),
        texts("Add {name} here", "Hier hinzufügen"),
        texts("%1$s of %2$s files", "%s von %s Dateien"),
        texts("Delete {name}?", "{Name} löschen?"),
        texts("Delete it?", "%s löschen?"),
        texts("A &lt;b&gt;big&lt;/b&gt; one", "Ein großes"),
        texts("{n, plural, one {Day} other {# days}}", "{n, plural, one {Tag} other {# Tage}}"),
    ]
    assert from_tm(put(tmp_path / "m.tmx", tmx(*units)), tmp_path / "out") == 0
    assert [source for source, _ in written(tmp_path / "out")] == [
        "Add {name} now",
        "%1$s of %2$s files",
        "{n, plural, one {Day} other {# days}}",
    ]
    assert dropped(tmp_path / "out") == {
        "placeholder or tag lost": 3,
        "placeholder or tag that the source lacks": 1,
    }


def test_texts_of_several_lines_are_dropped(tmp_path: Path) -> None:
    rows = '{"source": "A\\nB", "target": "A\\nC"}\n{"source": "Tea", "target": "Tee"}\n'
    assert from_tm(put(tmp_path / "a.jsonl", rows), tmp_path / "out") == 0
    assert dropped(tmp_path / "out") == {"text of several lines": 1}
    assert len(rows_of(tmp_path / "out" / "rows.jsonl")) == 1
