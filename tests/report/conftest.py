"""What the tests of reports show: real results of the organisms, small ones, and experiments in every state."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kn_lens.experiments.verdicts import SELDOM, Estimate, Verdict
from kn_lens.plots import attention_of_heads, neuron_activations
from kn_lens.prompts.prompt import Dropped
from kn_lens.report.comparison import write_comparison
from kn_lens.report.content import ModelReport, Section
from kn_lens.report.page import write_report
from kn_lens.results import provenance
from kn_lens.studies.site_comparison import SiteComparison
from kn_lens.studies.sites import compare_sites

CLAIMS = (
    "Switching neurons off seldom changes answers",
    "Switching heads off seldom changes answers",
    "Few say it all",
)
ODD = pd.DataFrame(
    {
        "token": ["<s>", 'b, "quoted"', "</script><script>alert(1)</script>", None, "a\nb"],
        "share": [0.1 + 0.2, 1e-7, float("nan"), float("inf"), -1234.5678],
        "count": [3, 20, 100, 2, 1],
        "units": [[(0, 1)], [], [(1, 2), (3, 4)], [], []],
        "found": [True, False, True, False, True],
    }
)
"""A table with every kind of cell."""


@dataclass(frozen=True)
class Pages:
    """Content and the files written of it."""

    contents: list[ModelReport]
    report: Path
    comparison: Path


@pytest.fixture(scope="session")
def comparison_of_sites(organism: Any) -> Any:
    """``comparison_of_sites(name)``: a small one of an organism, made once."""
    return functools.cache(
        lambda name: compare_sites(organism(name), groups=3, per_group=4, controls=8, progress=False)
    )


@pytest.fixture(scope="session")
def pages(organism: Any, comparison_of_sites: Any, tmp_path_factory: Any) -> Pages:
    """A report of one organism and a comparison of two."""
    contents = [content_of(organism(name), comparison_of_sites(name)) for name in ("tiny-causal", "tiny-masked")]
    folder = tmp_path_factory.mktemp("reports")
    return Pages(
        contents,
        write_report(contents[0], folder / "report.html"),
        write_comparison(contents, folder / "comparison.html"),
    )


def content_of(model: Any, sites: SiteComparison) -> ModelReport:
    """A report of what was found, and of experiments that have no result."""
    table = sites.to_frame()
    neurons = sites.entries[0]
    prompts = [neurons.found.scores.prompts[at] for at in neurons.found.selection[:2]]
    verdicts = [flips(sites.entries[at], claim) for at, claim in enumerate(CLAIMS[:2])]
    verdicts.append(
        Verdict(experiment="E1", test=1, claim=CLAIMS[2], holds=None, measured="4 prompts", rule="No bar: a try.")
    )
    dropped = [("P36", Dropped(text=f"The <s> of {at} & </script> is", reason="too many tokens")) for at in range(60)]
    dropped += [("P101", Dropped(text="A prompt of its own", reason="no answer"))]
    head = {"about": "What is done.", "paper": "Section 3."}
    name = sites.model
    return ModelReport(
        model=name,
        size="small",
        kind="causal" if name == "tiny-causal" else "masked",
        shape="4 layers, 2,048 neurons, 16 heads",
        settings={"seed": 0, "dtype": "float32", "date": "2026-01-31T09:05+00:00", "command": f"kn-lens x '<{name}>'"},
        provenance=provenance(model),
        sections=[
            Section(
                name="E1",
                title="Where are facts?",
                state="done",
                findings=["A token <s> ends in </script> & stays.", f"{len(table)} rows were found."],
                verdicts=verdicts[2:],
                figures={
                    "attention": attention_of_heads(model, prompts[0], [(0, 0), (1, 1), (2, 3)]),
                    "neurons": neuron_activations(model, prompts, [(0, 1), (3, 5)]),
                },
                tables={"odd": ODD, "units": sites.units_frame()},
                dropped=dropped,
                settings={"data": ["P36", "P101"], "nested": {"steps": 20, "none": None}},
                seconds=61.4,
                **head,
            ),
            Section(name="E2", title="What is lost?", state="failed", reason="P36: <no> prompt can be asked", **head),
            Section(name="E3", title="In which layers?", state="damaged", reason="E3/result is missing", **head),
            Section(name="E7", title="What do edits do?", state="unsuited", reason="ROME is for causal models", **head),
            Section(name="E8", title="Do edits hold?", state="not run", reason="not run yet", **head),
            Section(
                name="E9",
                title="Neurons or heads?",
                state="done",
                findings=sites.findings(),
                verdicts=verdicts[:2],
                figures=sites.figures(),
                tables={"sites": table, "curves": sites.curves_frame()},
                settings=sites.settings,
                seconds=3,
                about="Taken away.",
                paper="Beyond the paper.",
            ),
        ],
        finished=False,
    )


def flips(entry: Any, claim: str) -> Verdict:
    """A claim held against the accuracy lost: the bounds are those of the run."""
    row = entry.row()
    low, high = 1 - row["accuracy after high"], 1 - row["accuracy after low"]
    lost = 1 - row["accuracy after"]
    bar = Estimate(quantity="answers lost", value=lost, low=low, high=high, bar=SELDOM, below=True)
    measured = f"{lost:.0%} [{low:.0%}, {high:.0%}] of {row['prompts held out']} prompts"
    return Verdict(
        experiment="E9", test=2, claim=claim, holds=bar.holds, measured=measured, rule="At most 20 %.", estimate=bar
    )
