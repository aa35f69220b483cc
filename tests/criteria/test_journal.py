"""A journal gives back what was finished, and refuses what is not its own."""

from __future__ import annotations

import json
import logging
import math

import pytest

from kn_lens.criteria.journal import Journal
from kn_lens.errors import OutputError

HEADER = {"editor": "rome", "settings": {"seed": 0, "criteria": ["locality"]}}


def filled(path, entries):
    with Journal(path, HEADER) as journal:
        for entry in entries:
            journal.append(entry)
    return path


def test_entries_come_back_to_the_last_bit(tmp_path):
    entries = [{"case": 0, "norm": 0.1 + 0.2, "kl": float("nan")}, {"case": 1, "text": "Zürich → “x”\n", "known": None}]
    path = filled(tmp_path / "new" / "run.jsonl", entries)
    with Journal(path, HEADER) as journal:
        assert journal.entries[0]["norm"] == 0.1 + 0.2
        assert math.isnan(journal.entries[0]["kl"])
        assert journal.entries[1] == entries[1]
        journal.append({"case": 2})
    assert [json.loads(line).get("case") for line in path.read_text().splitlines()] == [None, 0, 1, 2]


def test_each_entry_is_on_disk_before_the_next(tmp_path):
    path = tmp_path / "run.jsonl"
    with Journal(path, HEADER) as journal:
        assert len(path.read_text().splitlines()) == 1
        journal.append({"case": 0})
        assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_torn_last_line_is_dropped(tmp_path, caplog, cut):
    path = filled(tmp_path / "run.jsonl", [{"case": 0}, {"case": 1}])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - min(cut, len('{"case": 1}'))])
    with caplog.at_level(logging.WARNING), Journal(path, HEADER) as journal:
        assert journal.entries == [{"case": 0}]
        journal.append({"case": 1})
    assert "torn" in caplog.text
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kept", [0, 1, 20])
def test_a_torn_header_is_begun_anew(tmp_path, kept):
    path = filled(tmp_path / "run.jsonl", [])
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    with Journal(path, HEADER) as journal:
        assert journal.entries == []
    assert path.read_bytes() == whole


def test_another_run_is_named_by_what_differs(tmp_path):
    path = filled(tmp_path / "run.jsonl", [{"case": 0}])
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"differs in editor \(there \"rome\", here \"mine\"\); name a new file"):
        Journal(path, {**HEADER, "editor": "mine"})
    with pytest.raises(OutputError, match="differs in weights_hash") as caught:
        Journal(path, {**HEADER, "weights_hash": "0" * 100})
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["some notes", "some notes\n", '{"case": 0}\n', "[1]\n", "\n"])
def test_a_foreign_file_is_left_alone(tmp_path, text):
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(OutputError, match="no journal"):
        Journal(path, HEADER)
    assert path.read_text() == text


def test_damage_before_the_last_line_is_named(tmp_path):
    path = filled(tmp_path / "run.jsonl", [{"case": 0}, {"case": 1}])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"case": ', lines[2]]) + "\n")
    with pytest.raises(OutputError, match=r"run\.jsonl:2 is damaged"):
        Journal(path, HEADER)


def test_a_folder_and_a_file_in_the_way(tmp_path):
    with pytest.raises(OutputError, match="cannot read"):
        Journal(tmp_path, HEADER)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot read"):
        Journal(tmp_path / "file" / "run.jsonl", HEADER)
    journal = Journal(tmp_path / "run.jsonl", HEADER)
    journal.close()
    with pytest.raises(OutputError, match="closed"):
        journal.append({})
