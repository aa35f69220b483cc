"""Plotly figures from results. Each function takes a result and returns a figure; nothing is computed here."""

from kn_lens.plots.frequency import frequency_scatter
from kn_lens.plots.localization import concentration_curves, layers_of_units, measures_table
from kn_lens.plots.suppression import control_distribution, probability_change

__all__ = [
    "concentration_curves",
    "control_distribution",
    "frequency_scatter",
    "layers_of_units",
    "measures_table",
    "probability_change",
]
