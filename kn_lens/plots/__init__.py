"""Plotly figures from results. Each function takes a result and returns a figure; nothing is computed here.

:mod:`kn_lens.plots.circuits` alone takes a model: it shows patterns and activations of single prompts.
:func:`export` writes a figure for a paper, :func:`show` shows it in a notebook.
"""

from kn_lens.plots.answers import answers_before_after, answers_flipped
from kn_lens.plots.circuits import attention_of_heads, neuron_activations
from kn_lens.plots.editing import edit_cascade, edit_criteria
from kn_lens.plots.export import export, show
from kn_lens.plots.frequency import frequency_scatter
from kn_lens.plots.head_map import head_map
from kn_lens.plots.layer_sweep import layer_sweep
from kn_lens.plots.levels import localization_levels
from kn_lens.plots.localization import concentration_curves, layers_of_units, measures_table
from kn_lens.plots.patch_effects import attribution_against_exact, knockout, patching
from kn_lens.plots.single_edit import edit_losses, generations
from kn_lens.plots.sites import ablation_curves, accuracy_taken, sites_table
from kn_lens.plots.still import still
from kn_lens.plots.suppression import control_distribution, probability_change
from kn_lens.plots.tracing import causal_trace, head_trace, trace_averages

__all__ = [
    "ablation_curves",
    "accuracy_taken",
    "answers_before_after",
    "answers_flipped",
    "attention_of_heads",
    "attribution_against_exact",
    "causal_trace",
    "concentration_curves",
    "control_distribution",
    "edit_cascade",
    "edit_criteria",
    "edit_losses",
    "export",
    "frequency_scatter",
    "generations",
    "head_map",
    "head_trace",
    "knockout",
    "layer_sweep",
    "layers_of_units",
    "localization_levels",
    "measures_table",
    "neuron_activations",
    "patching",
    "probability_change",
    "show",
    "sites_table",
    "still",
    "trace_averages",
]
