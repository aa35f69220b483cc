"""Switch the found units off, on prompts that they were not found on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.attribution.scores import AttributionScores
from kn_lens.errors import OutputError, UnitsError, near_matches
from kn_lens.plots import control_distribution, frequency_scatter, layers_of_units, probability_change
from kn_lens.prompts.prompt import Prompt, count_reasons
from kn_lens.runs.output import output_folder, read_manifest, slug
from kn_lens.sites import Unit
from kn_lens.suppression.effect import UnitEffect
from kn_lens.suppression.frequency_effect import FrequencyEffect

if TYPE_CHECKING:
    import pandas as pd


def parse_units(text: str) -> list[Unit]:
    """``"9:1094,10:2096"`` as ``[(9, 1094), (10, 2096)]``.

    Raises:
        UnitsError: Naming what cannot be read.
    """
    units = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        layer, separator, index = part.partition(":")
        if not (separator and layer.strip().isdecimal() and index.strip().isdecimal()):
            raise UnitsError(f"cannot read unit {part!r}; write layer:index, several with commas: 9:1094,10:2096")
        units.append((int(layer), int(index)))
    if not units:
        raise UnitsError("no units given; write layer:index, several with commas: 9:1094,10:2096")
    return units


@dataclass(frozen=True, kw_only=True)
class FormerRun:
    """What a ``localize`` run left for one data set.

    Attributes:
        data: The data set's name.
        sha256: Of its file.
        units: Units by group.
        held_out: The prompts that the units were not searched on.
        settings, provenance: Of the run.
    """

    data: str
    sha256: str | None
    units: dict[str, list[Unit]]
    held_out: list[Prompt]
    settings: dict[str, Any]
    provenance: dict[str, Any]


def read_localization(folder: Path, data: str) -> FormerRun:
    """Units, held-out prompts and settings of a ``localize`` run.

    Args:
        folder: Where it was written.
        data: The data set's name in that run, or the path it was read from.

    Raises:
        OutputError: If the folder is no such run, or ``data`` is not in it.
    """
    manifest = read_manifest(folder)
    if manifest.get("command") != "localize":
        raise OutputError(f"{folder} was written by kn-lens {manifest.get('command')}, not by kn-lens localize")
    known = manifest["data"]
    name = data if data in known else Path(data).stem
    if name not in known:
        near = near_matches(data, known)
        raise OutputError(f"{folder} holds no units for {data!r}.{near} It has: {', '.join(known)}")
    entry = known[name]
    scores = AttributionScores.load(folder / entry["scores"])
    held_out = [scores.prompts[index] for index in entry["test"]]
    if not held_out:
        raise OutputError(f"{folder} held no prompts of {name!r} out; localize with --prompts 2 or more")
    return FormerRun(
        data=name,
        sha256=entry["sha256"],
        units={group: [(layer, index) for layer, index in found] for group, found in entry["units"].items()},
        held_out=held_out,
        settings=manifest["settings"],
        provenance=manifest["provenance"],
    )


def units_of(units: list[Unit] | Mapping[str, list[Unit]]) -> list[Unit]:
    """All units, of one list or of all groups."""
    return [unit for found in units.values() for unit in found] if isinstance(units, Mapping) else list(units)


def answers_table(effect: UnitEffect) -> pd.DataFrame:
    """Accuracy, flips and log-probability: before, after, with random units, and where the edit lies among those."""
    import pandas as pd

    summary = effect.summary()

    def row(name: str, key: str, before: str, after: str, control: str, direction: str) -> dict[str, str]:
        rank = summary.get(f"percentile_{key}")
        if rank is None:
            among = "–"
        elif rank != rank:
            among = f"{summary['distinct_draws']} distinct draws: too few to tell"
        else:
            among = f"{rank:.0f} % of the draws lie below ({direction} is beyond chance)"
        return {"measure": name, "before": before, "units": after, "random units": control, "among random draws": among}

    def share(when: str) -> str:
        low, high = summary[f"accuracy_{when}_low"], summary[f"accuracy_{when}_high"]
        return f"{summary[f'accuracy_{when}']:.1%} [{low:.0%}, {high:.0%}]"

    def control(key: str, form: str) -> str:
        return format(summary[f"control_{key}"], form) if f"control_{key}" in summary else "–"

    change = "log_probability_change"
    return pd.DataFrame(
        [
            row("accuracy", "accuracy", share("before"), share("after"), control("accuracy", ".1%"), "0 %"),
            row("answers flipped", "flipped", "–", f"{summary['flipped']:.1%}", control("flipped", ".1%"), "100 %"),
            row("change of log p(target)", change, "–", f"{summary[change]:.3f}", control(change, ".3f"), "0 or 100 %"),
        ]
    ).rename(columns={"units": f"{summary['units']:.1f} units {_edit(effect)}"})


def _edit(effect: UnitEffect) -> str:
    return f"× {effect.factor:g}" if effect.settings.get("ablation", "zero") == "zero" else effect.edit


def frequency_table(result: FrequencyEffect) -> pd.DataFrame:
    """Spearman's ρ of change and count over the pairs seen, within each word, and with unseen pairs as count 0."""
    import pandas as pd

    kinds = {
        "pairs seen": result.overall,
        "pairs seen, within each word": result.within,
        "unseen pairs as count 0": result.with_unseen,
    }
    return pd.DataFrame(
        [
            {"over": name, "n": found.n, "ρ": found.rho, "low": found.low, "high": found.high, "p": found.p}
            | {"|ρ| found with 80 % power": found.detectable}
            for name, found in kinds.items()
        ]
    )


