"""An edit's prompts, run from the layer and the position that the edit touches, all in one batch.

What is added to the MLP output at a subject's last token changes nothing before that position and below that layer.
So the prompts, with their prefixes of several lengths, run once; each trial of an edit then computes only the blocks
from its layer on, and only the few tokens from its position on, which attend to keys and values kept of the first run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.forward import clean_run
from kn_lens.models.shared_prefix import can_share_prefix, shared_prefix
from kn_lens.models.stepping import readout, run_block

EditSite = Literal["mlp", "attn"]
"""``mlp``: W_out, its input the neurons; ``attn``: W_O, its input the heads' weighted values side by side."""

INPUTS = {"mlp": "mlp.hook_post", "attn": "attn.hook_z"}
OUTPUTS = {"mlp": "hook_mlp_out", "attn": "hook_attn_out"}


@dataclass(frozen=True)
class Row:
    """A text as ids, and the position at which the edit acts in it.

    Attributes:
        ids: The prompt, and of its answer all tokens but the last.
        position: Where the edit's change is added.
        answers: Tokens asked for, the last at the last position: predicted by the positions that end the row.
    """

    ids: tuple[int, ...]
    position: int
    answers: tuple[int, ...] = ()


class EditedRows:
    """Rows of one edit at one layer.

    Args:
        model: A causal model that can be stepped.
        rows: The texts.
        layer: Where the change is added.
        site: To the output of the MLP or of attention.
    """

    def __init__(self, model: Any, rows: Sequence[Row], layer: int, site: EditSite) -> None:
        self.model, self.layer = model, layer
        self.output = f"blocks.{layer}.{OUTPUTS[site]}"
        key = f"blocks.{layer}.{INPUTS[site]}"
        device = next(model.parameters()).device
        width = max(len(row.ids) for row in rows)
        tokens = torch.zeros(len(rows), width, dtype=torch.long, device=device)
        for index, row in enumerate(rows):
            tokens[index, : len(row.ids)] = torch.tensor(row.ids, device=device)
        # Padding stands on the right, where a causal model does not look.
        run = clean_run(model, tokens, target=0, keep=(key, self.output), keep_prefix=True)
        every = torch.arange(len(rows), device=device)
        at = torch.tensor([row.position for row in rows], device=device)
        self.keys: Float[Tensor, "row d_in"] = run.activations[key][every, at].flatten(1)
        self.outputs: Float[Tensor, "row d_model"] = run.activations[self.output][every, at]
        starts = at if can_share_prefix(model) and run.prefix else torch.zeros_like(at)
        self._every, self._offsets = every, at - starts
        self._n_prefix = int(starts.max())
        span = max(len(row.ids) - start for row, start in zip(rows, starts.tolist(), strict=True))
        self._resid = _from_each(run.resid[layer], starts, span)
        self._absent: Bool[Tensor, "row prefix"] | None = None
        self._prefix: dict[str, Tensor] = {}
        if self._n_prefix:
            places = torch.arange(self._n_prefix, device=device)[None] - (self._n_prefix - starts)[:, None]
            self._absent = places < 0
            self._prefix = {name: value[every[:, None], places.clamp_min(0)] for name, value in run.prefix.items()}
            if not self._absent.any():
                self._absent = None
        self._starts = starts.tolist()
        self.rows = tuple(rows)

    def places(self, index: int) -> list[tuple[int, int]]:
        """(row, position within the span) of the positions that predict a row's answers, or of its last."""
        row = self.rows[index]
        last = len(row.ids) - 1 - self._starts[index]
        count = max(1, len(row.answers))
        return [(index, last - count + 1 + step) for step in range(count)]

    def logits(
        self, change: Float[Tensor, " d_model"], places: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "place d_vocab"]:
        """Logits at some places with ``change`` added; gradients flow to it."""

        def add(activation: Tensor, hook: Any) -> Tensor:
            return activation.index_put((self._every, self._offsets), change.expand(len(self._every), -1), True)

        model, resid = self.model, self._resid
        with ExitStack() as stack:
            past: Sequence[Any] = [None] * model.cfg.n_layers
            if self._n_prefix:
                past = stack.enter_context(shared_prefix(model, self._prefix, self._n_prefix, self._absent))
            stack.enter_context(model.hooks(fwd_hooks=[(self.output, add)]))
            for layer in range(self.layer, model.cfg.n_layers):
                resid = run_block(model, layer, resid, past=past[layer])
        rows, positions = (torch.tensor(index, device=resid.device) for index in zip(*places, strict=True))
        return readout(model, resid[rows, positions][:, None])[:, 0]


def _from_each(
    resid: Float[Tensor, "row position d_model"], starts: Int[Tensor, " row"], span: int
) -> Float[Tensor, "row span d_model"]:
    """``span`` positions of each row from its own start on; what lies behind its end repeats the last column."""
    places = (starts[:, None] + torch.arange(span, device=resid.device)).clamp_max(resid.shape[1] - 1)
    return resid[torch.arange(len(resid), device=resid.device)[:, None], places]
