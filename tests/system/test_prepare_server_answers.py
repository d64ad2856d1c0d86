"""Answers of a server: fenced ones, and those in a language that the command names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_server import chat_server
from translation_runs import candidates


@pytest.mark.parametrize("style", ["gpt4", "alma", "chat"])
def test_a_server_is_asked_by_the_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    source, output = tmp_path / "s.txt", tmp_path / "out.jsonl"
    source.write_text("One.\nTwo.\nThree.\n")
    plain = ["--input", source, "--language-pair", "en-bn", "--output", output]
    faults = {"One.": ["say Bengali: Ek."], "Two.": ["say ```text\nDui.\n```"]}
    faults |= {"Three.": ["say ```\n```"]}
    with chat_server(faults) as server:
        plain += ["--server", server.url, "--model", "m", "--prompt", style]
        assert candidates(*plain) == 2
        said = capsys.readouterr().err
        assert "s.txt, line 1: the prompt needs the name of the language 'bn'" in said
        assert "--language bn=NAME" in said and not server.bodies
        assert candidates(*plain, "--language", "bn=Bengali") == 0
        assert all("English to Bengali" in str(body["messages"]) for body in server.bodies)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["candidates"] for row in rows] == [{"m": "Ek."}, {"m": "Dui."}, {}]
    printed = capsys.readouterr().out
    assert "  cleaned, label removed: 1\n" in printed
    assert "  cleaned, code fence removed: 2\n" in printed
    assert "  no translation, empty: 1\n" in printed
