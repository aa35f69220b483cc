"""Experiment E6: through which states does an answer pass, of facts and of agreement?

The cue (a fact's subject, the word that decides a pair) is corrupted, one state is restored at a time, and how much of
the answer comes back is averaged over prompts by class of position and layer (Meng et al. 2022). If facts were
recalled from MLPs in a way of their own, their map would differ from that of agreement: Pearson's r between the two
maps tells how alike they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.errors import KnLensError, OutputError
from kn_lens.experiments.sizes import Size, quick
from kn_lens.experiments.verdicts import Estimate, Verdict
from kn_lens.plots.tracing import causal_trace as token_map
from kn_lens.plots.tracing import trace_averages
from kn_lens.plots.wording import counted
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import Dropped
from kn_lens.prompts.relations import Relation
from kn_lens.results import provenance
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.saved import plain, read_fields, reading, write_fields, writing
from kn_lens.studies.trace_likeness import Likeness, likeness
from kn_lens.studies.traced import Traced, TraceSettings, trace
from kn_lens.studies.traced import findings as trace_findings

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

TITLE = "Through which states does an answer pass?"
PAPER = "Tracing figure (GPT-2 XL, LLaMA-2 7B)"
ABOUT = (
    "The words that decide the answer (a fact's subject, the noun that a verb agrees with) are corrupted by noise, "
    "then one state of the clean run is put back at a time: the residual stream, the outputs of MLPs, the outputs of "
    "attention. How much of the answer comes back is averaged over prompts, by class of position and layer, and the "
    "maps of facts and of agreement are compared."
)

ALIKE = 0.5
"""Pearson's r from which on two maps of effects count as alike."""

