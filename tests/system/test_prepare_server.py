"""`cpo-ds prepare candidates --server`, against a real server on loopback that has real faults."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import launch
import pytest
from chat_server import ChatServer, chat_server

from cpo_ds import cli
from cpo_ds.data.prompts import few_shot_prompt, gpt4_messages
from cpo_ds.errors import UserError
from cpo_ds.translate.chat_client import Server
from cpo_ds.translate.job import Translation
from cpo_ds.translate.server import server_address, server_key, tokens

KEY = "sk-7f3a9e-the-secret-0b51"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def sources(folder: Path, count: int) -> Path:
    path = folder / "s.txt"
    path.write_text("".join(f"sentence {number};\n" for number in range(count)))
    return path


def arguments(server: ChatServer | str, source: Path, output: Path, *options: str) -> list[str]:
    url = server if isinstance(server, str) else server.url
    plain = ["--input", str(source), "--language-pair", "en-de", "--output", str(output)]
    return ["prepare", "candidates", *plain, "--server", url, "--model", "org/m", *options]


def message(number: int) -> str:
    return gpt4_messages(f"sentence {number};", "en", "de")[-1]["content"]


def expected(count: int, name: str = "m", without: tuple[int, ...] = ()) -> str:
    """The expected output, since the server answers in capitals."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        candidates = {} if number in without else {name: message(number).upper()}
        row = {"language_pair": "en-de", "source": f"sentence {number};"}
        rows.append(row | {"candidates": candidates})
    return "".join(json.dumps(row) + "\n" for row in rows)


def nothing_holds_the_key(folder: Path, *printed: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for text in [*printed, *(path.read_text(encoding="utf-8") for path in files)]:
        assert KEY not in text and KEY[:12] not in text


def test_faults_of_a_server_cost_time_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    faults = {"ce 0;": ["status 500", "status 503"], "ce 1;": ["rate 0.2", "rate 0.2"]}
    faults |= {"ce 2;": ["stall"], "ce 3;": ["hang-up"], "ce 4;": ["length"]}
    faults |= {"ce 5;": ["say  "], "ce 6;": [f"say German: KEY said {KEY}"]}
    faults |= {"ce 7;": ["say half\ud800\u2028a pair"]}
    # Sentences 0 to 7 meet one kind of fault each.
    output = tmp_path / "out.jsonl"
    with chat_server(faults) as server:
        server.seconds = 0.05
        options = ["--concurrency", "3", "--timeout", "1", "--retries", "3"]
        assert cli.main(arguments(server, sources(tmp_path, 20), output, *options)) == 0
    made = [json.loads(line)["candidates"] for line in output.read_text().split("\n")[:-1]]
    assert made[5:8] == [{}, {"m": "[key] said [key]"}, {"m": "half?\u2028a pair"}]
    rest = expected(20).splitlines()
    assert [m for i, m in enumerate(made) if i not in (5, 6, 7)] == [
        json.loads(line)["candidates"] for i, line in enumerate(rest) if i not in (5, 6, 7)
    ]
    # Retries as needed and no more, within the limits of the options.
    assert [server.asked[message(number)] for number in range(6)] == [3, 3, 2, 2, 1, 1]
    assert server.asked.total() == 20 + 2 + 2 + 1 + 1
    assert server.most_at_a_time == 3
    assert server.keys == {f"Bearer {KEY}"}
    printed = capfd.readouterr()
    words = len(message(0).split())
    assert printed.out.splitlines()[2:] == [
        f"{output}: 20 rows, 19 with a translation by m",
        "  ended by the limit of tokens: 1",
        "  no translation, empty: 1",
        "  cleaned, label removed: 1",
        "  cleaned, spaces around it removed: 1",
        f"tokens: {20 * words} of prompts, {17 * words + 0 + 4 + 3} of 20 answers",
    ]
    assert printed.err == ""
    nothing_holds_the_key(tmp_path, printed.out, printed.err)


def test_a_killed_run_asks_for_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, source = tmp_path / "out.jsonl", sources(tmp_path, 12)
    with chat_server() as server:
        # The run is killed when 7 answers are kept.
        server.answers_left = 7
        command = arguments(server, source, output, "--concurrency", "3")
        process = launch.start([sys.executable, "-m", "cpo_ds.cli", *command])
        server.wait_for(7)
        kept = Path(f"{output}.cache") / "translations.0.jsonl"
        deadline = time.monotonic() + 30
        while kept.read_text().count("{") < 14 and time.monotonic() < deadline:
            time.sleep(0.01)
        launch.kill(process)
        assert launch.finish(process).code == -9 and not output.exists()
        # The same command asks for the other 5 only.
        server.answers_left = None
        first = server.asked.copy()
        assert cli.main(command) == 0
        assert server.answered == {message(number): 1 for number in range(12)}
        again = server.asked - first
        assert again.total() == 5 and not set(again) & {m for m in first if first[m] > 1}
    assert output.read_text() == expected(12)
    words = len(message(0).split())
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"asking {server.url} for 12 different sentences, 7 of them answered before",
        f"{output}: 12 rows, 12 with a translation by m",
        f"tokens: {5 * words} of prompts, {5 * words} of 5 answers",
        f"tokens by earlier runs: {7 * words} of prompts, {7 * words} of 7 answers",
    ]
    nothing_holds_the_key(tmp_path)


