"""What localizations found, in a form small enough to keep: units and measures, not the attribution of every unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from kn_lens.localization.localize import Localization
from kn_lens.localization.measures import Concentration
from kn_lens.prompts.prompt import Dropped
from kn_lens.results import Result
from kn_lens.sites import UNIT_NAMES
from kn_lens.studies.saved import read_fields, reading, write_fields, writing

if TYPE_CHECKING:
    import pandas as pd

KIND_NAMES = {"facts": "facts", "pairs": "agreement"}
"""What a reader calls the kinds of data."""

_TOP = 10


@dataclass(frozen=True, kw_only=True)
class Localized(Result):
    """What was found for one data set, without the attribution of every unit.

    Attributes:
        data: Its name.
        data_kind: ``"facts"`` or ``"pairs"``.
        rows: Measures of each group, the columns of :meth:`Localization.groups_frame` but with a list of units, and
            the share of Σ|α| that its prompts' top 10 units hold (``"top 10 share"``).
        prompts, searched: How many prompts were attributed, and how many of them searched.
        accuracy: Share of the prompts answered rightly.
        gap: Largest |convergence delta| of the attribution.
        n_layers: Layers of the model.
        shares, gini, participation_ratio, ks, n_units: See :class:`Concentration`.
        dropped: Prompts left out, with reasons.
    """

    data: str
    data_kind: str
    rows: list[dict[str, Any]]
    prompts: int
    searched: int
    accuracy: float
    gap: float
    n_layers: int
    shares: Float[Tensor, "prompt k"]
    gini: Float[Tensor, " prompt"]
    participation_ratio: Float[Tensor, " prompt"]
    ks: tuple[int, ...]
    n_units: int
    dropped: tuple[Dropped, ...] = ()

    @classmethod
    def of(cls, found: Localization) -> Localized:
        """What to keep of a localization."""
        curve = found.curve
        ten = curve.shares[:, curve.ks.index(_TOP) if _TOP in curve.ks else -1]
        rows: list[dict[str, Any]] = found.groups_frame().to_dict("records")  # type: ignore[assignment]
        for row in rows:
            units = found.found[row["group"]]
            row["units"] = [[*unit] for unit in units.units]
            row["frequency"] = list(units.frequency)
            row["top 10 share"] = float(ten[found.scores.groups[row["group"]]].mean())
            row["in range"] = bool(row["in range"])
        return cls(
            data=found.data,
            data_kind=found.kind,
            rows=rows,
            prompts=len(found.scores),
            searched=len(found.selection),
            accuracy=found.accuracy,
            gap=float(found.scores.convergence_delta.abs().max()),
            n_layers=found.scores.values.shape[1],
            shares=curve.shares,
            gini=curve.gini,
            participation_ratio=curve.participation_ratio,
            ks=curve.ks,
            n_units=curve.n_units,
            dropped=found.scores.dropped,
            settings=found.scores.settings,
            provenance=found.scores.provenance,
        )

    @property
    def curve(self) -> Concentration:
        """Concentration of |α|."""
        return Concentration(
            shares=self.shares,
            ks=self.ks,
            gini=self.gini,
            participation_ratio=self.participation_ratio,
            n_units=self.n_units,
        )

    @property
    def units(self) -> list[tuple[int, int]]:
        """Units of all groups; one found for two groups is there twice."""
        return [(layer, unit) for row in self.rows for layer, unit in row["units"]]

    def units_frame(self) -> pd.DataFrame:
        """One row per unit found: data, kind, group, layer, unit, and the share of prompts it is coarse in."""
        import pandas as pd

        rows = [
            {"data": self.data, "kind": KIND_NAMES[self.data_kind], "group": row["group"]}
            | {"layer": layer, "unit": unit, "frequency": frequency}
            for row in self.rows
            for (layer, unit), frequency in zip(row["units"], row["frequency"], strict=True)
        ]
        return pd.DataFrame(rows, columns=["data", "kind", "group", "layer", "unit", "frequency"])


@dataclass(frozen=True, kw_only=True)
class LocalizedSets:
    """What was found for several data sets: the result of E1 and of E3.

    Attributes:
        sets: By data set.
        left_out: Why others have none, by name.
        settings: Of the localizations, with the names of the data.
        provenance: Model, hashes, versions (the prompts' hash is of the first data set).
    """

    sets: tuple[Localized, ...]
    left_out: dict[str, str]
    settings: dict[str, Any]
    provenance: dict[str, Any]

    def of_kind(self, kind: str) -> list[Localized]:
        """The sets of ``"facts"`` or of ``"pairs"``."""
        return [entry for entry in self.sets if entry.data_kind == kind]

    @property
    def subtitle(self) -> str:
        """Model and settings, for figures."""
        rule, steps = self.settings["rule"], self.settings["steps"]
        many = UNIT_NAMES[self.settings["site"]][1]
        return f"{self.provenance['model']}, {many}, integrated gradients ({rule}, {steps} steps)"

    def dropped(self) -> list[tuple[str, Dropped]]:
        """Prompts, and whole data sets, that were left out."""
        return [*dropped_sets(self.left_out), *((entry.data, item) for entry in self.sets for item in entry.dropped)]

    def save(self, folder: Path) -> Path:
        """Write each set into a subfolder, and the rest as JSON.

        Raises:
            OutputError: If it cannot be written.
        """
        fields = {name: getattr(self, name) for name in ("left_out", "settings", "provenance")}
        with writing(Path(folder)) as out:
            for at, entry in enumerate(self.sets):
                entry.save(out / str(at))
            write_fields(out, {"sets": len(self.sets), **fields})
        return out

    @classmethod
    def load(cls, folder: Path) -> LocalizedSets:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds none, or a damaged one.
        """
        with reading(Path(folder), "localizations") as source:
            fields = read_fields(source)
            sets = tuple(Localized.load(source / str(at)) for at in range(fields["sets"]))
            return cls(sets=sets, **{name: fields[name] for name in ("left_out", "settings", "provenance")})


def dropped_sets(left_out: Mapping[str, str]) -> list[tuple[str, Dropped]]:
    """Data sets left out, as dropped prompts are told."""
    return [(name, Dropped(text="the whole data set", reason=reason)) for name, reason in left_out.items()]


def left_out_findings(left_out: Mapping[str, str]) -> list[str]:
    """A sentence for each data set left out."""
    return [f"{name} is left out: {reason}." for name, reason in left_out.items()]
