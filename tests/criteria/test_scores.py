"""Answers equal a loop over single prompts, and success is what each criterion says it is."""

import math

import pytest
import torch

import kn_lens as kn
from kn_lens.criteria import readings
from kn_lens.criteria.questions import Question
from kn_lens.criteria.scores import Answered, ask, score, success
from tests.helpers import FAMILIES

NAN = float("nan")


def _questions(masked):
    """Questions that share texts, of several lengths, with answers of one to three tokens for causal models."""
    many = (lambda one, several: one) if masked else (lambda one, several: several)
    france = kn.Prompt("The capital of France is", target=many("Rome", "Rome and Madrid"))
    spain = kn.Prompt("It is not in the big city of Spain that the old man sings by", target="Madrid")
    return [
        Question(
            criterion="reliability",
            prompt=france,
            rival="Paris",
            own=kn.Prompt(france.prefix, target=many("Paris", "Paris and")),
        ),
        Question(criterion="locality", prompt=spain, rival=many("Rome", "Rome, Rome")),
        Question(criterion="locality", prompt=kn.Prompt("The dogs", target="run", suffix=many(" .", "."))),
        Question(criterion="symmetry_old", prompt=kn.Prompt("The capital of France is", target="Rome")),
        Question(criterion="generality", prompt=kn.Prompt("Paris", target=many("is", "is the"), suffix=many(" .", ""))),
    ]


def _log_probs(model, masked, prompt, answer):
    """The log-distributions at each token of an answer, and its tokens: tokenized and run one by one."""
    tokenizer = model.tokenizer
    if masked:
        ids = tokenizer(f"{prompt.prefix} [MASK]{prompt.suffix}")["input_ids"]
        row = model(torch.tensor([ids]))[0, ids.index(tokenizer.mask_token_id)]
        return row.log_softmax(-1)[None], [tokenizer.convert_tokens_to_ids(answer)]
    before = tokenizer(prompt.prefix)["input_ids"]
    tokens = tokenizer(f"{prompt.prefix} {answer}")["input_ids"][len(before) :]
    rows = [model(torch.tensor([before + tokens[:step]]))[0, -1] for step in range(len(tokens))]
    return torch.stack(rows).log_softmax(-1), tokens


def _mean(model, masked, prompt, answer):
    found, tokens = _log_probs(model, masked, prompt, answer)
    return float(found[range(len(tokens)), tokens].mean()), bool((found.argmax(-1) == torch.tensor(tokens)).all())


@pytest.mark.parametrize("at_once", [None, 1])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_answers_equal_a_loop_over_single_prompts(exact_model, family, at_once, monkeypatch):
    model, masked = exact_model(family), family == "bert"
    if at_once is not None:  # logits of one position fit: every text in a batch of its own
        monkeypatch.setattr(readings, "_LOGITS_AT_ONCE", at_once)
    questions = _questions(masked)
    got = ask(model, questions, own=True)
    for at, question in enumerate(questions):
        prompt = question.prompt
        found, _ = _log_probs(model, masked, prompt, prompt.target)
        expected, exact = _mean(model, masked, prompt, prompt.target)
        assert float(got.target[at]) == pytest.approx(expected, abs=1e-9)
        assert bool(got.exact[at]) is exact
        assert int(got.top[at]) == int(found[0].argmax())
        assert got.top_words[at] in model.tokenizer.decode([int(got.top[at])]) or got.top_words[at].startswith("'")
        rival = NAN if question.rival is None else _mean(model, masked, prompt, question.rival)[0]
        assert float(got.rival[at]) == pytest.approx(rival, abs=1e-9, nan_ok=True)
        own = NAN if question.own is None else float(_mean(model, masked, question.own, question.own.target)[1])
        assert float(got.known[at]) == pytest.approx(own, nan_ok=True)
        if question.criterion == "locality":
            kept = got.log_probs[got.distribution[at]]
            torch.testing.assert_close(kept, found[0], atol=1e-9, rtol=0)
        else:
            assert int(got.distribution[at]) == -1
    assert len(got.log_probs) == 2
    assert ask(model, questions).known.isnan().all()


def test_an_answer_is_exact_only_if_each_of_its_tokens_is_on_top(organism):
    model = organism("tiny-causal")
    targets = ["Paris", "Paris.", "Paris,", "Rome."]
    asked = [Question(criterion="reliability", prompt=kn.Prompt("The capital of France is", target=t)) for t in targets]
    got = ask(model, asked)
    assert got.exact.tolist() == [True, True, False, False]
    assert got.top_words == ("Paris",) * 4
    assert got.select([3, 1]).exact.tolist() == [False, True]
    assert got.select([1]).target.tolist() == [float(got.target[1])]


