"""From data to traces: which states bring the answer back, and where the largest effects lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from kn_lens.errors import SettingsError, near_matches
from kn_lens.plots.wording import Total, amount, at_the, counted
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.load import data_hash
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.positions import Positions
from kn_lens.prompts.relations import Relation
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.saved import read_fields, reading, write_fields, writing
from kn_lens.tracing.causal_trace import STREAMS, Direction, causal_trace
from kn_lens.tracing.corruption import CorruptionName
from kn_lens.tracing.draw import cued_prompts
from kn_lens.tracing.metrics import METRICS, check_metric
from kn_lens.tracing.position_classes import CLASSES
from kn_lens.tracing.trace import CausalTrace

if TYPE_CHECKING:
    import pandas as pd

_UNITS = ("head", "neuron")
_SHOWN = 6  # heads or neurons on a page of their own
_LAST, _TARGET = "last cue token", "target position"


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """Settings of a run; see :func:`kn_lens.causal_trace`. By default one prompt of each of ten groups."""

    streams: tuple[str, ...] = ("resid",)
    corruption: str = "noise"
    window: int | None = None
    metric: str | None = None
    samples: int = 10
    noise: float = 3.0
    sigma: float | None = None
    severed: str | None = None
    direction: str = "sufficiency"
    layers: tuple[int, ...] | None = None
    positions: str = "all"
    groups: int | None = 10
    prompts: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse what can be seen to be wrong before any model is loaded.

        Raises:
            SettingsError: Naming the first such setting.
        """
        check_metric(self.metric)
        for value, known, what in (
            *((stream, STREAMS, "stream") for stream in self.streams),
            (self.corruption, get_args(CorruptionName), "corruption"),
            (self.direction, get_args(Direction), "direction"),
            (self.severed, (None, "mlp", "attn"), "severed path"),
            (self.positions, get_args(Positions), "positions"),
        ):
            if value not in known:
                names = [name for name in known if name is not None]
                raise SettingsError(f"no {what} {value!r}.{near_matches(str(value), names)} Known: {', '.join(names)}")
        if self.samples < 1 or not self.noise > 0:
            raise SettingsError(f"samples is {self.samples} and noise {self.noise}; both must be above 0")
        if self.sigma is not None:
            if not 0 < self.sigma < float("inf"):
                raise SettingsError(f"sigma is {self.sigma}; it must be above 0")
            if self.corruption != "noise":
                raise SettingsError(f"sigma is that of noise, and the corruption is {self.corruption!r}; leave it out")
        single = [stream for stream in self.streams if stream in _UNITS]
        if self.window is not None and (self.window < 1 or (self.window > 1 and single)):
            where = f" for single {single[0]}s: trace them in a run of their own" if single else ""
            raise SettingsError(f"window is {self.window}; it must be {'1' if single else 'at least 1 layer'}{where}")
        if "neuron" in self.streams and self.layers is None:
            raise SettingsError("the stream neuron has a state for every neuron; say which layers: --layers 3,4")


