"""What the comparison of sites returns: results by data set and site, as a table, sentences and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kn_lens.editing.effect import UnitEffect
from kn_lens.experiments.sites_findings import sites_findings
from kn_lens.localization.curve import AblationCurve, HalfPoint
from kn_lens.localization.localize import Localization
from kn_lens.localization.measures import concentration
from kn_lens.plots.head_map import head_map
from kn_lens.plots.localization import layers_of_units
from kn_lens.plots.sites import ablation_curves, accuracy_taken, sites_table
from kn_lens.prompts.prompt import count_reasons
from kn_lens.sites import UNIT_NAMES

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True)
class SiteResult:
    """One data set at one site.

    Attributes:
        found: Attribution, units found on half of the prompts, and measures of localization.
        effect: The units found taken away from the other half.
        curve: More and more of the top units taken away from the other half.
    """

    found: Localization
    effect: UnitEffect
    curve: AblationCurve

    @property
    def data(self) -> str:
        """Name of the data set."""
        return self.found.data

    @property
    def site(self) -> str:
        """Where the units live."""
        return self.curve.site

    def row(self) -> dict[str, Any]:
        """All measures; bounds of intervals end in ``low`` and ``high``."""
        measures, edit = self.found.summary(), self.effect.summary()
        one_percent = max(1, round(self.curve.n_units / 100))
        return {
            "data": self.data,
            "kind": self.found.kind,
            "site": self.site,
            "units of the site": self.curve.n_units,
            "groups": measures["groups"],
            "prompts searched": len(self.found.selection),
            "prompts held out": len(self.effect),
            **{name: measures[name] for name in ("|KN|", "τ", "R₁²", "stability", "Gini", "participation")},
            "top 1 % units": one_percent,
            "top 1 % share": float(concentration(self.found.scores, (one_percent,)).shares.mean()),
            "top 10 share": measures["top 10 share"],
            "accuracy before": edit["accuracy_before"],
            "accuracy after": edit["accuracy_after"],
            "accuracy after low": edit["accuracy_after_low"],
            "accuracy after high": edit["accuracy_after_high"],
            "accuracy after, random": edit["control_accuracy"],
            "accuracy percentile": edit["percentile_accuracy"],
            "flipped": edit["flipped"],
            "flipped, random": edit["control_flipped"],
            "answered wrongly": self.curve.answered_wrongly,
            **_half_columns(self.curve.k_half(), ""),
            **_half_columns(self.curve.control_k_half(), ", random"),
        }


@dataclass(frozen=True, kw_only=True)
class SiteComparison:
    """Sites beside each other, data set by data set.

    Attributes:
        entries: The results, by data set and then by site.
        model: Name of the model.
        n_layers: Its layers.
        settings: The arguments that made it.
        provenance: Model, hashes, versions (of the first result; its prompts' hash is of the first data set).
    """

    entries: tuple[SiteResult, ...]
    model: str
    n_layers: int
    settings: dict[str, Any]
    provenance: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row per data set and site.

        Columns ``half: …`` tell where half of the answers flip: NaN where they never do on the curve (the bounds of the
        interval are then infinite).
        """
        import pandas as pd

        return pd.DataFrame([entry.row() for entry in self.entries])

    def curves_frame(self) -> pd.DataFrame:
        """The ablation curves, one row per data set, site and k; see :meth:`AblationCurve.to_frame`."""
        import pandas as pd

        frames = []
        for entry in self.entries:
            frames.append(entry.curve.to_frame())
            frames[-1].insert(0, "data", entry.data)
            frames[-1].insert(1, "site", entry.site)
        return pd.concat(frames, ignore_index=True)

    def units_frame(self) -> pd.DataFrame:
        """The units found, one row per data set, site, group and unit."""
        import pandas as pd

        return pd.concat(
            [
                result.to_frame().assign(data=entry.data)
                for entry in self.entries
                for result in entry.found.found.values()
            ],
            ignore_index=True,
        )

    def findings(self) -> list[str]:
        """Sentences computed from the numbers, whichever way they came out."""
        return sites_findings(self.to_frame())

    def figures(self) -> dict[str, go.Figure]:
        """Figures by name: ``curves``, ``table``, ``accuracy``, ``layers``, and ``heads`` where heads were compared."""
        settings = self.settings
        subtitle = f"{self.model}, {settings['ablation']} ablation, positions: {settings['positions']}"
        units = {
            f"{entry.data}, {UNIT_NAMES[entry.site][1]}": [
                unit for found in entry.found.found.values() for unit in found.units
            ]
            for entry in self.entries
        }
        maps = {
            entry.data: entry.found.scores.values.mean(0) / entry.found.scores.probability.mean()
            for entry in self.entries
            if entry.site == "head"
        }
        figures = {
            "curves": ablation_curves([(entry.data, entry.curve) for entry in self.entries], subtitle),
            "table": sites_table(self.to_frame(), subtitle),
            "accuracy": accuracy_taken([(entry.data, entry.effect) for entry in self.entries], subtitle),
            "layers": layers_of_units(units, self.n_layers, subtitle),
        }
        if maps:
            n = sum(len(entry.found.scores) for entry in self.entries if entry.site == "head")
            about = f"{self.model}, positions: {settings['positions']}; {n} prompts in all; above 0: for the answer"
            figures["heads"] = head_map(maps, "Attribution to attention heads", about, "mean α / mean p(target)")
        return figures

    def manifest(self) -> dict[str, Any]:
        """Settings, provenance, findings, and what was asked and left out of each data set."""
        return {
            "settings": self.settings,
            "provenance": self.provenance,
            "findings": self.findings(),
            "data": {
                entry.data: {
                    "sha256": entry.found.data_hash,
                    "selection": entry.found.selection,
                    "test": entry.found.test,
                    "dropped": count_reasons(entry.found.scores.dropped),
                }
                for entry in self.entries
            },
        }


def _half_columns(point: HalfPoint, of: str) -> dict[str, float]:
    columns = {}
    for name, estimate in (("k", point.k), ("share of units", point.share), ("norm", point.norm)):
        columns |= {
            f"half: {name}{of}": estimate.value,
            f"half: {name}{of} low": estimate.low,
            f"half: {name}{of} high": estimate.high,
        }
    return columns
