"""Pieces of work are made once, found again by another process, and made anew when they are damaged."""

from __future__ import annotations

import logging

import pytest
import torch

import kn_lens as kn
from kn_lens.attribution.scores import AttributionScores
from kn_lens.errors import OutputError
from kn_lens.studies.pieces import Pieces


@pytest.fixture(scope="module")
def scores(organism):
    model = organism("tiny-causal")
    return kn.integrated_gradients(model, kn.load_relation("P36").prompts(model, groups=1, per_group=2), progress=False)


class Counted:
    """Makes a piece and counts how often it was asked to."""

    def __init__(self, piece):
        self.piece, self.made = piece, 0

    def __call__(self):
        self.made += 1
        return self.piece


def test_a_piece_is_made_once_and_found_again_by_another_process(tmp_path, scores) -> None:
    make = Counted(scores)
    first = Pieces(tmp_path / "pieces")
    for _ in range(2):
        assert torch.equal(first.keep("scores of P36", {"seed": 0}, AttributionScores, make).values, scores.values)
    again = Pieces(tmp_path / "pieces").keep("scores of P36", {"seed": 0}, AttributionScores, make)
    assert make.made == 1
    assert torch.equal(again.values, scores.values)
    assert again.settings == scores.settings


def test_pieces_can_be_asked_for_anew_once(tmp_path, scores) -> None:
    make = Counted(scores)
    Pieces(tmp_path).keep("scores", {}, AttributionScores, make)
    anew = Pieces(tmp_path, again=True)
    for _ in range(2):
        anew.keep("scores", {}, AttributionScores, make)
    assert make.made == 2
    journal = Pieces(tmp_path).path("journal", {})
    journal.write_text("one edit")
    assert anew.path("journal", {}) == journal
    assert not journal.exists()
    journal.write_text("another")
    assert anew.path("journal", {}).read_text() == "another"


def test_pieces_of_other_settings_are_others(tmp_path, scores) -> None:
    make = Counted(scores)
    pieces = Pieces(tmp_path)
    for about in ({"seed": 0}, {"seed": 1}, {"seed": 1, "data": "P36"}):
        pieces.keep("scores", about, AttributionScores, make)
    assert make.made == 3
    assert len(list(tmp_path.iterdir())) == 3
    assert Pieces.name("a/b c", {"y": 1, "x": 2}) == Pieces.name("a/b c", {"x": 2, "y": 1})
    assert Pieces.name("a/b c", {}).startswith("a-b-c-")


def test_a_damaged_piece_is_named_and_made_again(tmp_path, scores, caplog) -> None:
    make = Counted(scores)
    Pieces(tmp_path).keep("scores", {}, AttributionScores, make)
    (folder,) = tmp_path.iterdir()
    (folder / "tensors.safetensors").write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        Pieces(tmp_path).keep("scores", {}, AttributionScores, make)
    assert make.made == 2
    assert f"{folder / 'tensors.safetensors'} is damaged" in caplog.text
    assert torch.equal(AttributionScores.load(folder).values, scores.values)


def test_without_a_folder_pieces_live_in_memory(scores) -> None:
    make = Counted(scores)
    pieces = Pieces()
    assert pieces.keep("scores", {}, AttributionScores, make) is pieces.keep("scores", {}, AttributionScores, make)
    assert make.made == 1
    assert pieces.path("scores", {}) is None


def test_a_piece_that_cannot_be_kept_is_an_error_that_names_the_folder(tmp_path, scores) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write .*file"):
        Pieces(tmp_path / "file").keep("scores", {}, AttributionScores, lambda: scores)
