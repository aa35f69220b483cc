"""From data to patching between twins: which states carry the answer, how well a gradient tells, the files of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.errors import SettingsError, near_matches
from kn_lens.plots.circuits import attention_of_heads, neuron_activations
from kn_lens.plots.patch_effects import attribution_against_exact, patching
from kn_lens.plots.wording import Total, amount, at_the, counted
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.load import data_hash
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import count_reasons
from kn_lens.prompts.relations import Relation
from kn_lens.runs.output import output_folder, slug
from kn_lens.tracing.activation_patching import COMPONENTS, activation_patching, check_positions
from kn_lens.tracing.attribution_patching import attribution_patching, without_gradient
from kn_lens.tracing.draw import asked_of, cued_prompts
from kn_lens.tracing.metrics import check_metric
from kn_lens.tracing.pairs_of_runs import check_direction
from kn_lens.tracing.patch_effects import PatchEffects

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 10  # states in the table
_SHOWN = 6  # heads or neurons on a page of their own


@dataclass(frozen=True, kw_only=True)
class PatchSettings:
    """Settings of a run; see :func:`kn_lens.activation_patching`. By default one prompt of each of ten groups.

    With ``attribution`` the estimate from a gradient is computed beside the exact effects, where there is one.
    """

    component: str = "head"
    positions: str = "each"
    direction: str = "sufficiency"
    metric: str | None = None
    attribution: bool = True
    groups: int | None = 10
    prompts: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse what can be seen to be wrong before any model is loaded.

        Raises:
            SettingsError: Naming the first such setting.
        """
        check_metric(self.metric)
        check_positions(self.positions)
        check_direction(self.direction)
        if self.component not in COMPONENTS:
            near = near_matches(self.component, COMPONENTS)
            raise SettingsError(f"no component {self.component!r}.{near} Components: {', '.join(COMPONENTS)}")


@dataclass(frozen=True, kw_only=True)
class Patched:
    """The effects of one data set, and their estimate if it was asked for, or why there is none."""

    data: str
    kind: str
    batch: PromptBatch
    exact: PatchEffects
    estimate: PatchEffects | None
    data_hash: str | None
    no_estimate: str | None = None

    def top(self, count: int = _ROWS) -> pd.DataFrame:
        """The states with the largest |mean effect|, beside the estimate's mean."""
        frame = self.averages()
        frame = frame.assign(size=frame["mean"].abs()).sort_values("size", ascending=False, kind="stable")
        shown = frame.head(count).drop(columns=["data", "size"])
        return shown.assign(share=[self.total.share(mean) for mean in shown["mean"]])

    @property
    def total(self) -> Total:
        """What the twins take from the answer."""
        return Total.of(self.exact.total_effect(), self.exact.prompts, self.exact.metric)

    def averages(self) -> pd.DataFrame:
        """Mean effects by (class of position,) layer (and unit), and those of the estimate."""
        frame = self.exact.average()
        if self.estimate is not None:
            frame["estimate"] = self.estimate.average()["mean"]
        frame.insert(0, "data", self.data)
        return frame


def patch(model: Any, data: Relation | MinimalPairs, settings: PatchSettings) -> Patched:
    """Patch between the prompts of a data set and their twins."""
    batch = cued_prompts(model, data, settings.groups, settings.prompts, settings.seed, twins=True)
    options: Any = {
        "component": settings.component,
        "positions": settings.positions,
        "direction": settings.direction,
        "metric": settings.metric,
    }
    without = without_gradient(settings.metric, settings.direction) if settings.attribution else None
    estimated = settings.attribution and without is None
    return Patched(
        data=data.name,
        kind=data.kind,
        batch=batch,
        exact=activation_patching(model, batch, **options),
        estimate=attribution_patching(model, batch, **options) if estimated else None,
        data_hash=data_hash(data),
        no_estimate=without,
    )


