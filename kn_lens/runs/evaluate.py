"""The files of a run that judges editors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.criteria.cases import EditData
from kn_lens.plots.editing import edit_cascade, edit_criteria
from kn_lens.plots.layer_sweep import layer_sweep
from kn_lens.prompts.prompt import count_reasons
from kn_lens.runs.output import OutputFolder, output_folder, slug
from kn_lens.studies.evaluate_editors import EvaluateSettings, JournalOf
from kn_lens.studies.evaluated import Evaluated, joined

if TYPE_CHECKING:
    import pandas as pd


def journals_in(folder: Path) -> JournalOf:
    """Where a run keeps what is finished of a data set and an editor: a file, of a sweep a folder."""

    def place(data: str, editor: str, sweep: bool) -> Path:
        return folder / (f"sweep-{_file(data, editor)}" if sweep else f"{_file(data, editor)}.jsonl")

    return place


def journal_names(sets: Sequence[EditData], settings: EvaluateSettings) -> list[str]:
    """What a run keeps its finished edits in: a file for each data set and editor, a folder for each sweep."""
    named = [(data.name, name) for data in sets if not isinstance(data, Sequence) for name in settings.editors]
    files = [_file(data, name) for data, name in named]
    return [f"{file}.jsonl" for file in files] + [f"sweep-{file}" for file in files if settings.sweep]


def save_evaluations(out: Path, found: Sequence[Evaluated], settings: EvaluateSettings) -> None:
    """Write a run: manifest, tables, evaluations, figures."""
    manifest = {"command": "evaluate", "settings": asdict(settings), **about_evaluations(found)}
    with output_folder(out, manifest) as folder:
        write_evaluations(folder, found)


def about_evaluations(found: Sequence[Evaluated]) -> dict[str, Any]:
    """What a manifest says of evaluations."""
    first = next(iter(found[0].evaluations.values()))
    return {
        "data": {
            entry.data: {
                "sha256": entry.data_hash,
                "criteria": list(entry.criteria),
                "dropped": count_reasons(entry.dropped),
                "evaluations": {name: f"evaluation-{_file(entry.data, name)}" for name in entry.evaluations},
                "edits": {name: len(one) for name, one in entry.evaluations.items()},
                "failed": {name: len(one.failed) for name, one in entry.evaluations.items()},
                "sweeps": {name: f"sweep-{_file(entry.data, name)}" for name in entry.sweeps},
            }
            for entry in found
        },
        "provenance": first.provenance,
        "findings": {heading: said for entry in found for heading, said in entry.findings().items()},
    }


def write_evaluations(folder: OutputFolder, found: Sequence[Evaluated]) -> None:
    """The tables ``summary``, ``by-label``, ``questions``, ``edits``, ``cascade``, ``dropped``, ``sweeps``; the
    evaluations and sweeps; their figures."""
    import pandas as pd

    def table(name: str, parts: list[pd.DataFrame]) -> None:
        parts = [part for part in parts if len(part)]
        if parts:
            folder.write_table(name, pd.concat(parts, ignore_index=True))

    table("summary", [entry.summary() for entry in found])
    table("by-label", [entry.by_label() for entry in found])
    table("cascade", [entry.cascade() for entry in found])
    for name in ("questions", "edits"):
        frames = [
            joined(entry.data, {editor: getattr(one, f"{name}_frame")() for editor, one in entry.evaluations.items()})
            for entry in found
        ]
        table(name, frames)
    dropped = [
        {"data": entry.data, "editor": name, **vars(item)}
        for entry in found
        for name, one in entry.evaluations.items()
        for item in one.dropped
    ]
    folder.write_table("dropped", pd.DataFrame(dropped, columns=["data", "editor", "text", "reason", "source"]))
    table(
        "sweeps", [joined(entry.data, {name: one.to_frame() for name, one in entry.sweeps.items()}) for entry in found]
    )
    for entry in found:
        subtitle = f"{next(iter(entry.evaluations.values())).provenance['model']}, {entry.data}"
        subtitle += f", {next(iter(entry.evaluations))}" if len(entry.evaluations) == 1 else ""
        for name, one in entry.evaluations.items():
            one.save(folder.path / f"evaluation-{_file(entry.data, name)}")
        folder.write_figure(f"criteria-{slug(entry.data)}", edit_criteria(entry.evaluations, subtitle))
        folder.write_figure(f"cascade-{slug(entry.data)}", edit_cascade(entry.evaluations, subtitle))
        for name, sweep in entry.sweeps.items():
            sweep.save(folder.path / f"sweep-{_file(entry.data, name)}")
            folder.write_figure(f"sweep-{_file(entry.data, name)}", layer_sweep(sweep, subtitle))


def _file(data: str, editor: str) -> str:
    return f"{slug(data)}-{editor}"