def test_a_pair_is_known_by_its_preference_and_a_fact_by_its_top_token(organism):
    model = organism("tiny-causal")
    pair = kn.Prompt("George admired these", target="towers", foil="tower", cue="these")
    turned = kn.Prompt("George admired these", target="tower", foil="towers", cue="these")
    fact = kn.Prompt("George admired these", target="towers")
    asked = [Question(criterion="locality", prompt=fact, own=own) for own in (pair, turned, fact)]
    got = ask(model, asked, own=True)
    assert int(got.top[0]) != model.tokenizer.convert_tokens_to_ids("towers")
    assert got.known.tolist() == [1, 0, 0]


def test_texts_that_begin_others_are_run_once_where_the_model_reads_from_left_to_right():
    texts = [(1, 2), (1, 2, 3), (1, 2, 4), (2,), (1,), (2, 1)]
    assert readings._hosts(texts, merge=True) == {
        (2, 1): (2, 1),
        (2,): (2, 1),
        (1, 2, 4): (1, 2, 4),
        (1, 2, 3): (1, 2, 3),
        (1, 2): (1, 2, 3),
        (1,): (1, 2, 3),
    }
    assert readings._hosts(texts, merge=False) == {text: text for text in texts}


def _table(target, rival, exact, top, known, log_probs, distribution):
    return Answered(
        target=torch.tensor(target, dtype=torch.float64),
        rival=torch.tensor(rival, dtype=torch.float64),
        exact=torch.tensor(exact),
        top=torch.tensor(top),
        top_words=tuple(map(str, top)),
        known=torch.tensor(known, dtype=torch.float64),
        log_probs=torch.tensor(log_probs, dtype=torch.float64).log(),
        distribution=torch.tensor(distribution),
    )


CRITERIA_ASKED = [
    "reliability",
    "generality",
    "locality",
    "locality",
    "symmetry",
    "symmetry_old",
    "symmetry_old",
    "synonymy",
]


def _hand_made():
    before = _table(
        target=[-5, -6, -1, -9, -4, -1, -3, -2],
        rival=[-1, -1, -3, -2, -1, NAN, NAN, -1],
        exact=[False, False, True, False, False, True, False, False],
        top=[7, 7, 3, 4, 5, 6, 1, 8],
        known=[1, 1, 1, 0, 0, 1, 0, NAN],
        log_probs=[[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]],
        distribution=[-1, -1, 0, 1, -1, -1, -1, -1],
    )
    after = _table(
        target=[-1, -4, -2, -8, -2, -1, -3, -1],
        rival=[-5, -3, -1, -9, -3, NAN, NAN, -1],
        exact=[True, False, False, False, True, True, False, True],
        top=[9, 7, 2, 4, 2, 6, 1, 9],
        known=[NAN] * 8,
        log_probs=[[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]],
        distribution=[-1, -1, 0, 1, -1, -1, -1, -1],
    )
    prompt = kn.Prompt("x", target="y")
    return [Question(criterion=name, prompt=prompt) for name in CRITERIA_ASKED], before, after


def test_success_on_a_table_made_by_hand():
    questions, before, after = _hand_made()
    found = score(questions, before, after)
    assert found.exact_before.tolist() == [0, 0, 1, 1, 0, 0, 1, 0]  # locality: the top token is its own before
    assert found.exact_after.tolist() == [1, 0, 0, 1, 1, 0, 1, 1]
    nan_ok = {"nan_ok": True}
    assert found.likelier_before.tolist() == pytest.approx([0, 0, 1, 0, 0, NAN, NAN, 0], **nan_ok)
    assert found.likelier_after.tolist() == pytest.approx([1, 0, 0, 1, 1, NAN, NAN, 0], **nan_ok)  # a tie is no success
    assert found.scored.tolist() == [True, True, True, True, False, True, False, False]
    assert found.known.tolist() == pytest.approx(before.known.tolist(), **nan_ok)
    kl = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert found.kl.tolist() == pytest.approx([NAN, NAN, kl, math.log(2), NAN, NAN, NAN, NAN], **nan_ok)


def test_the_state_before_is_judged_by_the_same_rules():
    _, before, _ = _hand_made()
    exact, likelier = success(CRITERIA_ASKED, before, before)
    assert exact.tolist() == [0, 0, 1, 1, 0, 0, 1, 0]
    assert likelier[:5].tolist() == [0, 0, 1, 0, 0]
    assert likelier[5:7].isnan().all()


def test_an_unchanged_model_moves_no_neighbor(organism):
    model = organism("tiny-causal")
    asked = [Question(criterion="locality", prompt=kn.Prompt("The capital of Italy is", target="Rome"), rival="Paris")]
    first, second = ask(model, asked, own=True), ask(model, asked)
    found = score(asked, first, second)
    assert found.kl.tolist() == pytest.approx([0], abs=1e-12)
    assert found.exact_after.tolist() == found.likelier_after.tolist() == [1]
