"""The localize run: what was found for each data set, side by side, and the folder that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kn_lens.localization.localize import Localization as Localization
from kn_lens.localization.localize import LocalizeSettings as LocalizeSettings
from kn_lens.localization.localize import localize as localize
from kn_lens.plots import concentration_curves, layers_of_units, measures_table
from kn_lens.prompts.prompt import count_reasons
from kn_lens.runs.output import output_folder, slug

if TYPE_CHECKING:
    import pandas as pd


def comparison(found: Sequence[Localization]) -> pd.DataFrame:
    """One row per data set: the table of |KN|, τ, R₁² side by side."""
    import pandas as pd

    return pd.DataFrame([entry.summary() for entry in found])


def save_localization(out: Path, found: Sequence[Localization], settings: LocalizeSettings, n_layers: int) -> None:
    """Write a run: manifest, tables, tensors and figures."""
    import pandas as pd

    provenance = found[0].scores.provenance
    manifest = {
        "command": "localize",
        "settings": asdict(settings),
        "provenance": provenance,
        "data": {
            entry.data: {
                "sha256": entry.data_hash,
                "scores": f"scores-{slug(entry.data)}",
                "selection": entry.selection,
                "test": entry.test,
                "units": {group: result.units for group, result in entry.found.items()},
                "dropped": count_reasons(entry.scores.dropped),
            }
            for entry in found
        },
    }
    subtitle = f"{provenance['model']}, site {settings.site}, {settings.rule} with {settings.steps} steps"
    with output_folder(out, manifest) as folder:
        table = comparison(found)
        folder.write_table("measures", table)
        folder.write_table("groups", pd.concat([entry.groups_frame() for entry in found]))
        units = [result.to_frame().assign(data=entry.data) for entry in found for result in entry.found.values()]
        folder.write_table("units", pd.concat(units))
        dropped = [vars(item) | {"data": entry.data} for entry in found for item in entry.scores.dropped]
        folder.write_table("dropped", pd.DataFrame(dropped, columns=["data", "text", "reason", "source"]))
        for entry in found:
            entry.scores.save(folder.path / f"scores-{slug(entry.data)}")
        by_data = {e.data: [unit for result in e.found.values() for unit in result.units] for e in found}
        folder.write_figure("layers", layers_of_units(by_data, n_layers, subtitle))
        folder.write_figure("measures", measures_table(table, subtitle))
        folder.write_figure("concentration", concentration_curves({e.data: e.curve for e in found}, subtitle))
