"""What is shown of scores of units: integrated gradients and the two cheaper ones."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from kn_lens.localization.measures import Concentration, concentration
from kn_lens.plots.head_map import head_map
from kn_lens.plots.localization import concentration_curves, layers_of_units
from kn_lens.plots.wording import counted
from kn_lens.prompts.cue_pairs import cue_labels
from kn_lens.runs.method_pages.material import CHOSEN, NOTHING, Material, MethodPage, Shown, each_apart
from kn_lens.sites import UNIT_NAMES
from kn_lens.statistics import bootstrap_mean
from kn_lens.studies.shares import around, told

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.attribution.scores import AttributionScores

_TOP = 10  # units of a prompt that count as its own
_ROWS = 100  # units in the table
_CHUNK = 64  # prompts whose scores are sorted at once


def show_scores(of: Material) -> Shown:
    """The units of the largest mean scores, their layers, and how concentrated scores are."""
    parts = of.each(lambda variant, scores: _scores(of, variant, scores))
    return parts[0] if parts else NOTHING


def _scores(of: Material, variant: str, scores: AttributionScores) -> Shown:
    site, (_, n_layers, _) = scores.site, scores.values.shape
    units, top = _units(scores)
    layers = _layers(scores)
    curve = _concentration(scores)
    figures = {
        "layers": layers_of_units({f"{of.label}, top {_TOP} of each prompt": top}, n_layers, of.subtitle(variant)),
        "concentration": concentration_curves({of.label: curve}, of.subtitle(variant)),
    }
    if site == "head":
        note = f"{of.subtitle(variant)}; mean over {counted(scores.prompts)}"
        heads = head_map(scores.values.mean(0), "Scores of heads", note, "mean score")
        figures = {"heads": heads, **figures}
    return Shown(
        findings=_findings(of.called(variant), scores, units, layers, curve),
        figures=figures,
        tables={"units": units, "layers": layers, "concentration": curve.to_frame()},
    )


def _units(scores: AttributionScores) -> tuple[pd.DataFrame, list[tuple[int, int]]]:
    """The units of the largest |mean score| with intervals over facts or pairs, and the top units of each prompt."""
    import pandas as pd

    flat = scores.values.flatten(1)
    width = scores.values.shape[2]
    own = flat.topk(min(_TOP, flat.shape[1]), dim=1).indices.flatten().tolist()
    counts = Counter(own)
    chosen = flat.mean(0).abs().topk(min(_ROWS, flat.shape[1])).indices
    mean, low, high = bootstrap_mean(flat[:, chosen].double().numpy(), clusters=cue_labels(scores.prompts))
    rows = [
        {"layer": at // width, "unit": at % width}
        | {"mean": float(mean[place]), "low": float(low[place]), "high": float(high[place])}
        | {f"among the top {_TOP} of, share of prompts": counts[at] / len(scores)}
        for place, at in enumerate(chosen.tolist())
    ]
    return pd.DataFrame(rows), [(at // width, at % width) for at in own]


def _layers(scores: AttributionScores) -> pd.DataFrame:
    """Each layer's share of Σ|score|, mean over prompts with its interval; prompts without any score left out."""
    import pandas as pd

    size = scores.values.abs().sum(2).double()
    known = size.sum(1) > 0
    shares = (size[known] / size[known].sum(1, keepdim=True)).numpy()
    labels = [label for label, has in zip(cue_labels(scores.prompts), known.tolist(), strict=True) if has]
    mean, low, high = bootstrap_mean(shares, clusters=labels)
    columns = {"layer": range(len(mean)), "share of Σ|score|": mean, "low": low, "high": high, "prompts": len(shares)}
    return pd.DataFrame(columns)


def _concentration(scores: AttributionScores) -> Concentration:
    """Concentration of the scores, few prompts at once: all units of each are sorted."""
    parts = [concentration(scores.values[at : at + _CHUNK]) for at in range(0, len(scores), _CHUNK)]
    return Concentration(
        ks=parts[0].ks,
        n_units=parts[0].n_units,
        **{
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("shares", "gini", "participation_ratio")
        },
    )


def _findings(called: str, scores: AttributionScores, units: Any, layers: Any, curve: Concentration) -> list[str]:
    one, many = UNIT_NAMES[scores.site]
    best, most = units.iloc[0], layers.loc[layers["share of Σ|score|"].idxmax()]
    ten = curve.ks.index(_TOP) if _TOP in curve.ks else len(curve.ks) - 1
    choice = CHOSEN if best["low"] == best["low"] else ""
    held = float(curve.shares[:, ten].nanmean())
    said = [
        f"{called}: the {one} with the largest mean score, whichever way, is {best['layer']:.0f}:{best['unit']:.0f}: "
        f"{told(best['mean'], '.3g')}{around(best['low'], best['high'], '.3g')}{choice}, mean of "
        f"{counted(scores.prompts)}; it is among the top {_TOP} of {best.iloc[-1]:.0%} of them.",
        f"{called}: the top {curve.ks[ten]} of {curve.n_units:,} {many} hold {held:.0%} of Σ|score|; layer "
        f"{most['layer']:.0f} holds the most of any layer, {most['share of Σ|score|']:.0%}"
        f"{around(most['low'], most['high'], '.0%')}.",
    ]
    gap = scores.convergence_delta.abs()
    if not bool(gap.isnan().all()):
        most = float(gap.nan_to_num().max())
        said.append(
            f"{called}: the scores of a layer miss the change of p(answer) that they share out by at most {most:.2g}."
        )
    return said


_UNITS = "averaged over prompts: which units score most, in which layers they lie, and how few hold how much."

PAGES = {
    "integrated_gradients": MethodPage(
        about=f"How much each unit carries of the answer, by integrated gradients, {_UNITS}",
        show=show_scores,
        groups=each_apart,
    ),
    "gradient_times_activation": MethodPage(
        about=f"The gradient of the answer at each unit times its activation, {_UNITS}",
        show=show_scores,
        groups=each_apart,
    ),
    "max_activation": MethodPage(
        about=f"How strongly each unit is active, {_UNITS}",
        show=show_scores,
        groups=each_apart,
    ),
}
"""By method."""
