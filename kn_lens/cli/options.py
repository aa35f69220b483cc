"""Arguments that several commands take, and the model they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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


def load(name: str, device: str | None, dtype: str = "float32") -> Any:
    """The model of an argument."""
    from kn_lens.models.load import load_model

    return load_model(name, device=device, dtype=dtype)
