"""JSON Lines: a reader stops at the first broken line, a checker hears of all of them."""

from __future__ import annotations

import pytest

from kn_lens.errors import DataError
from kn_lens.prompts.jsonl import Problem, Problems, line_of, read_json, read_jsonl

BROKEN = b'{"a": "x"}\r\n\xe9\n\n{\n[1]\n{"a": " ", "b": 2}\n{"a": "\xc3\xa9", "b": "y"}\r{"a": "z", "b": "w"}'


def test_a_reader_stops_at_the_first_problem(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(BROKEN)
    rows = read_jsonl(path, ("a",))
    assert next(rows) == (f"{path}:1", {"a": "x"})
    with pytest.raises(DataError) as refusal:
        next(rows)
    assert str(refusal.value) == f"{path}:2: not UTF-8 text (byte 0 of the line); save it as UTF-8"
    with pytest.raises(DataError) as refusal:
        next(read_jsonl(path, ("b",)))
    assert str(refusal.value) == f"{path}:1: field 'b' is missing"


def test_a_checker_hears_of_all_and_gets_the_sound_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(BROKEN)
    report = Problems()
    assert list(read_jsonl(path, ("a", "b"), report)) == [
        (f"{path}:7", {"a": "é", "b": "y"}),
        (f"{path}:8", {"a": "z", "b": "w"}),
    ]
    assert report == [
        Problem(f"{path}:1", "field 'b' is missing"),
        Problem(f"{path}:2", "not UTF-8 text (byte 0 of the line); save it as UTF-8"),
        Problem(f"{path}:4", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
        Problem(f"{path}:5", "expected an object {…}, found list"),
        Problem(f"{path}:6", "field 'a' is ' ', not a text"),
        Problem(f"{path}:6", "field 'b' is 2, not a text"),
    ]
    assert [line_of(problem.where) for problem in report] == ["1", "2", "4", "5", "6", "6"]


@pytest.mark.parametrize(("text", "empty"), [(b"", True), (b" \n\t\n", True), (b"3", False), (b"\xff", False)])
def test_a_file_without_lines_is_empty_and_one_of_broken_lines_is_not(tmp_path, text, empty):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text)
    report = Problems()
    assert list(read_jsonl(path, report=report)) == []
    assert [problem.where for problem in report] == [str(path) if empty else f"{path}:1"]
    assert (report[0].what == "the file is empty; expected one JSON object per line") == empty


def test_a_file_that_is_not_there_stops_a_checker_too(tmp_path):
    with pytest.raises(DataError, match=r"^no file .*nowhere.jsonl$"):
        next(read_jsonl(tmp_path / "nowhere.jsonl", report=Problems()))


def test_keys_stated_twice_show_in_pairs(tmp_path):
    path = tmp_path / "words.json"
    path.write_text('{"a": 1, "a": 2}')
    assert read_json(path) == {"a": 2}
    assert read_json(path, pairs=True) == [("a", 1), ("a", 2)]
