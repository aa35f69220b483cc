"""The paper's questions in one go, on one model: E1, E3 and E4 of Niu et al. (2024), of an organism E1 to E9.

Are facts more local than grammar (E1), where do their units lie (E3), does switching them off change the answers
(E4)? What does losing the number units do to each word (E2), and does that follow frequency (E5)? Through which states
does the answer pass (E6), and do facts and grammar hang on neurons or on heads (E9)? What does an edit of a fact change
(E7), and do edited facts hold in other wordings, the other way round, and in other words (E8)?
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.errors import ModelError
from kn_lens.experiments import number_units
from kn_lens.experiments.sites import compare_sites
from kn_lens.models.kind import is_masked, model_name
from kn_lens.organisms.corpus import corpus_of
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.load import data_hash, load_prompts
from kn_lens.prompts.prompt import count_reasons
from kn_lens.runs.evaluate import EvaluateSettings, about_evaluations, evaluate, write_evaluations
from kn_lens.runs.heads import save_comparison
from kn_lens.runs.localize import Localization, LocalizeSettings, localize, save_localization
from kn_lens.runs.output import output_folder
from kn_lens.runs.rome import RomeSettings, about_edit, edit_fact, write_edit
from kn_lens.runs.suppress import save_suppression, units_of
from kn_lens.runs.trace import TraceSettings, save_traces, trace
from kn_lens.runs.trace import findings as trace_findings
from kn_lens.suppression.effect import UnitEffect
from kn_lens.suppression.suppress import suppress

if TYPE_CHECKING:
    import pandas as pd

MODELS = ("tiny-causal", "tiny-masked")
FACTS, AGREEMENT = "P36", "subject_verb_agreement"
PARTS = ("localize", "suppress", "number", "trace", "heads", "edit")
"""The folders that the demo writes; all but the first two for organisms only, which are small and of known text."""

_CONTROLS = 100
_CHANCE = 5  # percentile among the random draws
_DRAW = (6, 6)  # groups, and prompts of each: a large model takes seconds a prompt
_ORGANISM_DRAW = (20, 8)
_STREAMS, _TRACED = ("resid", "mlp", "attn"), 30
_EDITED, _EDITS = (FACTS, "P101"), 20
_EDIT = Fact(
    "The capital of {} is",
    "France",
    "Madrid",  # the text states of both capitals what they are the capital of
    old="Paris",
    paraphrases=("The government of {} sits in the capital,", "The capital city of {} is called"),
)


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """What the demo shows of one model: a table, and findings computed from its numbers."""

    table: pd.DataFrame
    findings: list[str]


def run_demo(model: Any, out: Path, seed: int = 0) -> Demonstration:
    """Localize and suppress facts and agreement, of an organism all that the module tells of, and write the runs.

    Args:
        model: A loaded model. E5 takes the counts of an organism's own training text.
        out: Folder; the :data:`PARTS` are made in it.
        seed: Of every draw.
    """
    corpus = corpus_of(model_name(model))
    names = [FACTS, AGREEMENT]
    if corpus is not None:  # quick enough for a third
        names.append(f"determiner_noun_agreement_{2 if is_masked(model) else 1}")
    groups, prompts = _DRAW if corpus is None else _ORGANISM_DRAW
    settings = LocalizeSettings(groups=groups, prompts=prompts, seed=seed)
    found: list[Localization] = []
    effects: dict[str, UnitEffect] = {}
    hashes: dict[str, str | None] = {}
    for name in names:
        data = load_prompts(name)
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
    findings = demo_findings(found, effects)
    if corpus is not None:
        number = number_units.run(model, controls=_CONTROLS, seed=seed)
        _save_number(out / "number", number, model_name(model))
        findings += number_units.findings(number)
        findings += _trace(model, out / "trace", seed)
        comparison = compare_sites(model, [FACTS, AGREEMENT], seed=seed)
        save_comparison(out / "heads", comparison)
        findings += comparison.findings()
        findings += _edit(model, out / "edit", seed)
    return Demonstration(table=compare_kinds(found, effects), findings=findings)


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
            "change of log p(target), nats": f"{effect['log_probability_change']:.3f}",
            "change of log p(target), random units": f"{effect['control_log_probability_change']:.3f}",
        }
    return pd.DataFrame(columns).rename_axis("measure").reset_index()


def demo_findings(found: list[Localization], effects: dict[str, UnitEffect]) -> list[str]:
    """Sentences computed from the numbers of this run, whichever way they came out."""
    facts, *others = (entry.summary() for entry in found)
    sentences = []
    for other in others:
        closer = "less than those of facts" if other["R₁²"] < facts["R₁²"] else "at least as much as those of facts"
        sentences.append(
            f"Units found per group: {facts['|KN|']:.1f} for {facts['data']}, {other['|KN|']:.1f} for "
            f"{other['data']}, whose attributions point the same way {closer} (R₁² {other['R₁²']:.2f} against "
            f"{facts['R₁²']:.2f}; means over {facts['groups']} and {other['groups']} groups)."
        )
    for entry in found:
        effect = effects[entry.data].summary()
        before, after = _share(effect, "before"), _share(effect, "after")
        if effect["accuracy_after"] >= effect["accuracy_before"]:
            verdict = "no drop"
        else:
            verdict = f"the drop is {'' if effect['percentile_accuracy'] < _CHANCE else 'not '}beyond chance"
        lower = effect["percentile_log_probability_change"] < _CHANCE
        sentences.append(
            f"{entry.data}: without the units, accuracy on {effect['prompts']} held-out prompts goes from "
            f"{before} to {after}, and {effect['flipped']:.0%} of the answers flip; random units of the same layers "
            f"leave {effect['control_accuracy']:.1%}: {verdict}. Log p(target) changes by "
            f"{effect['log_probability_change']:.2g} nats, with random units by "
            f"{effect['control_log_probability_change']:.2g}: {'' if lower else 'not '}lower than chance."
        )
    return sentences


def _trace(model: Any, out: Path, seed: int) -> list[str]:
    """Trace facts and agreement through three streams, and write the run."""
    settings = TraceSettings(streams=_STREAMS, groups=_TRACED, seed=seed)
    found = [trace(model, load_prompts(name), settings) for name in (FACTS, AGREEMENT)]
    sentences = [sentence for entry in found for sentence in trace_findings(entry)]
    save_traces(out, model, found, settings, sentences)
    return sentences


def _edit(model: Any, out: Path, seed: int) -> list[str]:
    """Edit one fact and show it, then judge an editor by the criteria, and write the run.

    A masked model, which ROME is not for, has its neurons edited, and is not asked what follows in other words.
    """
    masked = is_masked(model)
    settings = EvaluateSettings(editors=("neurons" if masked else "rome",), edits=_EDITS, seed=seed)
    shown, sentences = None, []
    try:
        shown = edit_fact(model, _EDIT, RomeSettings(seed=seed), progress=False)
        sentences += shown.findings()
    except ModelError as error:
        sentences.append(f"No ROME: {error}.")
    found = [evaluate(model, load_prompts(name), settings) for name in _EDITED[: 1 if masked else None]]
    for entry in found:
        sentences += [f"{heading}: {sentence}" for heading, said in entry.findings().items() for sentence in said]
    manifest = {
        "command": "demo, edit",
        "settings": asdict(settings),
        **about_evaluations(found),
        "edit": None if shown is None else about_edit(shown),
        "findings": sentences,
    }
    with output_folder(out, manifest) as folder:
        if shown is not None:
            write_edit(folder, shown)
        write_evaluations(folder, found)
    return sentences


def _save_number(out: Path, number: number_units.NumberUnits, name: str) -> None:
    manifest = {
        "command": "demo, number units",
        "settings": {"search": number.found.settings, "suppress": number.effect.settings},
        "searched": [prompt.source for prompt in number.searched],
        "dropped": count_reasons(number.effect.dropped),
        "provenance": number.effect.provenance,
        "units": number.found.units,
        "findings": number_units.findings(number),
    }
    with output_folder(out, manifest) as folder:
        folder.write_table("units", number.found.to_frame())
        for kind in ("plural", "singular"):
            folder.write_table(f"probes-{kind}", getattr(number, kind).to_frame())
        number.effect.save(folder.path / "effect")
        for title, result in (("frequency", number.frequency), ("frequency-preference", number.preference)):
            if result is not None:
                folder.write_table(title, result.to_frame())
                result.save(folder.path / f"{title}-effect")
        for title, figure in number_units.figures(number, name).items():
            folder.write_figure(title, figure)


def _share(effect: dict[str, Any], when: str) -> str:
    low, high = effect[f"accuracy_{when}_low"], effect[f"accuracy_{when}_high"]
    return f"{effect[f'accuracy_{when}']:.1%} [{low:.0%}, {high:.0%}]"