_STREAMS = ("resid", "mlp", "attn")
_COMPARED = {"mlp": "MLP outputs", "attn": "attention outputs"}
_FACTS, _AGREEMENT = ("P36",), ("subject_verb_agreement_distractor",)
_MORE = ("P37", "anaphor_number_agreement", "determiner_noun_agreement_1")
_DRAWS = {"small": 12, "full": 40}
_QUICK_DRAWS = {"small": 30, "full": 100}
_FEW_SAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Result:
    """Traces of facts and of agreement.

    Attributes:
        found: Of each data set.
        failed: Data set → why it could not be traced.
        settings: Of the run, with the names of the data.
        provenance: Model, hashes, versions.
    """

    found: tuple[Traced, ...]
    failed: Mapping[str, str]
    settings: dict[str, Any]
    provenance: dict[str, Any]

    def save(self, folder: Path) -> Path:
        """Write the traces of each data set and the rest.

        Raises:
            OutputError: If it cannot be written.
        """
        with writing(folder):
            fields = {"settings": self.settings, "provenance": self.provenance, "failed": dict(self.failed)}
            write_fields(folder, {**fields, "traces": len(self.found)})
            for at, entry in enumerate(self.found):
                entry.save(folder / f"traces-{at}")
        return folder

    @classmethod
    def load(cls, folder: Path) -> Result:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds no such result.
        """
        with reading(folder, "traces"):
            fields = read_fields(folder)
            found = tuple(Traced.load(folder / f"traces-{at}") for at in range(fields.pop("traces")))
            return cls(found=found, **fields)

    @cached_property
    def alike(self) -> dict[str, Likeness]:
        """By stream: how alike the maps of facts and of agreement are; empty where one kind was not traced."""
        kinds = [[entry.traces for entry in self.found if (entry.kind == "facts") is facts] for facts in (True, False)]
        if not all(kinds):
            return {}
        shared = [name for name in _COMPARED if all(name in traces for kind in kinds for traces in kind)]
        return {
            stream: likeness(*([traces[stream] for traces in kind] for kind in kinds), seed=self.settings["seed"])
            for stream in shared
        }


def unsuited(model: Any) -> str | None:
    """Every model can be traced."""
    return None


def data(model: Any, size: Size) -> tuple[str, ...]:
    """Capitals, and verbs behind a distractor; in full also languages, reflexives, determiners and nouns."""
    return (*_FACTS, *_AGREEMENT, *(_MORE if size == "full" else ()))


def settings(model: Any, size: Size, seed: int) -> TraceSettings:
    """Three streams, one prompt of each of some groups; of large models a small run takes fewer draws of noise."""
    draws = _QUICK_DRAWS if quick(model) else _DRAWS
    samples = 10 if quick(model) or size == "full" else _FEW_SAMPLES
    return TraceSettings(streams=_STREAMS, groups=draws[size], samples=samples, seed=seed)


def run(
    model: Any,
    data: Sequence[Relation | MinimalPairs],
    settings: TraceSettings | None = None,
    *,
    pieces: Pieces | None = None,
    progress: bool = True,
) -> Result:
    """Trace each data set through each stream.

    Args:
        model: A loaded model; it is left as it was.
        data: Facts and pairs.
        settings: Of the traces; by default three streams, ten groups.
        pieces: Where the traces that are done are found and kept; by default nowhere.
        progress: Show progress bars.

    Raises:
        KnLensError: If no data set can be traced, with the reason of the first.
    """
    settings = settings or TraceSettings(streams=_STREAMS)
    settings.check()
    found: list[Traced] = []
    failed: dict[str, str] = {}
    first: KnLensError | None = None
    for entry in data:
        try:
            traced = trace(model, entry, settings, pieces=pieces, progress=progress)
        except OutputError:  # nothing is wrong with the data
            raise
        except KnLensError as error:
            first = first or error
            failed[entry.name] = str(error)
        else:
            found.append(replace(traced, batch=None))
    if first is not None and not found:
        raise first
    return Result(
        found=tuple(found),
        failed=failed,
        settings=plain({**asdict(settings), "data": [entry.name for entry in data]}),
        provenance=provenance(model),
    )


def figures(result: Result) -> dict[str, go.Figure]:
    """``averages`` of all traces, then of each the first prompt token by token."""
    model = result.provenance["model"]
    lines = {
        f"{entry.data}<br>{stream}": one  # on two lines: names are long
        for entry in result.found
        for stream, one in entry.traces.items()
        if not one.has_units
    }
    across = max(1, len(lines) // len(result.found))
    figures = {"averages": trace_averages(lines, subtitle=model, columns=across)} if lines else {}
    streams = dict.fromkeys(stream for entry in result.found for stream in entry.traces)
    for stream in sorted(streams, key=lambda name: name == "resid"):
        for entry in result.found:
            if stream in entry.traces and not entry.traces[stream].has_units:
                name = f"tokens-{entry.data}-{stream}"
                figures[name] = token_map(entry.traces[stream], 0, subtitle=f"{model}, {entry.data}")
    return figures


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """``alike``: r of the maps by stream; ``peaks``; ``averages``; ``prompts``."""
    import pandas as pd

    def joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
        return pd.concat(frames, ignore_index=True)

    found = {}
    if result.alike:
        rows = [{"stream": stream, **asdict(one)} for stream, one in result.alike.items()]
        found["alike"] = pd.DataFrame(rows).rename(
            columns={"facts": "prompts of facts", "agreement": "prompts of agreement"}
        )
    prompts = [entry.first.prompts_frame() for entry in result.found]
    for frame, entry in zip(prompts, result.found, strict=True):
        frame.insert(0, "data", entry.data)
    return found | {
        "peaks": joined([entry.peaks() for entry in result.found]),
        "averages": joined([entry.averages for entry in result.found]),
        "prompts": joined(prompts),
    }


def findings(result: Result) -> list[str]:
    """What each trace shows, and how alike the maps of facts and of agreement are."""
    said = [sentence for entry in result.found for sentence in trace_findings(entry)]
    for stream, one in result.alike.items():
        said.append(
            f"{_COMPARED[stream].capitalize().replace('Mlp', 'MLP')}: class by class of position and layer by layer, "
            f"the mean effects on facts and on agreement go together with r = {one.text()} over {one.states} states "
            f"({one.facts} prompts of facts, {one.agreement} of agreement)."
        )
    said += [f"{name} was not traced: {reason.rstrip('.')}." for name, reason in result.failed.items()]
    return said


def verdicts(result: Result) -> list[Verdict]:
    """Whether the maps are alike, of MLP outputs and of attention outputs."""
    estimates = [
        Estimate(
            quantity="Pearson's r of mean effects",
            value=one.r,
            low=one.low,
            high=one.high,
            bar=ALIKE,
            below=False,
        )
        for one in result.alike.values()
    ]
    told = "; ".join(f"{_COMPARED[stream]} {one.text()}" for stream, one in result.alike.items()) or "not measured"
    if len(estimates) < len(_COMPARED):
        decides, measured = None, "not measured: facts and agreement were not both traced through MLPs and attention"
    else:
        # The stream that speaks against the claim decides.
        decides = min(estimates, key=lambda one: (one.holds is not False, one.holds is not None, one.low))
        values = "; ".join(f"{_COMPARED[stream]}: r = {one.text()}" for stream, one in result.alike.items())
        names = {
            kind: counted([p for e in result.found if (e.kind == "facts") is facts for p in e.first.prompts])
            for kind, facts in (("facts", True), ("agreement", False))
        }
        measured = f"{values}; facts: {names['facts']}, agreement: {names['agreement']}"
    return [
        Verdict(
            experiment="E6",
            test=1,
            claim="Traces of agreement look like those of facts",
            holds=None if decides is None else decides.holds,
            measured=measured,
            rule=f"Pearson's r between the mean effects on facts and on agreement (classes of position by layers) lies "
            f"with its 95 % interval at or above {ALIKE:g} for MLP outputs and for attention outputs; it does not "
            f"hold if one of the intervals lies below.",
            estimate=decides,
            short=told,
            beside=True,
        )
    ]


def dropped(result: Result) -> list[tuple[str, Dropped]]:
    """Prompts that were not traced."""
    return [(entry.data, item) for entry in result.found for item in entry.first.dropped]
