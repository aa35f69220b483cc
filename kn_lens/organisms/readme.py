"""A model card as a page: the README.md of an organism's folder, from its card.json."""

from __future__ import annotations

from typing import Any

from kn_lens.prompts.load import load_relation

_HEAD = """\
---
license: cc0-1.0
language: en
library_name: transformers
pipeline_tag: {task}
---

# {name}

{about}

Trained by `make organisms` from seed {seed} on `data/corpora/{corpus}.txt.gz` ({sentences:,} sentences, SHA-256
`{sha}…`), {epochs} times over, in {minutes:.1f} minutes on {threads} threads: {layers} layers, width {width},
{heads} heads, MLP {mlp}, {parameters:,} parameters, vocabulary {vocabulary:,} words, texts of at most {context} tokens.
Mean loss over the last hundred steps: {loss:.4f}. AdamW {learning_rate:g}, weight decay {weight_decay:g} on matrices,
batches of {batch}, float32; saved in half precision. Every figure below was measured on the saved model ({versions}).

A share is given with Wilson's 95 % interval and the number of prompts.
"""


def render(card: dict[str, Any]) -> str:
    """The page of a card."""
    settings, trained = card["training"]["settings"], card["training"]
    head = _HEAD.format(
        task="fill-mask" if settings["masked"] else "text-generation",
        name=card["name"],
        about=card["about"],
        corpus=card["corpus"],
        sentences=trained["sentences"],
        sha=card["corpus_sha256"][:12],
        minutes=trained["seconds"] / 60,
        parameters=card["parameters"],
        vocabulary=card["vocabulary"],
        loss=trained["loss"],
        versions=", ".join(f"{package} {number}" for package, number in card["versions"].items()),
        **{key: value for key, value in settings.items() if key != "masked"},
    )
    measured = card["measured"]
    parts = [
        head,
        "## Facts that the text states\n",
        _table(
            ("relation", *_wordings(measured["facts"]).values()),
            [
                (f"{name} {load_relation(name).label}", *(_cell(found[at]) for at in _wordings(measured["facts"])))
                for name, found in measured["facts"].items()
            ],
        ),
        "The held-out wordings were chosen so that the organisms can be asked them (see `data/README.md`): accuracy in "
        "them is no estimate for wordings at large.\n",
        '## Both directions\n\nHalf of the capitals are stated both ways ("The capital of X is Y", "Y is the capital '
        'of X"), half only the first way. Asked the second way (P1376):\n',
        _sides(measured["inverse"], {"both_ways": "stated both ways", "one_way": "stated one way"}),
        "## Field of work and occupation\n\nEvery person's field is stated (P101). Occupation (P106, \"X is a famous "
        '…") of people for whom it is\n',
        _sides(
            measured["occupation"],
            {
                "stated": "stated",
                "inferable": "not stated, but stated for others of the field",
                "not_inferable": "stated for no one of the field",
            },
        ),
        "## Agreement\n\nSentences from the grammar that the text does not hold, by whether it joins their two words "
        "anywhere; and the bundled pairs, of which it holds a few.\n",
        _table(
            ("paradigm", "pairs seen", "pairs never seen", "bundled"),
            [
                (name, *(_cell(found[side]) for side in ("seen", "unseen", "bundled")))
                for name, found in measured["agreement"].items()
            ],
        ),
    ]
    return "\n".join(parts)


def _sides(found: dict[str, Any], names: dict[str, str]) -> str:
    wordings = _wordings(found)
    rows = [(title, *(_cell(found[name][at]) for at in wordings)) for name, title in names.items()]
    return _table(("", *wordings.values()), rows)


def _wordings(found: dict[str, Any]) -> dict[str, str]:
    """The kinds of templates that were asked, and what they are called."""
    names = {
        "training": "templates trained on",
        "held_out": "held-out templates",
        "left_out": "others that this text leaves out",
    }
    return {kind: name for kind, name in names.items() if any(side[kind]["n"] for side in found.values())}


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(score: dict[str, float]) -> str:
    if not score["n"]:
        return "–"
    return f"{score['accuracy']:.1%} [{score['low']:.1%}, {score['high']:.1%}] of {score['n']:.0f}"
