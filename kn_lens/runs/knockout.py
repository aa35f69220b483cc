"""From data to attention knockout: what the answer loses where it is kept from reading, and the files of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.errors import SettingsError
from kn_lens.plots.circuits import attention_of_heads
from kn_lens.plots.layers import METRIC_NAMES
from kn_lens.plots.patch_effects import knockout as figure_of
from kn_lens.plots.wording import amount, counted, tidy
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.load import data_hash
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import Prompt, count_reasons
from kn_lens.prompts.relations import Relation
from kn_lens.runs.output import output_folder, slug
from kn_lens.tracing.attention_knockout import attention_knockout
from kn_lens.tracing.draw import asked_of, cued_prompts
from kn_lens.tracing.knockout_trace import KnockoutTrace
from kn_lens.tracing.metrics import METRICS, check_metric

if TYPE_CHECKING:
    import pandas as pd

_SOURCES = {"cue": "the cue", "other": "anything but the cue and itself", "target": "itself"}
_SHOWN = 6  # heads on a page of their own


@dataclass(frozen=True, kw_only=True)
class KnockoutSettings:
    """Settings of a run; see :func:`kn_lens.attention_knockout`. By default one prompt of each of ten groups."""

    window: int | None = None
    heads: bool = False
    metric: str | None = None
    groups: int | None = 10
    prompts: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse what can be seen to be wrong before any model is loaded.

        Raises:
            SettingsError: Naming the first such setting.
        """
        check_metric(self.metric)
        if self.window is not None and self.window < 1:
            raise SettingsError(f"window is {self.window}; it must be at least 1 layer")
        if self.heads and self.window not in (None, 1):
            raise SettingsError(f"window is {self.window}; single heads are cut in one layer at a time: leave it out")


@dataclass(frozen=True, kw_only=True)
class KnockedOut:
    """The knockout of one data set."""

    data: str
    kind: str
    batch: PromptBatch
    trace: KnockoutTrace
    data_hash: str | None

    def peaks(self) -> pd.DataFrame:
        """One row per block: the layer (and head) whose cutting costs the answer most, beside its clean value.

        KL, which has no clean value, is given alone.
        """
        import pandas as pd

        frame: Any = self.trace.average()
        metric = self.trace.metric
        rows = []
        for block in dict.fromkeys(frame["block"]):
            cut = self.trace.effects[metric][:, self.trace.blocks.index(block)]
            known = ~cut.flatten(1).isnan().any(1)
            here = frame[frame["block"] == block]
            peak = here.loc[here["mean"].idxmax()]
            place = f"{int(peak['layer'])}" + (f":{int(peak['head'])}" if self.trace.has_heads else "")
            rows.append(
                {"data": self.data, "cut off": block, "prompts": int(peak["prompts"]), "peak at layer": place}
                | {"mean loss": tidy(peak["mean"], metric)}
                | {bound: tidy(peak[bound], metric) for bound in ("low", "high")}
                | ({} if metric == "kl" else {"clean": float(self.trace.clean[metric][known].mean())})
            )
        return pd.DataFrame(rows)

    def with_block(self, block: str) -> list[Prompt]:
        """The prompts that have a position of this block, of which the mean loss is taken."""
        cut = self.trace.effects[self.trace.metric][:, self.trace.blocks.index(block)]
        known = ~cut.flatten(1).isnan().any(1)
        return [prompt for prompt, has_block in zip(self.trace.prompts, known, strict=True) if has_block]

    def averages(self) -> pd.DataFrame:
        """The mean loss by every metric, block, layer (and head)."""
        import pandas as pd

        frames = [self.trace.average(metric).assign(data=self.data, metric=metric) for metric in METRICS]
        return pd.concat(frames, ignore_index=True)


def knockout(model: Any, data: Relation | MinimalPairs, settings: KnockoutSettings) -> KnockedOut:
    """Cut the attention of the target position of a data set's prompts, layer by layer."""
    batch = cued_prompts(model, data, settings.groups, settings.prompts, settings.seed)
    trace = attention_knockout(model, batch, window=settings.window, heads=settings.heads, metric=settings.metric)
    return KnockedOut(data=data.name, kind=data.kind, batch=batch, trace=trace, data_hash=data_hash(data))


