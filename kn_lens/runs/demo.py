"""The paper's first question in one go: are facts more local than grammar, and does switching units off matter?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.editing.effect import UnitEffect
from kn_lens.editing.suppress import suppress
from kn_lens.prompts.load import data_hash, load_data
from kn_lens.runs.localize import Localization, LocalizeSettings, localize, save_localization
from kn_lens.runs.suppress import save_suppression, units_of

if TYPE_CHECKING:
    import pandas as pd

FACTS, AGREEMENT = "P36", "subject_verb_agreement"
_GROUPS, _PROMPTS, _CONTROLS = 6, 6, 100


def run_demo(model: Any, out: Path, seed: int = 0) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Localize and suppress the capital relation and subject-verb agreement, and write both runs.

    Args:
        model: A loaded model.
        out: Folder; ``localize`` and ``suppress`` are made in it.
        seed: Of every draw.

    Returns:
        Tables by title, and findings computed from them.
    """
    settings = LocalizeSettings(groups=_GROUPS, prompts=_PROMPTS, seed=seed)
    found: list[Localization] = []
    effects: dict[str, UnitEffect] = {}
    hashes: dict[str, str | None] = {}
    for name in (FACTS, AGREEMENT):
        data = load_data(name)
        hashes[name] = data_hash(data)
        found.append(localize(model, data, settings))
        here = found[-1]
        held_out = [here.scores.prompts[index] for index in here.test]
        units = {group: list(result.units) for group, result in here.found.items()}
        effects[name] = suppress(model, held_out, units, controls=_CONTROLS, seed=seed)
    units_by_data = {
        entry.data: units_of({g: list(result.units) for g, result in entry.found.items()}) for entry in found
    }
    save_localization(out / "localize", found, settings, model.cfg.n_layers)
    save_suppression(out / "suppress", effects, units_by_data, model.cfg.n_layers, data=hashes)
    table = compare_kinds(found, effects)
    return {"Facts beside agreement": table}, demo_findings(found, effects)


def compare_kinds(found: list[Localization], effects: dict[str, UnitEffect]) -> pd.DataFrame:
    """One column per data set: how local its units are, and what switching them off does to held-out prompts."""
    import pandas as pd

    columns = {}
    for entry in found:
        summary, effect = entry.summary(), effects[entry.data].summary()
        columns[entry.data] = {
            "kind": entry.kind,
            "groups": f"{summary['groups']}",
            "prompts: searched / held out": f"{len(entry.selection)} / {len(entry.test)}",
            "|KN|, mean over groups": f"{summary['|KN|']:.2f}",
            "τ": f"{summary['τ']:.2f}",
            "R₁²": f"{summary['R₁²']:.2f}",
            "stability (mean Jaccard)": f"{summary['stability']:.2f}",
            "top 10 units hold, of Σ|α|": f"{summary['top 10 share']:.1%}",
            "accuracy before": _share(effect, "before"),
            "accuracy after": _share(effect, "after"),
            "accuracy after, random units": f"{effect['control_accuracy']:.1%}",
            "answers flipped": f"{effect['flipped']:.1%}",
            "answers flipped, random units": f"{effect['control_flipped']:.1%}",
        }
    return pd.DataFrame(columns).rename_axis("measure").reset_index()


def demo_findings(found: list[Localization], effects: dict[str, UnitEffect]) -> list[str]:
    """Sentences computed from the numbers of this run, whichever way they came out."""
    facts, agreement = (entry.summary() for entry in found)
    closer = "less" if agreement["R₁²"] < facts["R₁²"] else "at least as much"
    sentences = [
        f"Units found per group: {facts['|KN|']:.1f} for facts, {agreement['|KN|']:.1f} for agreement; attributions of "
        f"agreement point the same way {closer} than those of facts (R₁² {agreement['R₁²']:.2f} against "
        f"{facts['R₁²']:.2f}, means over {facts['groups']} and {agreement['groups']} groups)."
    ]
    for entry in found:
        effect = effects[entry.data].summary()
        before, after = _share(effect, "before"), _share(effect, "after")
        beyond = effect["percentile_accuracy"] < 5
        sentences.append(
            f"{entry.data}: without the units, accuracy on {effect['prompts']} held-out prompts goes from "
            f"{before} to {after}, and {effect['flipped']:.0%} of the answers flip; random units of the same layers "
            f"leave {effect['control_accuracy']:.1%}: the drop is {'' if beyond else 'not '}beyond chance."
        )
    return sentences


def _share(effect: dict[str, Any], when: str) -> str:
    low, high = effect[f"accuracy_{when}_low"], effect[f"accuracy_{when}_high"]
    return f"{effect[f'accuracy_{when}']:.1%} [{low:.0%}, {high:.0%}]"
