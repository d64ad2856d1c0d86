"""Files as newcomers have them: tables, lists, memories, and the answers to wrong ones."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from preference_data import ALMA, PAIR, X_ALMA, read

from cpo_ds.data.candidates import read_candidates
from cpo_ds.errors import UserError

# Texts with everything that a table must keep: separators, quotes, line breaks, spaces at the ends.
TEXTS = ('Say "Hi",\nplease; now:\t', ' "Hallo", bitte;\r\njetzt', "  Hé\tda ")
ROWS = [dict(zip(("prompt", "chosen", "rejected"), TEXTS, strict=True)), PAIR]


def table(separator: str, rows: list[dict[str, str]] = ROWS, **options: Any) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["prompt", "chosen", "rejected"], delimiter=separator, **options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", table(",")),
        ("P.CSV", table(",", lineterminator="\n", quoting=csv.QUOTE_ALL)),
        ("bom.csv", b"\xef\xbb\xbf" + table(",").encode()),
        ("semicolons.csv", table(";")),
        ("excel.csv", "sep=;\r\n" + table(";")),
        ("tabs.csv", "\n" + table("\t")),
        ("p.tsv", table("\t")),
        ("all.tsv", table("\t", quoting=csv.QUOTE_ALL)),
        ("commas.tsv", table(",")),
        ("empty_rows.csv", table(",") + ",,\n,,\n"),
        ("packed.csv.gz", gzip.compress(table(",").encode())),
        ("list.json", json.dumps(ROWS, indent=1)),
        ("lines.json", "\n".join(map(json.dumps, ROWS))),
        ("packed.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("folder/nested/p.csv", table(",")),
    ],
)
def test_every_kind_gives_the_texts_as_they_are(
    tmp_path: Path, name: str, content: str | bytes
) -> None:
    path = put(tmp_path / name, content)
    rows, _ = read(tmp_path / "folder" if "/" in name else path, "pairs")
    assert [(row.prompt, row.chosen, *row.rejected) for row in rows] == [
        TEXTS,
        tuple(PAIR.values()),
    ]


def test_lines_of_tables_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    path = put(tmp_path / "p.csv", "\n" + table(",", lineterminator="\n"))
    assert [row.origin for row in read(path, "pairs")[0]] == [f"{path}:3", f"{path}:6"]
    rows, report = read(put(tmp_path / "q.csv", table(",") + "\n,,\n"), "pairs")
    assert len(rows) == 2 and report.dropped == {"blank line": 2}
    mac = put(tmp_path / "mac.csv", "prompt,chosen,rejected\ra,b,c\rd,e,f")
    assert [row.origin for row in read(mac, "pairs")[0]] == [f"{mac}:2", f"{mac}:3"]


def test_a_folder_of_rows_may_hold_a_json_file_of_settings(tmp_path: Path) -> None:
    put(tmp_path / "p.csv", table(","))
    put(tmp_path / "summary.json", '{"kept": 2}')
    assert len(read(tmp_path, "pairs")[0]) == 2


def archive() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("xl/workbook.xml", "<workbook/>")
    return packed.getvalue()


HEADER = "prompt,chosen,rejected\n"
CHAT = "[{'role': 'user', 'content': 'a'}]"
MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "book.xlsx": (archive(), "is a spreadsheet; open it and save it as CSV in UTF-8"),
    "book.csv": (archive(), "is a spreadsheet or an archive; open it and save it as CSV"),
    "old.csv": (b"\xd0\xcf\x11\xe0", "is a spreadsheet; open it and save it as CSV"),
    "p.zip": (archive(), "is packed; unpack it"),
    "p.gz": (b"", "name it .jsonl.gz, .csv.gz or .tsv.gz"),
    "p.txt": ("a\tb\tc\n", "name it .tsv if it is a table whose first line names the columns"),
    "p.arrow": (b"ARROW1", "give the folder that save_to_disk wrote"),
    "p.xml": ("<a/>", "export it as TMX, or as CSV"),
    "latin.csv": (f"{HEADER}a,ä,ö\n".encode("latin-1"), "line 2: not valid UTF-8 at byte 3; save"),
    "utf16.csv": (f"{HEADER}a,ä,ö\n".encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
    "packed.jsonl": (gzip.compress(b"{}", mtime=0), "let its name end in .gz"),
    "parquet.csv": (b"PAR1", "let its name end in .parquet"),
    "pipes.csv": ("prompt|chosen|rejected\na|b|c\n", "commas, semicolons or tabs"),
    "twice.csv": ("prompt,chosen,chosen\na,b,c\n", "line 1: two columns are named 'chosen'"),
    "none.csv": (HEADER, "is empty; it needs at least one row"),
    "empty.tsv": ("", "is empty; it needs at least one row"),
    "cell.csv": (f"{HEADER}a,,c\n", "line 2: field chosen is empty; fill it in or remove the row"),
    "comma.csv": (f"{HEADER}Yes, so:,b,c\n", "4 cells, but the first line names 3 columns"),
    "short.csv": (f"{HEADER}a,b,c\na,b\n", "line 3: 2 cells, but the first line names 3 columns"),
    "open.csv": (f'{HEADER}"a,b,c\nd,e,f\n', "line 2: the row that begins here is not valid csv"),
    "quote.tsv": ('prompt\tchosen\trejected\n"Hi," he:\tb\tc\n', "each quote in it is doubled"),
    "kept.tsv": ('prompt\tchosen\trejected\nHi\t"Hallo."\tHe\n', "in quotes that it does not need"),
    "chat.csv": (f'chosen,rejected\n"{CHAT}","{CHAT}"\n', "need a jsonl or parquet file"),
    "unnamed.csv": ("Hi,Hallo,He\nYes,Ja,Na\n", "(in a csv or tsv the first line names them)"),
    "capitals.csv": ("Prompt,chosen,REJECTED\na,b,c\n", "Rename Prompt to prompt and REJECTED to"),
    "other.csv": ("question,chosen,rejected\na,b,c\n", "Rename question to prompt."),
    "list.jsonl": (json.dumps([PAIR]), "a list of objects belongs in a file whose name ends in"),
    "pretty.jsonl": (json.dumps([PAIR], indent=1), "a list of objects belongs in a file"),
    "table.jsonl": (f"{HEADER}a,b,c\n", "or a table whose name ends in .csv or .tsv"),
    "cut.json": (json.dumps([PAIR])[:-4], "not valid JSON"),
    "data.json": (json.dumps({"data": [PAIR]}), "whose field data holds a list of objects; write"),
    "columns.json": (json.dumps({k: [v] for k, v in PAIR.items()}), 'orient="records"'),
    "texts.json": ('["a", "b"]', "row 1: not a JSON object but 'a'"),
    "number.json": ("3", "holds no list of objects but 3"),
    "x.jsonl": (json.dumps(X_ALMA), "Its fields fit data.format: x-alma, so set that."),
    "alma.jsonl": (json.dumps({"translation": ALMA}), "fit data.format: alma-r"),
    "three.csv": (
        "lp,source,chosen,rejected\nen-de,Hi,Hallo,He\n",
        "Rename rejected to reject and lp to directions, and set data.format: x-alma.",
    ),
    "two.csv": ("source,target\nHi,Hallo\n", "cpo-ds prepare candidates --input FILE"),
    "alpaca.json": (
        json.dumps([{"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"}]),
        "has the fields 'instruction', 'input', 'chosen', 'rejected', and data.format: pairs needs",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_one_paragraph_with_the_way_out(tmp_path: Path, name: str) -> None:
    content, way_out = MISTAKES[name]
    path = put(tmp_path / name, content)
    with pytest.raises(UserError) as raised:
        read(path, "pairs")
    said = str(raised.value)
    assert way_out in said and said.startswith(str(path)) and said.endswith(".")
    assert "\n" not in said and len(said.removeprefix(str(path))) < 400


@pytest.mark.parametrize(
    ("inside", "said"), [("p.json", "name one of them"), ("p.ods", "p.ods is")]
)
def test_a_folder_without_rows_says_what_it_has(tmp_path: Path, inside: str, said: str) -> None:
    put(tmp_path / "deep" / inside, "[]")
    with pytest.raises(UserError, match=said):
        read(tmp_path, "pairs")


MEMORY = """\
<?xml version="1.0"?>{doctype}
<tmx version="1.4"><header srclang="en" segtype="sentence"/><body>
<tu><tuv xml:lang="DE-de"><seg>Klick <hi>hier</hi> &amp; da.</seg></tuv>
<tuv xml:lang="en-US"><note>no text</note><seg>Click <bpt i="1">&lt;b&gt;<sub>x</sub></bpt>here<ept
i="1">&lt;/b&gt;</ept> &#38; there.</seg></tuv><tuv xml:lang="fr"><seg>{french}</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Alone</seg></tuv></tu></body></tmx>
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_translation_memory_gives_sources_and_references(tmp_path: Path, encoding: str) -> None:
    doctype = '<!DOCTYPE tmx SYSTEM "tmx14.dtd">'
    text = MEMORY.format(doctype=doctype, french="Cliquez là.")
    path = put(tmp_path / "memory.tmx", text.encode(encoding))
    rows, skipped = read_candidates(str(path))
    assert [(row.language_pair, row.source, row.reference) for row in rows] == [
        ("en-US-de-DE", "Click here & there.", "Klick hier & da."),
        ("en-US-fr", "Click here & there.", "Cliquez là."),
    ]
    assert rows[1].where == f"{path}, row 1" and skipped == {"blank line": 1}
    with pytest.raises(UserError, match="CPO learns from a better and a worse one"):
        read(path, "pairs")


BOMB = '<!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE tmx [<!ENTITY b SYSTEM "file:///etc/hostname">]>'
ELSEWHERE = '<!DOCTYPE tmx SYSTEM "absent.dtd">'


@pytest.mark.parametrize("doctype", [BOMB, OUTSIDE, ELSEWHERE])
def test_entities_of_a_memory_are_refused(tmp_path: Path, doctype: str) -> None:
    path = put(tmp_path / "m.tmx", MEMORY.format(doctype=doctype, french="&b;"))
    with pytest.raises(UserError, match=r"uses the XML entity '[ab]', which is not read"):
        read_candidates(str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (MEMORY.format(doctype="", french="")[:300], "is not a whole TMX file"),
        ("<html/>", "is XML but not TMX"),
        ("", "is not a whole TMX file"),
    ],
)
def test_a_damaged_memory_is_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_candidates(str(put(tmp_path / "m.tmx", content)))
