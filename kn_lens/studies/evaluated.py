"""The evaluations of one data set by several editors, as tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.criteria.evaluation import EditEvaluation
from kn_lens.criteria.evaluation_findings import share_text
from kn_lens.criteria.sweep import LayerSweep
from kn_lens.prompts.prompt import Dropped
from kn_lens.studies.saved import dropped_fields, dropped_of, read_fields, reading, write_fields, writing

if TYPE_CHECKING:
    import pandas as pd

_NO_INTERVAL = float("nan"), float("nan")


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The evaluations of one data set.

    Attributes:
        data: Its name.
        data_hash: SHA-256 of the data.
        criteria: Those that were asked for.
        drawn: How many facts were drawn to be edited.
        dropped: Facts and questions left out of the draw.
        evaluations: By the editor's name.
        sweeps: By the editor's name.
    """

    data: str
    data_hash: str | None
    criteria: tuple[str, ...]
    drawn: int
    dropped: tuple[Dropped, ...]
    evaluations: Mapping[str, EditEvaluation]
    sweeps: Mapping[str, LayerSweep] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write the evaluations, the sweeps and the rest.

        Raises:
            OutputError: If they cannot be written.
        """
        with writing(folder):
            fields = {"data": self.data, "sha256": self.data_hash, "criteria": list(self.criteria), "drawn": self.drawn}
            fields |= {"evaluations": list(self.evaluations), "sweeps": list(self.sweeps)}
            write_fields(folder, {**fields, "dropped": dropped_fields(self.dropped)})
            for name, one in self.evaluations.items():
                one.save(folder / f"evaluation-{name}")
            for name, sweep in self.sweeps.items():
                sweep.save(folder / f"sweep-{name}")
        return folder

    @classmethod
    def load(cls, folder: Path) -> Evaluated:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds no evaluations.
        """
        with reading(folder, "evaluations"):
            fields = read_fields(folder)
            return cls(
                data=fields["data"],
                data_hash=fields["sha256"],
                criteria=tuple(fields["criteria"]),
                drawn=fields["drawn"],
                dropped=dropped_of(fields["dropped"]),
                evaluations={
                    name: EditEvaluation.load(folder / f"evaluation-{name}") for name in fields["evaluations"]
                },
                sweeps={name: LayerSweep.load(folder / f"sweep-{name}") for name in fields["sweeps"]},
            )

    def summary(self) -> pd.DataFrame:
        """The summaries of all editors, criterion by criterion."""
        parts = {name: one.summary() for name, one in self.evaluations.items()}
        return self._by_criterion(joined(self.data, parts))

    def by_label(self) -> pd.DataFrame:
        """The summaries by the labels that tell edits apart: columns ``label``, ``value``; empty without any."""
        import pandas as pd

        parts = []
        for name, one in self.evaluations.items():
            for label, values in one.labels.items():
                if len(values) > 1:
                    table = one.summary(by=label).rename(columns={label: "value"})
                    table.insert(0, "label", label)
                    parts.append(joined(self.data, {name: table}))
        return self._by_criterion(pd.concat(parts, ignore_index=True), "label") if parts else pd.DataFrame()

    def cascade(self) -> pd.DataFrame:
        """The cascades of all editors."""
        return joined(self.data, {name: one.cascade() for name, one in self.evaluations.items()})

    def findings(self) -> dict[str, list[str]]:
        """The sentences of each evaluation and sweep, by a heading: ``"P36, rome"``, ``"P36, rome, layers"``."""
        found = {f"{self.data}, {name}": one.findings() for name, one in self.evaluations.items()}
        return found | {f"{self.data}, {name}, layers": sweep.findings() for name, sweep in self.sweeps.items()}

    def _by_criterion(self, table: pd.DataFrame, *before: str) -> pd.DataFrame:
        order = {name: at for at, name in enumerate(self.criteria)}
        keys = table["criterion"].map(order)
        return (
            table.assign(_at=keys).sort_values([*before, "_at"], kind="stable", ignore_index=True).drop(columns="_at")
        )


def short_summary(table: pd.DataFrame, by: str | None = None) -> pd.DataFrame:
    """What a terminal shows of :meth:`Evaluated.summary`: success before and after with 95 % intervals, counts.

    Args:
        table: The summary, or the rows of one label of :meth:`Evaluated.by_label`.
        by: That label.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    found = []
    for row in rows:
        judged = row["questions"] > 0
        asked = f"{row['questions']}" if row["questions"] == row["asked"] else f"{row['questions']} of {row['asked']}"
        shown = {"criterion": row["criterion"].replace("_", ", "), "editor": row["editor"]}
        shown |= {} if by is None else {by: row["value"]}
        shown |= {"edits": row["edits"], "questions": asked}
        for measure, ends in (("success", ("low", "high")), ("likelier", ("likelier_low", "likelier_high"))):
            before, after = row[f"{measure}_before"], row[f"{measure}_after"]
            known = judged and after == after
            compares = measure == "success" and row["criterion"] == "locality"  # with the answers before: all alike
            shown[f"{measure} before"] = share_text(before, *_NO_INTERVAL) if known and not compares else None
            shown["after" if measure == "success" else "likelier after"] = (
                share_text(after, *(row[end] for end in ends)) if known else None
            )
        found.append({**shown, "KL": row["kl"]})
    return pd.DataFrame(found)


def short_cascade(table: pd.DataFrame) -> pd.DataFrame:
    """What a terminal shows of :meth:`Evaluated.cascade`: one row per stage, one column per editor."""
    import pandas as pd

    rows: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        share = share_text(row["share"], row["low"], row["high"]) if row["edits"] else "none can be asked"
        counts = f"{row['passed']} of {row['edits']}: " if row["edits"] else ""
        found.setdefault(row["stage"], {})[row["editor"]] = counts + share
    return pd.DataFrame([{"stage": stage, **editors} for stage, editors in found.items()])


def joined(data: str, parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables by editor as one, with the columns ``data`` and ``editor`` in front; empty without any."""
    import pandas as pd

    frames = [part.assign(data=data, editor=name) for name, part in parts.items()]
    if not frames:
        return pd.DataFrame()
    found = pd.concat(frames, ignore_index=True)
    return found.loc[:, ["data", "editor", *found.columns.drop(["data", "editor"])]]
