"""What a report says of a batch run beside its results: how far it is, what was left out and why, how it was made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.batches.read import BatchRun
from kn_lens.batches.run import RUN_FILE
from kn_lens.batches.status import Share
from kn_lens.batches.storage.part import DataPlan
from kn_lens.runs.output import MANIFEST

if TYPE_CHECKING:
    import pandas as pd

_LONGEST = 20  # numbers of a list that was prepared; longer ones (a mean embedding) are told by their length


def is_batch_run(folder: Path) -> bool:
    """Whether a folder is that of ``kn-lens run``, by its manifest; without one, by its run file."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (folder / RUN_FILE).is_file()
    return isinstance(content, dict) and {"run", "config"} <= set(content)


def states_table(run: BatchRun, shares: Sequence[Share]) -> pd.DataFrame:
    """A row for each data set and variant: how many prompts are done, left out, failed, open."""
    import pandas as pd

    rows = [
        {"data": share.data}
        | ({run.variant_name: share.variant} if run.variant_name else {})
        | {"prompts": share.prompts, "done": share.done, "left out": sum(share.dropped.values())}
        | {"failed": share.failed, "open": share.open}
        for share in shares
    ]
    return pd.DataFrame(rows)


def left_out_table(run: BatchRun, shares: Sequence[Share]) -> pd.DataFrame:
    """Reasons for which prompts were left out, in planning and by the method, with their numbers."""
    import pandas as pd

    def row(data: str, variant: str, when: str, why: str, count: int) -> dict[str, Any]:
        named = {run.variant_name: variant} if run.variant_name else {}
        return {"data": data, **named, "when": when, "why": why, "prompts": count}

    planned = [
        row(plan.name, "all", "in planning", why, count)
        for plan in run.manifest.data
        for why, count in plan.dropped.items()
    ]
    later = [
        row(share.data, share.variant, "by the method", why, count)
        for share in shares
        for why, count in share.dropped.items()
    ]
    return pd.DataFrame([*planned, *later])


def why_nothing(shares: Sequence[Share]) -> str:
    """Why there is no result of a data set and some variants, in one or two sentences."""
    still, prompts = sum(share.open for share in shares), sum(share.prompts for share in shares)
    if not prompts:
        return "No prompt of this data set was left in planning."
    reasons = sum((Counter(share.dropped) for share in shares), Counter())
    parts = [f"{reason}: {count}" for reason, count in reasons.most_common()]
    failed = sum(share.failed for share in shares)
    parts += [f"failed: {failed}"] if failed else []
    if still:
        so_far = f" So far {'; '.join(parts)}." if parts else ""
        return f"No prompt is done yet, {still:,} of {prompts:,} are open.{so_far}"
    if any(share.done for share in shares):
        return "No result could be read."
    return f"No prompt has a result ({'; '.join(parts)})."


def settings_of(run: BatchRun, plan: DataPlan) -> dict[str, Any]:
    """What made a section: the data set as it was drawn, what was measured over it, and the method's settings."""
    entry = next(entry for entry in run.manifest.config["data"] if entry["name"] == plan.name)
    prepared = {
        name: f"{len(value)} numbers" if isinstance(value, list) and len(value) > _LONGEST else value
        for name, value in plan.prepared.items()
    }
    data = {**entry, "kind": plan.kind, "prompts in all": plan.prompts}
    data |= {"bad rows skipped": len(plan.skipped)} if plan.skipped else {}
    measured = {"measured over all prompts": prepared} if prepared else {}
    return {"data": data, **measured, "settings": run.manifest.config["settings"]}


def variants_in_words(run: BatchRun) -> tuple[str, str]:
    """``("stream: resid, mlp", "once for each of 2 streams")``; empty where there is nothing to say."""
    names = [name for name in run.variants if name]
    said = f"{run.variant_name}: {', '.join(names)}" if names else ""
    return said, f"once for each of {len(names)} {run.variant_name}s" if len(names) > 1 else ""


def labels_of(run: BatchRun) -> Mapping[str, str]:
    """What data sets are called: their names, of files the file's, unless two have the same."""
    short = {plan.name: Path(plan.name).name or plan.name for plan in run.manifest.data}
    counts = Counter(short.values())
    return {name: label if counts[label] == 1 else name for name, label in short.items()}


def run_file_of(run: BatchRun) -> str:
    """The text of the run file; empty if it is not there."""
    try:
        return (run.folder / RUN_FILE).read_text(encoding="utf-8").rstrip()
    except (OSError, ValueError):
        return ""
