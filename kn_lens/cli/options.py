"""Arguments that several commands take, and the model they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name from `kn-lens models`, a folder, or a .gguf file.")
]
DataNames = Annotated[
    list[str], typer.Option("--data", help="Bundled name, blimp:UID, pararel:P36, or a path. Repeat for more.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the manifest, tables, tensors and figures.")]
SiteOption = Annotated[str, typer.Option("--site", help="mlp, mlp_pre or head.")]
PositionsOption = Annotated[str, typer.Option("--positions", help="target, cue_last, cue or all.")]
Groups = Annotated[int, typer.Option("--groups", min=0, help="How many groups to draw; 0 takes all.")]
Prompts = Annotated[int, typer.Option("--prompts", min=0, help="Prompts of each group at most; 0 takes all.")]
FewPrompts = Annotated[
    int | None,
    typer.Option(
        "--prompts",
        min=0,
        help="Prompts of each group at most; 0 takes all. By default one of a fact; of pairs, as many as make about as "
        "many prompts as --groups says.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of every draw.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 …; by default a GPU if there is one.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, float16, bfloat16 or float64.")]

MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="logit_difference (default; of two-prefix pairs log_probability), log_probability, probability or kl; all "
        "are written.",
    ),
]
DirectionOption = Annotated[
    str, typer.Option("--direction", help="sufficiency (clean into corrupted) or necessity (corrupted into clean).")
]

LayerOption = Annotated[
    str | None,
    typer.Option(
        "--layer",
        help="A layer, or auto (where causal tracing points). By default that known for the model, else auto.",
    ),
]


def load(name: str, device: str | None, dtype: str = "float32") -> Any:
    """The model of an argument."""
    from kn_lens.models.load import load_model

    return load_model(name, device=device, dtype=dtype)


def load_sets(names: list[str], *, edits: bool = False) -> list[Any]:
    """The data sets of ``--data``, each once; ``edits`` takes those that can only be edited (CounterFact) too.

    Raises:
        SettingsError: If the files of two of them would have one name.
    """
    from kn_lens.errors import SettingsError
    from kn_lens.prompts.load import load_data, load_prompts
    from kn_lens.runs.output import slug

    sets = [(load_data if edits else load_prompts)(name) for name in dict.fromkeys(names)]
    slugs = [slug(entry.name) for entry in sets]
    for name in slugs:
        if slugs.count(name) > 1:
            raise SettingsError(f"two data sets would both be written as {name!r}; rename one of the files")
    return sets


def layer_of(text: str | None) -> int | Literal["auto"] | None:
    """``--layer``: ``"4"`` as 4, ``"auto"`` as it is.

    Raises:
        SettingsError: If it is neither.
    """
    from kn_lens.errors import SettingsError

    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise SettingsError(f"cannot read --layer {text!r}; write the number of a layer, or auto")
    return int(text)


def layers_of(text: str) -> tuple[int, ...]:
    """``--layers``: ``"3,4"`` as (3, 4).

    Raises:
        SettingsError: If it is anything else.
    """
    from kn_lens.errors import SettingsError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise SettingsError(f"cannot read --layers {text!r}; write layers with commas, as 3,4")
    return tuple(int(part) for part in parts)
