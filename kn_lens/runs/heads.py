"""The run that compares sites: its folder of tables, tensors and figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kn_lens.runs.output import output_folder
from kn_lens.studies.site_comparison import SiteComparison

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = {
    "data": "data",
    "site": "site",
    "|KN|": "|KN|",
    "τ": "τ",
    "R₁²": "R₁²",
    "stability": "stability",
    "Gini": "Gini",
    "accuracy before": "accuracy",
    "accuracy after": "without units found",
    "accuracy after, random": "without random",
    "answered rightly": "right",
    "half: units": "half: units",
    "half: units, random": "random",
    "half: share of units": "half: share",
    "half: norm": "half: norm",
}


def short_table(comparison: SiteComparison) -> pd.DataFrame:
    """What a terminal shows of the table: the measures without their intervals."""
    import pandas as pd

    table = comparison.to_frame()
    return pd.DataFrame({shown: table[name] for name, shown in _SHOWN.items()})


def save_comparison(out: Path, comparison: SiteComparison) -> None:
    """Write a run: manifest, tables, figures, and the comparison itself; :meth:`SiteComparison.load` reads it."""
    manifest = {"command": "heads", **comparison.manifest()}
    with output_folder(out, manifest) as folder:
        folder.write_table("sites", comparison.to_frame())
        folder.write_table("curves", comparison.curves_frame())
        folder.write_table("units", comparison.units_frame())
        comparison.save(folder.path)
        for name, figure in comparison.figures().items():
            folder.write_figure(name, figure)
