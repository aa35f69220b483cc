"""What is shown of units that were switched off, or up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kn_lens.plots.suppression import control_distribution, probability_change
from kn_lens.runs.method_pages.material import NOTHING, Material, MethodPage, Shown
from kn_lens.runs.suppress import answers_table
from kn_lens.statistics import paired_difference
from kn_lens.studies.shares import around, told
from kn_lens.suppression.effect import AFTER, BEFORE

if TYPE_CHECKING:
    from kn_lens.suppression.effect import UnitEffect


def show_suppression(of: Material) -> Shown:
    """Probabilities and answers before and after, beside random units."""
    parts = of.each(lambda _, effect: _suppression(of, effect))
    return parts[0] if parts else NOTHING


def _suppression(of: Material, effect: UnitEffect) -> Shown:
    subtitle = f"{of.subtitle()}, site {effect.site}"
    figures = {"probabilities": probability_change(effect, subtitle, paired=True)}
    summary = effect.summary()
    if "draws" in summary:
        figures["controls"] = control_distribution(effect, subtitle)
    tables = {"answers": answers_table(effect), "words": effect.to_frame(), "prompts": effect.answers_frame()}
    return Shown(findings=[_finding(of.label, effect, summary)], figures=figures, tables=tables)


def _finding(label: str, effect: UnitEffect, row: dict[str, Any]) -> str:
    logs = effect.log_target.numpy()
    change = paired_difference(logs[:, AFTER], logs[:, BEFORE])

    def share(when: str) -> str:
        low, high = row[f"accuracy_{when}_low"], row[f"accuracy_{when}_high"]
        return f"{row[f'accuracy_{when}']:.1%}{around(low, high, '.0%')}"

    random = ""
    if "draws" in row:
        tested = "" if row["p_flipped"] != row["p_flipped"] else f", p = {row['p_flipped']:.2g}"
        random = (
            f" with random units of the same layers accuracy is {row['control_accuracy']:.1%} and "
            f"{row['control_flipped']:.1%} flip ({row['draws']} draws, {row['distinct_draws']} of them distinct"
            f"{tested});"
        )
    return (
        f"{label}: with {row['units']:.3g} units of each prompt {effect.edit}, accuracy goes from {share('before')} to "
        f"{share('after')} of {row['prompts']} prompts, and {row['flipped']:.1%} of the answers flip;{random} log "
        f"p(target) changes by {told(change.difference, '+.3g')}{around(change.low, change.high, '+.3g')} nats."
    )


PAGES = {
    "suppress": MethodPage(
        about="Units are multiplied by a factor (0 switches them off): the probability of each answer before and "
        "after, beside as many random units of the same layers.",
        show=show_suppression,
    ),
}
"""By method."""
