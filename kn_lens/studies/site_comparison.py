"""What the comparison of sites returns: results by data set and site, as a table, sentences and figures."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens._version import __version__
from kn_lens.errors import OutputError
from kn_lens.localization.curve import AblationCurve, HalfPoint
from kn_lens.localization.localize import Localization
from kn_lens.localization.measures import concentration
from kn_lens.plots.head_map import head_map
from kn_lens.plots.localization import layers_of_units
from kn_lens.plots.sites import ablation_curves, accuracy_taken, sites_table
from kn_lens.prompts.prompt import count_reasons
from kn_lens.sites import UNIT_NAMES
from kn_lens.studies.sites_findings import sites_findings
from kn_lens.suppression.effect import UnitEffect

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


_FIELDS = "comparison.json"


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

    def save(self, folder: Path) -> Path:
        """Write attribution, effect and curve into subfolders."""
        self.found.save(folder)
        self.effect.save(folder / "effect")
        self.curve.save(folder / "curve")
        return folder

    @classmethod
    def load(cls, folder: Path) -> SiteResult:
        """Read back what :meth:`save` wrote."""
        return cls(
            found=Localization.load(folder),
            effect=UnitEffect.load(folder / "effect"),
            curve=AblationCurve.load(folder / "curve"),
        )

    def row(self) -> dict[str, Any]:
        """All measures; bounds of intervals end in ``low`` and ``high``."""
        measures, edit, nan = self.found.summary(), self.effect.summary(), float("nan")
        flips = self.curve.flipped.float().mean(0)
        random_flips = self.curve.control_flipped.float().mean((0, 2))
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
            "accuracy after, random": edit.get("control_accuracy", nan),
            "accuracy percentile": edit.get("percentile_accuracy", nan),
            "accuracy p": edit.get("p_accuracy", nan),
            "draws": edit.get("draws", 0),
            "distinct draws": edit.get("distinct_draws", 0),
            "flipped": edit["flipped"],
            "flipped, random": edit.get("control_flipped", nan),
            "answered rightly": len(self.curve),
            "answered rightly, groups": len(self.curve.groups),
            "answered wrongly": self.curve.answered_wrongly,
            "flipped at most": float(flips.max()),
            "flipped at most, random": float(random_flips.max()),
            "flipped at the largest k": float(flips[-1]),
            "largest k": self.curve.ks[-1],
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

    def save(self, folder: str | Path) -> Path:
        """Write everything into ``folder`` (made if needed), each data set and site into a subfolder.

        Raises:
            OutputError: If it cannot be written.
        """
        folder = Path(folder)
        names: list[str] = []
        for entry in self.entries:
            name = re.sub(r"[^\w.-]+", "-", f"{entry.data}-{entry.site}")
            names.append(name if name not in names else f"{name}-{len(names)}")
            entry.save(folder / names[-1])
        fields = {
            "kind": type(self).__name__,
            "kn_lens": __version__,
            "entries": names,
            **{name: getattr(self, name) for name in ("model", "n_layers", "settings", "provenance")},
        }
        try:
            (folder / _FIELDS).write_text(json.dumps(fields, indent=1, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from None
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> SiteComparison:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds no comparison, or a damaged one.
        """
        folder = Path(folder)
        try:
            fields = json.loads((folder / _FIELDS).read_text(encoding="utf-8"))
            entries = tuple(SiteResult.load(folder / name) for name in fields["entries"])
            return cls(
                entries=entries,
                **{name: fields[name] for name in ("model", "n_layers", "settings", "provenance")},
            )
        except OutputError:
            raise
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(f"{folder} holds no readable comparison of sites ({error})") from None

    def to_frame(self) -> pd.DataFrame:
        """One row per data set and site.

        Columns ``half: …`` tell where half of the answers flip, of prompts answered rightly: units taken away (mean
        over prompts; the rung of the curve is ``half: k``), NaN where they never do on the curve (the bounds of the
        interval are then infinite). Their intervals are over groups; those of accuracy are Wilson's over prompts.
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
    for name, estimate in (
        ("units", point.taken),
        ("k", point.k),
        ("share of units", point.share),
        ("norm", point.norm),
    ):
        columns |= {
            f"half: {name}{of}": estimate.value,
            f"half: {name}{of} low": estimate.low,
            f"half: {name}{of} high": estimate.high,
        }
    return columns
