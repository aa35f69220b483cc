"""The files of a run of traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kn_lens.plots.circuits import attention_of_heads, neuron_activations
from kn_lens.plots.tracing import causal_trace as token_map
from kn_lens.plots.tracing import head_trace, trace_averages
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.prompt import Prompt, count_reasons
from kn_lens.runs.output import output_folder, slug
from kn_lens.studies.traced import Traced, TraceSettings
from kn_lens.tracing.draw import asked_of
from kn_lens.tracing.trace import CausalTrace


def save_traces(
    out: Path, model: Any, found: Sequence[Traced], settings: TraceSettings, sentences: Sequence[str]
) -> None:
    """Write a run: manifest, tables, traces, figures."""
    import pandas as pd

    provenance = found[0].first.provenance
    manifest = {
        "command": "trace",
        "settings": asdict(settings),
        "provenance": provenance,
        "data": {
            entry.data: {
                "sha256": entry.data_hash,
                "prompts": len(entry.first),
                "dropped": count_reasons(entry.first.dropped),
                "metric": entry.first.metric,
                "sigma": None if entry.first.sigma != entry.first.sigma else entry.first.sigma,
                "windows": {stream: one.window for stream, one in entry.traces.items()},
                "traces": {stream: f"trace-{slug(entry.data)}-{stream}" for stream in entry.traces},
            }
            for entry in found
        },
        "findings": list(sentences),
    }
    with output_folder(out, manifest) as folder:
        folder.write_table("peaks", pd.concat([entry.peaks() for entry in found]))
        folder.write_table("averages", pd.concat([entry.averages for entry in found]))
        folder.write_table(
            "prompts", pd.concat([entry.first.prompts_frame().assign(data=entry.data) for entry in found])
        )
        dropped = [vars(item) | {"data": entry.data} for entry in found for item in entry.first.dropped]
        folder.write_table("dropped", pd.DataFrame(dropped, columns=["data", "text", "reason", "source"]))
        lines: dict[str, CausalTrace] = {}
        for entry in found:
            subtitle = f"{provenance['model']}, {entry.data}"
            for stream, one in entry.traces.items():
                name = f"{slug(entry.data)}-{stream}"
                folder.write_table(f"effects-{name}", one.to_frame())
                one.save(folder.path / f"trace-{name}")
                if stream == "head":
                    folder.write_figure(f"heads-{slug(entry.data)}", head_trace(one, subtitle=subtitle))
                    page = attention_of_heads(model, _asked(entry, one.prompts[:1]), entry.top_units(stream))
                    page.save(folder.path / "figures" / f"attention-{slug(entry.data)}.html")
                elif stream == "neuron":
                    (folder.path / "figures").mkdir(exist_ok=True)
                    page = neuron_activations(model, _asked(entry, one.prompts), entry.top_units(stream))
                    page.save(folder.path / "figures" / f"neurons-{slug(entry.data)}.html")
                else:
                    lines[f"{entry.data}, {stream}" if len(found) > 1 else stream] = one
                    folder.write_figure(f"tokens-{name}", token_map(one, 0, subtitle=subtitle))
        if lines:
            across = min(3, len(lines) // len(found))
            subtitle = f"{provenance['model']}" + (f", {found[0].data}" if len(found) == 1 else "")
            folder.write_figure("averages", trace_averages(lines, subtitle=subtitle, columns=across))


def _asked(entry: Traced, prompts: Sequence[Prompt]) -> PromptBatch:
    """Some of the prompts that were traced, as a batch."""
    assert entry.batch is not None  # traced in this run, not read back
    return asked_of(entry.batch, prompts)