def findings(found: KnockedOut) -> list[str]:
    """Sentences computed from the numbers of this run, whichever way they came out."""
    trace = found.trace
    metric = METRIC_NAMES[trace.metric]
    sentences = []
    for row in found.peaks().to_dict("records"):
        size = amount(row["mean loss"], row["low"], row["high"], trace.metric)
        cut = f"{found.data}: kept from attending to {_SOURCES[row['cut off']]}, the target position"
        prompts = counted(found.with_block(row["cut off"]))
        if trace.metric == "kl":
            sentences.append(
                f"{cut} moves its distribution by at most {size} ({metric}; {_where(trace, row)}; {prompts})."
            )
            continue
        verdict = ", an interval that holds 0" if row["low"] <= 0 <= row["high"] else ""
        clean = f"clean mean {row['clean']:.3g}"
        sentences.append(f"{cut} loses at most {size} of {metric}{verdict} ({_where(trace, row)}; {prompts}, {clean}).")
    return sentences


def _where(trace: KnockoutTrace, row: dict[Any, Any]) -> str:
    """What was cut at the peak, and out of how many it was chosen."""
    peak, (n_layers, *rest) = row["peak at layer"], trace.effects[trace.metric].shape[2:]
    where, count, kind = f"layer {peak}", n_layers, "layers"
    if trace.has_heads:
        where, count, kind = f"head {peak}", n_layers * rest[0], "heads"
    elif trace.window > 1:
        where, kind = f"{trace.window} layers around {peak}", "windows"
    choice = ", an interval not corrected for that choice" if row["low"] == row["low"] else ""
    return f"{where}, the largest of {count} {kind}{choice}"


def save_knockouts(
    out: Path, model: Any, found: Sequence[KnockedOut], settings: KnockoutSettings, sentences: Sequence[str]
) -> None:
    """Write a run: manifest, tables, traces, figures."""
    import pandas as pd

    provenance = found[0].trace.provenance
    manifest = {
        "command": "knockout",
        "settings": asdict(settings) | {"window": found[0].trace.window},
        "provenance": provenance,
        "data": {
            entry.data: {
                "sha256": entry.data_hash,
                "prompts": len(entry.trace),
                "dropped": count_reasons(entry.trace.dropped),
                "metric": entry.trace.metric,
                "trace": f"knockout-{slug(entry.data)}",
            }
            for entry in found
        },
        "findings": list(sentences),
    }
    with output_folder(out, manifest) as folder:
        folder.write_table("peaks", pd.concat([entry.peaks() for entry in found]))
        folder.write_table("averages", pd.concat([entry.averages() for entry in found]))
        dropped = [vars(item) | {"data": entry.data} for entry in found for item in entry.trace.dropped]
        folder.write_table("dropped", pd.DataFrame(dropped, columns=["data", "text", "reason", "source"]))
        for entry in found:
            name = slug(entry.data)
            folder.write_table(f"effects-{name}", entry.trace.to_frame())
            entry.trace.save(folder.path / f"knockout-{name}")
            folder.write_figure(
                f"knockout-{name}", figure_of(entry.trace, subtitle=f"{provenance['model']}, {entry.data}")
            )
            if entry.trace.has_heads:
                page = attention_of_heads(
                    model, asked_of(entry.batch, entry.trace.prompts[:1]), _top_heads(entry.trace)
                )
                page.save(folder.path / "figures" / f"attention-{name}.html")


def _top_heads(trace: KnockoutTrace) -> list[tuple[int, int]]:
    """The heads whose cutting changes the answer most, whichever way and block."""
    frame = trace.average()
    frame = frame.assign(size=frame["mean"].abs()).sort_values("size", ascending=False, kind="stable")
    return list(dict.fromkeys((int(layer), int(head)) for layer, head in frame[["layer", "head"]].to_numpy()))[:_SHOWN]
