"""Files of prompts: what a row becomes, what is refused, and that nothing is read before it is needed."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from kn_lens.errors import DataError
from kn_lens.prompts.jsonl import Problems
from kn_lens.prompts.load import load_data
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.prompt_file import is_prompt_file, is_prompt_row, read_prompt_file


def write(folder, *rows):
    path = folder / "mine.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_rows_become_prompts(tmp_path):
    path = write(
        tmp_path,
        {"prefix": "The capital of France is", "suffix": ".", "target": "Paris", "foil": "Rome", "cue": "France"},
        "",
        {"text": "[MASK] is the capital of France.", "target": "Paris", "cue": [25, 31], "group": "France", "id": 7},
        {"text": "In France lies [MASK] .", "target": "Paris", "cue": [3, 9], "suffix": None},
    )
    read = list(read_prompt_file(path))
    assert read == [
        Prompt(
            "The capital of France is",
            suffix=".",
            target="Paris",
            foil="Rome",
            cue="France",
            source=f"{path}:1",
        ),
        Prompt(
            "", suffix=" is the capital of France.", target="Paris", cue=(19, 25), group="France", source=f"{path}:3"
        ),
        Prompt("In France lies", suffix=".", target="Paris", cue=(3, 9), source=f"{path}:4"),
    ]
    for prompt in read:  # whichever way it is given, the cue is the country
        start, end = prompt.cue_span() or (0, 0)
        assert (prompt.prefix + prompt.suffix)[start:end] == "France"


def test_a_second_prefix_makes_a_pair_of_prefixes(tmp_path):
    row = {"prefix": "She saw this", "foil_prefix": "She saw these", "target": "towers", "cue": "this"}
    (prompt,) = read_prompt_file(write(tmp_path, row))
    assert (prompt.form, prompt.foil_prefix) == ("two_prefix", "She saw these")
    report = Problems()
    list(read_prompt_file(write(tmp_path, row, {"prefix": "It is", "target": "so"}, row), report))
    assert [str(problem).split(": ", 1)[1] for problem in report] == [
        "no 'foil_prefix' here and one in line 1; put them into two files"
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prefix": "It is"}, "field 'target' is missing"),
        ({"prefix": "It is", "target": " "}, "field 'target' is ' ', not a text"),
        ({"target": "so"}, "field 'prefix' (or 'text') is missing"),
        ({"prefix": 3, "target": "so"}, "field 'prefix' is 3, not a text"),
        ({"prefix": "It is", "text": "It is [MASK]", "target": "so"}, "give 'prefix' or 'text', not both"),
        ({"text": "It is [MASK]", "suffix": ".", "target": "so"}, "'suffix' stands beside 'text'"),
        ({"text": "It is", "target": "so"}, "'It is' has no [MASK]; write exactly one"),
        ({"prefix": "It is", "target": "so", "sufix": "."}, "unknown field 'sufix'. Did you mean 'suffix'?"),
        ({"prefix": "It is", "target": "so", "foil": "so"}, "target and foil of 'It is' are the same word"),
        (
            {"prefix": "It", "target": "so", "foil": "a", "foil_prefix": "b"},
            "give 'foil' (another word) or 'foil_prefix'",
        ),
        ({"prefix": "It is it", "target": "so", "cue": "it"}, None),
        ({"prefix": "it is it", "target": "so", "cue": "it"}, "cue 'it' occurs 2 times in 'it is it'"),
        ({"prefix": "It is", "target": "so", "cue": [3]}, "cue is [3]; write a text, or [start, end] characters"),
        ({"prefix": "It is", "target": "so", "cue": [True, 3]}, "cue is [True, 3]; write a text"),
        ({"prefix": "It is", "target": "so", "cue": [3, 9]}, "cue span (3, 9) lies outside 'It is'"),
        ({"text": "It [MASK] so", "target": "is", "cue": [3, 5]}, "cue span (3, 5) of 'It [MASK] so' lies outside it"),
        ({"text": "It [MASK] so", "target": "is", "cue": [10, 13]}, "cue span (10, 13) of 'It [MASK] so' lies outside"),
    ],
)
def test_a_bad_row_is_named_and_left_out(tmp_path, row, problem):
    path = write(tmp_path, {"prefix": "A", "target": "b"}, row, {"prefix": "C", "target": "d"})
    report = Problems()
    kept = [prompt.prefix for prompt in read_prompt_file(path, report)]
    if problem is None:
        assert (kept, report) == (["A", "It is it", "C"], [])
        return
    assert kept == ["A", "C"]
    assert [entry.where for entry in report] == [f"{path}:2"]
    assert report[0].what.startswith(problem)
    with pytest.raises(DataError) as refusal:
        list(read_prompt_file(path))
    assert str(refusal.value) == str(report[0])


def test_a_file_is_known_by_its_first_sound_row(tmp_path):
    assert is_prompt_row({"text": "", "target": ""})
    assert not is_prompt_row({"prompt": "", "target": ""})
    assert is_prompt_file(write(tmp_path, "{", {"prefix": "A", "target": "b"}))
    path = write(tmp_path, {"sentence_good": "a", "sentence_bad": "b"}, {"prefix": "A", "target": "b"})
    assert not is_prompt_file(path)
    assert not is_prompt_file(write(tmp_path))
    with pytest.raises(DataError, match=r"mine.jsonl holds prompts, one a line; only runs take such files"):
        load_data(str(write(tmp_path, {"prefix": "A", "target": "b"})))


def test_a_long_file_is_read_line_by_line(tmp_path):
    path = tmp_path / "long.jsonl"
    row = json.dumps({"prefix": "The capital of France is", "target": "Paris", "cue": "France", "note": "x" * 400})
    with path.open("w") as file:
        file.writelines(row + "\n" for _ in range(5000))
    tracemalloc.start()
    count = sum(1 for _ in read_prompt_file(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5000
    assert peak < 400_000 < path.stat().st_size / 5
