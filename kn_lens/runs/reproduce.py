"""The paper's experiments on one model, one after another, each saved when it is done, and the report of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from kn_lens.errors import KnLensError, OutputError
from kn_lens.experiments.experiment import experiment
from kn_lens.experiments.sizes import Size
from kn_lens.models.hashing import weights_hash
from kn_lens.models.kind import is_masked, model_name
from kn_lens.prompts.load import load_prompts
from kn_lens.results import provenance
from kn_lens.runs.reproduction import (
    PIECES,
    Asked,
    begin,
    check_reproduction,
    save_failure,
    save_result,
    state_of,
    unfinished_of,
)
from kn_lens.studies.pieces import Pieces

_COST = {"E1": 5.0, "E2": 2.3, "E3": 0.1, "E4": 0.3, "E5": 0.1, "E6": 1.3, "E7": 0.8, "E8": 9.9, "E9": 6.0}
"""What share of the whole each takes, about; it serves to say how long it will still take, and nothing else."""

Tell = Callable[[str], None]


def reproduce(
    model: Any,
    out: Path,
    *,
    experiments: Sequence[str],
    size: Size = "small",
    seed: int = 0,
    redo: Collection[str] = (),
    progress: bool = True,
    tell: Tell = lambda text: None,
    tell_findings: Callable[[list[str]], None] = lambda findings: None,
) -> list[str]:
    """Run experiments that are not done yet, and save each.

    Args:
        model: A loaded model.
        out: The folder of the reproduction, new or of the same model and settings.
        experiments: Names, as :func:`~kn_lens.experiments.experiment.chosen` gives them.
        size: ``"small"`` or ``"full"``.
        seed: Of every draw.
        redo: Names of experiments to run again.
        progress: Show progress bars.
        tell: Called with what begins.
        tell_findings: Called with the findings of what is done.

    Returns:
        Names of the experiments that failed: their reasons are in the folder.

    Raises:
        OutputError: If the folder is of another run, holds a damaged result, or cannot be written.
    """
    asked = Asked(
        model=model_name(model),
        weights_hash=weights_hash(model),
        size=size,
        seed=seed,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )
    check_reproduction(out, vars(asked))
    unfinished = unfinished_of(out, [name for name in experiments if name not in redo])
    begin(out, asked, experiments, _about(model))
    kept, anew = Pieces(out / PIECES), Pieces(out / PIECES, again=True)
    todo = [name for name in experiments if name in redo or name in unfinished]
    clock = _Clock(todo)
    failed = []
    for at, name in enumerate(todo, start=1):
        module = experiment(name)
        reason = module.unsuited(model)
        if reason is not None:
            tell(f"{name}: {module.TITLE} Not run: {reason}.")
            save_failure(out, name, "unsuited", reason)
            clock.skip(name)
            continue
        tell(f"{name} ({at} of {len(todo)}{clock.left()}): {module.TITLE}")
        began = time.perf_counter()
        try:
            pieces = anew if name in redo else kept
            sets = [load_prompts(data) for data in module.data(model, size)]
            result = module.run(model, sets, module.settings(model, size, seed), pieces=pieces, progress=progress)
        except OutputError:
            raise
        except (KnLensError, MemoryError, torch.OutOfMemoryError) as error:
            reason = str(error) if isinstance(error, KnLensError) else f"out of memory: {error}"
            tell(f"{name} could not be run: {reason}")
            if state_of(out, name)[0] != "done":  # what was there before a redo is kept
                save_failure(out, name, "failed", reason)
            failed.append(name)
            clock.skip(name)
            continue
        said = save_result(out, name, result, time.perf_counter() - began)
        clock.done(name)
        tell_findings(said)
    return failed


def _about(model: Any) -> dict[str, Any]:
    cfg = model.cfg
    return {
        "kind": "masked" if is_masked(model) else "causal",
        "shape": f"{cfg.n_layers} layers, {cfg.n_layers * cfg.d_mlp:,} neurons, {cfg.n_layers * cfg.n_heads:,} heads",
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "provenance": provenance(model),
    }


class _Clock:
    """How long the rest will take, judged by what is done."""

    def __init__(self, todo: Sequence[str]) -> None:
        self._left = {name: _COST[name] for name in todo}
        self._done = 0.0
        self._began = time.perf_counter()

    def skip(self, name: str) -> None:
        self._left.pop(name)

    def done(self, name: str) -> None:
        self._done += self._left.pop(name)

    def left(self) -> str:
        if not self._done:
            return ""
        seconds = (time.perf_counter() - self._began) / self._done * sum(self._left.values())
        return f", about {seconds / 60:.0f} min left" if seconds >= 60 else f", about {seconds:.0f} s left"