def comparison(effects: Mapping[str, UnitEffect]) -> pd.DataFrame:
    """One row per data set: accuracy before and after, flips, and the control."""
    import pandas as pd

    return pd.DataFrame([{"data": name, **effect.summary()} for name, effect in effects.items()])


def save_suppression(
    out: Path,
    effects: Mapping[str, UnitEffect],
    units: Mapping[str, list[Unit]],
    n_layers: int,
    *,
    frequency: Mapping[str, FrequencyEffect] | None = None,
    **extra: Any,
) -> None:
    """Write a run: manifest, tables, tensors and figures.

    Args:
        out: The folder.
        effects: Effects by data set.
        units: The units scaled, by data set.
        n_layers: Layers of the model.
        frequency: By data set, the effects against frequency, where counts were given.
        **extra: For the manifest.
    """
    first = next(iter(effects.values()))
    manifest = {
        "command": "suppress",
        "settings": first.settings,
        "provenance": first.provenance,
        "units": dict(units),
        "dropped": {name: count_reasons(effect.dropped) for name, effect in effects.items()},
        **extra,
    }
    for name, result in (frequency or {}).items():
        about = {"source": result.source, **result.settings["counts"]}
        manifest.setdefault("frequency", {})[name] = {"counts": about, "finding": result.sentence()}
    with output_folder(out, manifest) as folder:
        folder.write_table("summary", comparison(effects))
        for name, effect in effects.items():
            subtitle = f"{first.provenance['model']}, {name}, site {effect.site}"
            suffix = f"-{slug(name)}"
            folder.write_table(f"probes{suffix}", effect.to_frame())
            folder.write_table(f"answers{suffix}", effect.answers_frame())
            effect.save(folder.path / f"effect{suffix}")
            folder.write_figure(f"probability-change{suffix}", probability_change(effect, subtitle))
            folder.write_figure(f"controls{suffix}", control_distribution(effect, subtitle))
            if frequency and name in frequency:
                result = frequency[name]
                folder.write_table(f"frequency{suffix}", result.to_frame())
                result.save(folder.path / f"frequency-effect{suffix}")
                folder.write_figure(f"frequency{suffix}", frequency_scatter(result, subtitle))
        folder.write_figure("layers", layers_of_units(units, n_layers, first.provenance["model"]))