@dataclass(frozen=True, kw_only=True)
class Traced:
    """The traces of one data set, by stream.

    Attributes:
        data: Its name.
        kind: ``"facts"`` or ``"pairs"``.
        traces: By stream.
        data_hash: SHA-256 of the data.
        batch: The prompts drawn; None for traces that were read back.
    """

    data: str
    kind: str
    traces: Mapping[str, CausalTrace]
    data_hash: str | None
    batch: PromptBatch | None = None

    def save(self, folder: Path) -> Path:
        """Write the traces, without the batch.

        Raises:
            OutputError: If they cannot be written.
        """
        with writing(folder):
            fields = {"data": self.data, "kind": self.kind, "sha256": self.data_hash, "streams": list(self.traces)}
            write_fields(folder, fields)
            for stream, one in self.traces.items():
                one.save(folder / stream)
        return folder

    @classmethod
    def load(cls, folder: Path) -> Traced:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds no traces.
        """
        with reading(folder, "traces"):
            fields = read_fields(folder)
            traces = {stream: CausalTrace.load(folder / stream) for stream in fields["streams"]}
            return cls(data=fields["data"], kind=fields["kind"], data_hash=fields["sha256"], traces=traces)

    @property
    def first(self) -> CausalTrace:
        """The trace of the first stream: prompts, clean and corrupted values are those of all."""
        return next(iter(self.traces.values()))

    @cached_property
    def averages(self) -> pd.DataFrame:
        """The mean effect by every metric (of neurons, which are many, by the traces' own), class, layer and unit."""
        import pandas as pd

        frames = [
            trace.average(metric).assign(data=self.data, stream=stream, metric=metric)
            for stream, trace in self.traces.items()
            for metric in (METRICS if stream != "neuron" else (trace.metric,))
        ]
        table = pd.concat(frames, ignore_index=True)
        named = ["data", "stream", "metric"]
        return table.loc[:, [*named, *table.columns.drop(named)]]

    def average(self, stream: str) -> pd.DataFrame:
        """The rows of :attr:`averages` of one stream, by the traces' own metric."""
        frame = self.averages
        return frame.loc[(frame["stream"] == stream) & (frame["metric"] == self.first.metric)]

    def peaks(self) -> pd.DataFrame:
        """One row per stream and class of position: the layer (and unit) with the largest mean effect.

        Without positions before the cue where, as in a causal model, nothing there can have an effect.
        """
        import pandas as pd

        rows = []
        for stream, trace in self.traces.items():
            frame: Any = self.average(stream)
            pooled = trace.by_class()
            for kind in CLASSES:
                here = frame[frame["class"] == kind]
                if not len(here) or (kind == CLASSES[0] and not pooled[kind].nan_to_num().any()):
                    continue
                peak = here.loc[here["mean"].idxmax()]
                known = ~pooled[kind].flatten(1).isnan().all(1)
                prompts = [prompt for prompt, with_class in zip(trace.prompts, known, strict=True) if with_class]
                whole = Total.of(trace.total_effect()[known], prompts, trace.metric)
                place = f"{int(peak['layer'])}" + (f":{int(peak['unit'])}" if trace.has_units else "")
                rows.append(
                    {"data": self.data, "stream": stream, "class": kind, "prompts": int(peak["prompts"])}
                    | {"peak at layer": place, "mean": peak["mean"], "low": peak["low"], "high": peak["high"]}
                    | {"total effect": whole.mean, "share": whole.share(peak["mean"])}
                )
        return pd.DataFrame(rows)

    def top_units(self, stream: str, count: int = _SHOWN) -> list[tuple[int, int]]:
        """The heads or neurons of a stream with the largest |mean effect| in any class of position."""
        frame = self.average(stream)
        frame = frame.assign(size=frame["mean"].abs()).sort_values("size", ascending=False, kind="stable")
        places = dict.fromkeys((int(layer), int(unit)) for layer, unit in frame[["layer", "unit"]].to_numpy())
        return list(places)[:count]


def trace(
    model: Any,
    data: Relation | MinimalPairs,
    settings: TraceSettings,
    *,
    pieces: Pieces | None = None,
    progress: bool = True,
) -> Traced:
    """Trace the prompts of a data set through each stream.

    Args:
        model: A loaded model; it is left as it was.
        data: Facts or pairs.
        settings: See :class:`TraceSettings`.
        pieces: Where the traces of streams that are done are found and kept; by default nowhere.
        progress: Show progress bars.

    Raises:
        KnLensError: As :func:`kn_lens.causal_trace`.
    """
    pieces = pieces or Pieces()
    about = {"data": data.name, "sha256": data_hash(data), **asdict(settings)}
    del about["streams"]
    swap = settings.corruption == "swap"
    batch = cued_prompts(model, data, settings.groups, settings.prompts, settings.seed, twins=swap)
    options = asdict(settings)
    streams = dict.fromkeys(options.pop("streams"))
    for name in ("groups", "prompts"):
        del options[name]
    traces = {
        stream: pieces.keep(
            f"trace-{data.name}-{stream}",
            {**about, "stream": stream},
            CausalTrace,
            partial(causal_trace, model, batch, stream=stream, progress=progress, **options),
        )
        for stream in streams
    }
    return Traced(data=data.name, kind=data.kind, traces=traces, data_hash=data_hash(data), batch=batch)


def findings(found: Traced) -> list[str]:
    """Sentences computed from the numbers of this run, whichever way they came out."""
    first = found.first
    whole = Total.of(first.total_effect(), first.prompts, first.metric)
    taken = whole.sentence(f"corrupting the cue ({first.corruption})", f"{counted(first.prompts)} answered rightly")
    sentences = [f"{found.data}: {taken}."]
    merged = sum(first.target_positions[index] in first.cue_positions[index] for index in range(len(first)))
    if merged:
        sentences[0] += f" In {merged} of them the answer is read at the cue itself."
    verb = "restored" if first.direction == "sufficiency" else "corrupted"
    table: Any = found.peaks()
    for stream, one in found.traces.items():
        rows = table[table["stream"] == stream]
        if not len(rows):
            continue
        if stream == "resid":  # its last state at the target position is the answer itself
            early = rows[rows["class"] == _LAST]
            start = f"a residual stream {verb} at the cue's last token gives at most "
            said = [f"{start}{_peak(early.iloc[0], one.metric)}"] if len(early) else []
            if one.settings.get("positions", "all") == "all":
                said.append(_handover(one))
            if said:
                sentences.append(f"{found.data}, resid: {'; '.join(said)}.")
        else:
            best = rows.loc[rows["mean"].idxmax()]
            sentences.append(
                f"{found.data}, {stream}: the largest mean effect of {_name(one)} {verb} lies "
                f"{at_the(best['class'])}: {_peak(best, one.metric)}."
            )
    return sentences


def _peak(row: Any, metric: str) -> str:
    where = f"{row['stream'] if row['stream'] in _UNITS else 'layer'} {row['peak at layer']}"
    share = f", {row['share']:.0%} of the total effect" if row["share"] == row["share"] else ""
    size = amount(row["mean"], row["low"], row["high"], metric)
    return f"{size} ({where}, {row['prompts']} prompts){share}"


def _name(one: CausalTrace) -> str:
    single = {"mlp": "an MLP output", "attn": "an attention output", "head": "a head", "neuron": "a neuron"}
    windows = {"mlp": f"{one.window} MLP outputs", "attn": f"{one.window} attention outputs"}
    return (windows if one.window > 1 else single)[one.stream]


def _handover(one: CausalTrace) -> str:
    """From which layer on the target position holds more of the answer than the cue, where both are apart."""
    pooled = one.by_class()
    if _LAST not in pooled or _TARGET not in pooled:
        return "cue and target position are never apart"
    both = ~(pooled[_LAST].isnan().all(1) | pooled[_TARGET].isnan().all(1))
    if not both.any():
        return "cue and target position are never apart"
    cue, target = (pooled[kind][both].mean(0) for kind in (_LAST, _TARGET))
    layers = [layer for layer in range(len(cue)) if not cue[layer].isnan()]  # those traced
    ahead = [bool(target[layer] > cue[layer]) for layer in layers]
    at = next((at for at in range(len(layers)) if all(ahead[at:])), None)
    if at is None:
        return "the cue gives more than the target position up to the last layer"
    return (
        "the target position gives more in every layer"
        if at == 0
        else f"the target position gives more from layer {layers[at]} on"
    )