@pytest.mark.parametrize(
    "status, said",
    [
        (401, "Check the key in the environment variable OPENAI_API_KEY."),
        (403, "Check the key in the environment variable OPENAI_API_KEY."),
        (404, "Most servers' address ends in /v1, and --model must be one that they serve"),
    ],
)
def test_what_every_row_would_meet_ends_the_run_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], status: int, said: str
) -> None:
    output = tmp_path / "out.jsonl"
    with chat_server({"sentence": [f"always status {status}"]}) as server:
        command = arguments(server, sources(tmp_path, 30), output, "--concurrency", "2")
        assert cli.main(command) == 2
        assert server.asked.total() <= 4
    printed = capfd.readouterr()
    assert f"{server.url} refuses: Error code: {status}" in printed.err and said in printed.err
    assert "Bearer [key]" in printed.err and printed.err.count("\n") == 1
    assert not output.exists()
    nothing_holds_the_key(tmp_path, printed.out, printed.err)


def test_rows_without_an_answer_are_asked_for_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output, source = tmp_path / "out.jsonl", sources(tmp_path, 30)
    bad = {f"ce {number};": ["always status 400"] for number in range(1, 26)}
    with chat_server(bad | {"ce 27;": ["status 500"]}) as server:
        command = arguments(server, source, output, "--retries", "0", "--concurrency", "1")
        assert cli.main(command) == 2
        assert output.read_text() == expected(30, without=(*range(1, 26), 27))
        printed = capfd.readouterr()
        assert "  no translation, no answer: 26\n" in printed.out
        assert "26 of 30 sentences got no answer (status 400: 25, status 500: 1)" in printed.err
        assert f"the first is {source}, line 2: Error code: 400 - no: you sent Bearer [key]" in (
            printed.err
        )
        assert f"{output} has the others" in printed.err
        # The server recovers for all sentences but one, then for that one.
        for number in range(2, 26):
            server.faults[f"ce {number};"] = []
        assert cli.main(command) == 2
        assert "1 of 30 sentences" in capfd.readouterr().err
        server.faults["ce 1;"] = []
        assert cli.main(command) == 0
        assert output.read_text() == expected(30)
        asked = [server.asked[message(number)] for number in range(30)]
        assert asked == [1, 3, *[2] * 24, 1, 2, 1, 1]
    nothing_holds_the_key(tmp_path, printed.out, printed.err)


def test_an_outage_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, source = tmp_path / "out.jsonl", sources(tmp_path, 60)
    with chat_server({"sentence": ["always text"]}) as server:
        command = arguments(server, source, output, "--retries", "0", "--concurrency", "4")
        assert cli.main(command) == 2
        assert 20 <= server.asked.total() <= 28  # those under way too
        server.asked.clear()
        assert "no chat completion" in (error := capsys.readouterr().err)
        assert "20 times in a row" in error and not output.exists()
        # Settings that the server refuses show before they have cost a request for each row.
        server.faults["sentence"] = ["always status 400"]
        assert cli.main(command) == 2
        assert 20 <= server.asked.total() <= 28
    assert cli.main(command) == 2  # it is gone
    assert "does not answer: no connection" in capsys.readouterr().err
    assert not output.exists()


