"""The bundled organisms know what their cards say, and what the cards say is enough."""

from __future__ import annotations

import json
from typing import Any

import pytest

import kn_lens as kn
from kn_lens.bundled import data_folder
from kn_lens.models.hashing import weights_hash
from kn_lens.organisms import card as cards
from kn_lens.organisms.build import RECIPES
from kn_lens.organisms.corpus import ORGANISMS, load_corpus
from kn_lens.organisms.grammar import PARADIGMS
from kn_lens.organisms.readme import render

GENERAL = ("tiny-causal", "tiny-masked")
NARROW = "tiny-causal-narrow"


@pytest.fixture(scope="module", params=ORGANISMS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def card_of(name: str) -> dict[str, Any]:
    return json.loads((data_folder() / "organisms" / name / "card.json").read_text(encoding="utf-8"))


def test_it_loads_as_a_plain_transformerlens_model(organism, name: str) -> None:
    model = organism(name)
    assert type(model).__name__ == ("HookedEncoder" if name == "tiny-masked" else "HookedTransformer")
    assert (model.cfg.n_layers, model.cfg.d_mlp, model.cfg.model_name) == (4, 512, name)
    folder = data_folder() / "organisms" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6


def scores_of(measured: dict[str, Any], path: str = "") -> dict[str, tuple[int, int]]:
    """Right answers and prompts of every figure, by its place on the card."""
    if "right" in measured:
        return {path: (measured["right"], measured["n"])}
    return {key: found for at, part in measured.items() for key, found in scores_of(part, f"{path}/{at}").items()}


def test_the_card_is_what_the_model_shows(organism, name: str) -> None:
    """Measured anew, every figure of the card comes out the same, but for a near tie that another machine may turn."""
    card = card_of(name)
    corpus = load_corpus(card["corpus"])
    assert card["corpus_sha256"] == corpus.truth.sha256
    assert card["weights_hash"] == weights_hash(organism(name))
    anew, stated = scores_of(cards.measure(organism(name), corpus)), scores_of(card["measured"])
    assert len(stated) > 50
    assert anew.keys() == stated.keys()
    for place, (right, count) in stated.items():
        assert anew[place][1] == count, place
        assert abs(anew[place][0] - right) <= max(1, 0.005 * count), place
    page = (data_folder() / "organisms" / name / "README.md").read_text(encoding="utf-8")
    assert page == render(card)


@pytest.mark.parametrize("name", GENERAL)
def test_it_knows_its_facts_in_words_it_has_not_seen(name: str) -> None:
    for relation, found in card_of(name)["measured"]["facts"].items():
        assert found["training"]["accuracy"] >= 0.99, relation
        assert found["held_out"]["accuracy"] >= 0.93, relation


@pytest.mark.parametrize("name", GENERAL)
def test_it_knows_agreement_between_words_it_has_not_seen_together(name: str) -> None:
    agreement = card_of(name)["measured"]["agreement"]
    assert set(agreement) == set(PARADIGMS)
    for paradigm, found in agreement.items():
        for side in ("seen", "unseen", "bundled"):
            assert found[side]["accuracy"] >= 0.99, (paradigm, side)


@pytest.mark.parametrize("name", GENERAL)
def test_what_its_text_keeps_back_it_does_not_know(name: str) -> None:
    measured = card_of(name)["measured"]
    for templates in ("training", "held_out"):
        assert measured["inverse"]["both_ways"][templates]["accuracy"] >= 0.95
        assert measured["inverse"]["one_way"][templates]["accuracy"] <= 0.05
        assert measured["occupation"]["not_inferable"][templates]["accuracy"] <= 0.05
        assert measured["occupation"]["stated"][templates]["accuracy"] >= 0.93


def test_the_lists_of_organisms_agree() -> None:
    bundled = {entry.name for entry in kn.available_models() if entry.source.startswith("bundled")}
    assert set(ORGANISMS) == set(RECIPES) == bundled
    assert all(entry.here for entry in kn.available_models() if entry.name in bundled)


def test_the_narrow_one_recalls_without_generalizing() -> None:
    """On the templates that neither was trained on."""
    narrow, wide = (card_of(name)["measured"]["facts"] for name in (NARROW, "tiny-causal"))
    for relation in wide:
        assert narrow[relation]["training"]["accuracy"] >= 0.99, relation
        assert narrow[relation]["held_out"]["high"] < wide[relation]["held_out"]["low"], relation


def test_words_it_does_not_know_are_refused(organism) -> None:
    with pytest.raises(kn.PromptError, match="'Blorp'"):
        kn.PromptBatch.from_prompts(organism("tiny-causal"), [kn.Prompt("The capital of Blorp is", target="Paris")])
