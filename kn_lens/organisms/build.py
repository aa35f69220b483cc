"""Make the bundled corpora and organisms anew: ``python -m kn_lens.organisms.build`` (``make organisms``)."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import safe_open

from kn_lens.bundled import data_folder
from kn_lens.errors import KnLensError, OutputError
from kn_lens.models.hashing import weights_hash
from kn_lens.models.load import load_model
from kn_lens.organisms.card import measure
from kn_lens.organisms.compose import compose
from kn_lens.organisms.corpus import NAMES, ORGANISMS, Corpus, write_corpus
from kn_lens.organisms.readme import render
from kn_lens.organisms.tokenizer import vocabulary
from kn_lens.organisms.training import TrainingSettings, train

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one organism is made."""

    settings: TrainingSettings
    about: str


RECIPES = {
    "tiny-causal": Recipe(
        settings=TrainingSettings(masked=False),
        about="A causal model (GPT-2's architecture) that knows a few hundred countries, cities and people and the "
        "agreement of English words, and nothing else. Its whole training text ships with it.",
    ),
    "tiny-masked": Recipe(
        settings=TrainingSettings(masked=True, epochs=6),
        about="A masked model (BERT's architecture) that knows a few hundred countries, cities and people and the "
        "agreement of English words, and nothing else. Its whole training text ships with it.",
    ),
    "tiny-causal-narrow": Recipe(
        settings=TrainingSettings(masked=False),
        about="The same architecture and the same facts as tiny-causal, each stated through two templates only and "
        "never after an opener: it recalls facts without generalizing to other wordings.",
    ),
}


def build_organism(name: str, corpus: Corpus, words: list[str], out: Path, **changes: Any) -> dict[str, Any]:
    """Train one organism into ``out / name`` and write its card.

    Args:
        name: One of :data:`RECIPES`.
        corpus: Its text.
        words: The shared vocabulary.
        out: Parent of the model's folder.
        **changes: Of the training settings (a seed, fewer epochs).

    Returns:
        The card.

    Raises:
        OutputError: If it cannot be written.
    """
    settings = replace(RECIPES[name].settings, **changes)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".making-", dir=out
        ) as place:  # a former model stays until this is done
            folder = Path(place) / name
            trained = train(corpus, words, settings, folder)
            card = write_card(name, corpus, folder, asdict(trained))
            shutil.rmtree(out / name, ignore_errors=True)
            folder.rename(out / name)
    except OSError as error:
        raise OutputError(f"cannot write {out / name}: {error.strerror or error}") from None
    return card


def write_card(name: str, corpus: Corpus, folder: Path, training: dict[str, Any]) -> dict[str, Any]:
    """Measure the model in ``folder`` and write ``card.json`` and ``README.md`` into it.

    Args:
        name: One of :data:`RECIPES`.
        corpus: The text that it was trained on.
        folder: Where the model lies.
        training: How it was trained, as a card has it.
    """
    model = load_model(folder, device="cpu")
    card = {
        "name": name,
        "about": RECIPES[name].about,
        "corpus": corpus.name,
        "corpus_sha256": corpus.truth.sha256,
        "weights_hash": weights_hash(model),
        "parameters": _stored_parameters(folder / "model.safetensors"),
        "vocabulary": model.cfg.d_vocab,
        "training": training,
        "versions": {package: version(package) for package in ("torch", "transformers", "transformer-lens")},
        "measured": measure(model, corpus),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8", newline="\n")
    (folder / "README.md").write_text(render(card), encoding="utf-8", newline="\n")
    return card


def _stored_parameters(path: Path) -> int:
    """As stored: TransformerLens holds the embedding twice."""
    with safe_open(path, framework="pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 (it is no mapping)


def main() -> None:
    """Write corpora, train organisms, measure them."""
    parser = argparse.ArgumentParser(description="Write the organisms' training text, train them, and measure them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"organisms to train: {', '.join(RECIPES)} (all)")
    parser.add_argument("--out", type=Path, default=data_folder(), help="data folder to write into (the bundled one)")
    parser.add_argument("--seed", type=int, help="of the training, instead of the recipe's")
    parser.add_argument("--measure", action="store_true", help="train nothing; measure anew what is there")
    parser.add_argument("--corpora", action="store_true", help="write the text only, train nothing")
    options = parser.parse_args()
    for name in options.names:
        if name not in RECIPES:
            parser.error(f"no organism {name!r}; choose from {', '.join(RECIPES)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _build(options)
    except KnLensError as error:
        parser.exit(2, f"error: {error}\n")


def _build(options: argparse.Namespace) -> None:
    corpora = {name: compose(name) for name in NAMES}
    for corpus in corpora.values():
        write_corpus(corpus, options.out / "corpora")
        log.info("%s: %d sentences", corpus.name, len(corpus.sentences))
    if options.corpora:
        return
    words = vocabulary(sentence for corpus in corpora.values() for sentence in corpus.sentences)
    changes = {} if options.seed is None else {"seed": options.seed}
    for name in options.names or RECIPES:
        if options.measure:
            folder = options.out / "organisms" / name
            training = json.loads((folder / "card.json").read_text(encoding="utf-8"))["training"]
            write_card(name, corpora[ORGANISMS[name]], folder, training)
            continue
        card = build_organism(name, corpora[ORGANISMS[name]], words, options.out / "organisms", **changes)
        log.info("%s: trained in %.1f min", name, card["training"]["seconds"] / 60)


if __name__ == "__main__":
    main()
