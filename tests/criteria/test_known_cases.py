"""Only facts that a gated criterion can be scored of."""

from __future__ import annotations

import pytest

import kn_lens as kn
from kn_lens.criteria.cases import NOT_KNOWN, edit_cases
from kn_lens.errors import SettingsError
from kn_lens.organisms.corpus import load_corpus
from kn_lens.prompts.prompt import count_reasons


def test_known_facts_are_those_whose_probe_the_model_passes(organism):
    model = organism("tiny-causal")
    found = edit_cases(model, "P36", edits=20, known=True)
    both_ways = set(load_corpus("organism").truth.both_ways)
    assert len(found) == 20
    assert sum(fact.subject in both_ways for fact in found.facts) >= 19  # few others are guessed
    every = edit_cases(model, "P36", edits=20)
    drawn = [fact for fact in every.facts if fact in found.facts]
    assert drawn == [fact for fact in found.facts if fact in every.facts]  # the same draw, some left out
    assert 0 < count_reasons(found.dropped)[NOT_KNOWN] < 131 - 20
    assert found.settings["known"] is True
    judged = kn.evaluate_edits(model, kn.rome, found, edits=5, progress=False).to_frame().set_index("criterion")
    assert judged["edits"].tolist() == [5] * 5


def test_data_without_a_gated_criterion_is_refused(organism):
    model = organism("tiny-causal")
    for name, criteria in (("P37", None), ("subject_verb_agreement", None), ("P36", ["reliability"])):
        with pytest.raises(SettingsError, match=f"known=True takes facts .* and {name} is asked none; .* P1376"):
            edit_cases(model, name, known=True, criteria=criteria)