def test_what_is_sent_is_what_was_asked_for(tmp_path: Path) -> None:
    shots = tmp_path / "shots.jsonl"
    shot = {"language_pair": "en-de", "source": "One.", "reference": "Eins."}
    shots.write_text(json.dumps(shot) + "\n")
    source = sources(tmp_path, 1)
    with chat_server() as server:
        few = ["--prompt", "few-shot", "--examples", str(shots), "--shots", "1"]
        limits = ["--temperature", "0", "--top-p", "0.9", "--seed", "4", "--max-new-tokens", "99"]
        for number, options in enumerate(([], few, ["--prompt", "chat"], limits)):
            command = arguments(server, source, tmp_path / f"{number}.jsonl", *options)
            assert cli.main(command) == 0
        gpt4, few_shot, chat, limited = server.bodies
    assert gpt4 == {"model": "org/m", "messages": gpt4_messages("sentence 0;", "en", "de")}
    prompt = few_shot_prompt("sentence 0;", "en", "de", [("One.", "Eins.")])
    assert few_shot["messages"] == [{"role": "user", "content": prompt}]
    text = "Translate this from English to German:\nEnglish: sentence 0;\nGerman:"
    assert chat["messages"] == [{"role": "user", "content": text}]
    assert limited == gpt4 | {"temperature": 0, "top_p": 0.9, "seed": 4, "max_tokens": 99}


def test_one_question_is_asked_once_and_other_settings_are_another(tmp_path: Path) -> None:
    source, output = sources(tmp_path, 1), tmp_path / "out.jsonl"
    source.write_text(source.read_text() * 3)
    with chat_server() as server:
        assert cli.main(arguments(server, source, output)) == 0
        assert server.asked.total() == 1
        rows = output.read_text().splitlines()
        assert len(rows) == 3 and len(set(rows)) == 1
        assert cli.main(arguments(server, source, output, "--temperature", "0.5")) == 0
        assert server.asked.total() == 2
        assert cli.main(arguments(server, source, output)) == 0
        assert server.asked.total() == 2


def test_addresses() -> None:
    assert server_address("http://localhost:8000/v1/") == "http://localhost:8000/v1"
    for wrong in ("localhost:8000", "http://", "ftp://x/v1", "http://x:port", "http://x/v1?k=1"):
        with pytest.raises(UserError, match="is no address"):
            server_address(wrong)
    with pytest.raises(UserError, match="no user or password") as error:
        server_address("http://me:secret@host/v1")
    assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="leave /chat/completions out"):
        server_address("http://x/v1/chat/completions")


def test_keys() -> None:
    assert server_key(f" {KEY}\n", "K", "https://x/v1") == KEY
    for address in ("http://localhost:1/v1", "http://127.0.0.1/v1", "http://[::1]:8000/v1"):
        assert server_key("", "K", address) == ""
    with pytest.raises(UserError, match=r"variable MY_KEY is not set; .* https://x/v1"):
        server_key(" ", "MY_KEY", "https://x/v1")
    for wrong in ("sk-se\ncret", "sk-se cret", "sk-sécret"):
        with pytest.raises(UserError, match="holds something that is no key") as error:
            server_key(wrong, "K", "http://localhost/v1")
        assert "cret" not in str(error.value)
    server = Server("u", "m", KEY, "K", {}, 1, 1, 1.0)
    assert KEY not in repr(server)


def test_tokens_are_summed_apart_for_earlier_runs() -> None:
    now = [Translation("a", True, 3, 2), Translation("b", True, 0, 0)]
    assert tokens(now, [Translation("c", True, 10, 20)]) == [
        "tokens: 3 of prompts, 2 of 2 answers",
        "  without a count by the server: 1",
        "tokens by earlier runs: 10 of prompts, 20 of 1 answers",
    ]
    assert tokens([], []) == []