def findings(found: Patched) -> list[str]:
    """Sentences computed from the numbers of this run, whichever way they came out."""
    exact, whole, metric = found.exact, found.total, found.exact.metric
    frame: Any = exact.average()
    best = frame.loc[frame["mean"].idxmax()]
    place = f"{int(best['layer'])}:{int(best['unit'])}" if exact.has_units else f"layer {int(best['layer'])}"
    where = at_the(best["class"]) if exact.positions == "each" else "at all positions"
    known = best["low"] == best["low"]
    size = amount(best["mean"], best["low"], best["high"], metric)
    share = f", {whole.share(best['mean']):.0%} of the total" if whole.is_loss else ""
    choice = ", an interval not corrected for that choice" if known else ""
    sentences = [
        f"{found.data}: {whole.sentence('the cue of a twin', f'{counted(exact.prompts)} answered rightly')}.",
        f"{found.data}: of {len(frame)} mean effects ({exact.component}, {exact.direction}) that of {place} {where} "
        f"is the largest, {size}{share}{choice}.",
    ]
    if known:
        rounding = 1e-5 * frame["mean"].abs().max()  # a state that cannot reach the answer differs by no more
        moved = frame[(frame["low"].abs() > rounding) | (frame["high"].abs() > rounding)]
        apart = int(((moved["low"] > 0) | (moved["high"] < 0)).sum())
        sentences.append(
            f"{found.data}: {apart} of the {len(moved)} mean effects that are not 0 throughout have a 95 % "
            f"interval without 0, not corrected for their number."
        )
    if found.estimate is not None:
        agreement = found.estimate.correlation(exact)
        follows = (
            f"follows the exact effects of {agreement.states} states that can matter with r = {agreement.pearson:.3f}, "
            f"ρ = {agreement.spearman:.3f}"
            if agreement.pearson == agreement.pearson
            else "cannot be compared with the exact effects: one side is without spread, or rounding beside the other"
        )
        sentences.append(f"{found.data}: the estimate from one gradient {follows}.")
    elif found.no_estimate is not None:
        sentences.append(f"{found.data}: there is no estimate from one gradient: {found.no_estimate}.")
    return sentences


def save_patches(
    out: Path, model: Any, found: Sequence[Patched], settings: PatchSettings, sentences: Sequence[str]
) -> None:
    """Write a run: manifest, tables, effects, figures."""
    import pandas as pd

    provenance = found[0].exact.provenance
    manifest = {
        "command": "patch",
        "settings": asdict(settings),
        "provenance": provenance,
        "data": {
            entry.data: {
                "sha256": entry.data_hash,
                "prompts": len(entry.exact),
                "dropped": count_reasons(entry.exact.dropped),
                "metric": entry.exact.metric,
                "effects": f"patching-{slug(entry.data)}",
                "estimate": None if entry.estimate is None else f"estimate-{slug(entry.data)}",
                "correlation": None if entry.estimate is None else asdict(entry.estimate.correlation(entry.exact)),
            }
            for entry in found
        },
        "findings": list(sentences),
    }
    with output_folder(out, manifest) as folder:
        figures = folder.path / "figures"
        figures.mkdir()
        folder.write_table("averages", pd.concat([entry.averages() for entry in found]))
        folder.write_table(
            "prompts", pd.concat([entry.exact.prompts_frame().assign(data=entry.data) for entry in found])
        )
        dropped = [vars(item) | {"data": entry.data} for entry in found for item in entry.exact.dropped]
        folder.write_table("dropped", pd.DataFrame(dropped, columns=["data", "text", "reason", "source"]))
        for entry in found:
            name, exact = slug(entry.data), entry.exact
            subtitle = f"{provenance['model']}, {entry.data}"
            folder.write_table(f"effects-{name}", exact.to_frame())
            exact.save(folder.path / f"patching-{name}")
            if settings.component == "neuron":
                page = neuron_activations(model, asked_of(entry.batch, exact.prompts), _top_units(exact))
                page.save(figures / f"neurons-{name}.html")
            else:
                folder.write_figure(f"patching-{name}", patching(exact, subtitle=subtitle))
            if settings.component in ("head", "q", "pattern"):
                page = attention_of_heads(model, asked_of(entry.batch, exact.prompts[:1]), _top_units(exact))
                page.save(figures / f"attention-{name}.html")
            elif not exact.has_units and settings.positions == "each":
                folder.write_figure(f"tokens-{name}", patching(exact, 0, subtitle=subtitle))
            if entry.estimate is not None:
                entry.estimate.save(folder.path / f"estimate-{name}")
                figure = attribution_against_exact(entry.estimate, exact, subtitle=subtitle)
                folder.write_figure(f"attribution-{name}", figure)


def _top_units(effects: PatchEffects) -> list[tuple[int, int]]:
    """The heads or neurons with the largest |mean effect|, at whichever position."""
    frame = effects.average()
    frame = frame.assign(size=frame["mean"].abs()).sort_values("size", ascending=False, kind="stable")
    return list(dict.fromkeys((int(layer), int(unit)) for layer, unit in frame[["layer", "unit"]].to_numpy()))[:_SHOWN]
