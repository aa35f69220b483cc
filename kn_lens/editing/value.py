"""The search for v*: what an MLP (or attention) output must become so that the model says the new answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.editing.hyperparameters import Hyperparameters
from kn_lens.editing.rows import EditedRows
from kn_lens.errors import ModelError
from kn_lens.forward import frozen_weights
from kn_lens.progress import progress_bar

ENOUGH = 0.05
"""The loss below which the search stops, as in the published code."""


@dataclass(frozen=True, kw_only=True)
class FoundValue:
    """A change δ of an output, and how it was found.

    Attributes:
        change: δ = v* − v₀.
        losses: The whole loss at each step.
        nll: Its first part: mean −log p per token of the new answer, over the prefixes.
        kl: The KL divergence on the essence prompt, before its weight.
    """

    change: Float[Tensor, " d_model"]
    losses: Float[Tensor, " step"]
    nll: Float[Tensor, " step"]
    kl: Float[Tensor, " step"]


def find_value(
    rows: EditedRows,
    start: Float[Tensor, " d_model"],
    settings: Hyperparameters,
    *,
    what: str,
    progress: bool = False,
) -> FoundValue:
    """Minimize over δ, added to the output at the edited position of every row (Meng et al. 2022):

        mean NLL of the answers + kl_factor · KL(p_edited ‖ p) on rows without answers
        + weight_decay · ‖δ‖ / ‖v₀‖²

    by Adam from δ = 0, ‖δ‖ clipped to clamp · ‖v₀‖ after each step. The KL divergence has the direction of the
    published code. The search stops when the loss is below 0.05.

    Args:
        rows: Prompts with answers, and those whose next token shall stay as it is.
        start: v₀.
        settings: Learning rate and weights.
        what: The edit, for messages.
        progress: Show a bar over the steps.

    Raises:
        ModelError: If the loss is NaN or infinite, which leaves the model as it was.
    """
    asked = [index for index, row in enumerate(rows.rows) if row.answers]
    kept = [index for index, row in enumerate(rows.rows) if not row.answers]
    places = [place for index in [*asked, *kept] for place in rows.places(index)]
    device = start.device
    exact = torch.promote_types(start.dtype, torch.float32)
    answers = torch.tensor([token for index in asked for token in rows.rows[index].answers], device=device)
    # Each row counts alike, and in it each token of its answer.
    weights = torch.tensor(
        [1 / (len(asked) * len(row.answers)) for row in (rows.rows[index] for index in asked) for _ in row.answers],
        dtype=exact,
        device=device,
    )
    size = start.to(exact).norm()
    change = torch.zeros_like(start, dtype=exact, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=settings.lr)
    before: Tensor | None = None
    history: list[tuple[float, float, float]] = []
    with torch.enable_grad(), frozen_weights(rows.model), progress_bar(settings.steps, what, "step", progress) as bar:
        for step in range(settings.steps):
            log_p = rows.logits(change.to(start.dtype), places).to(exact).log_softmax(-1)
            nll = -(log_p[: len(answers)].gather(1, answers[:, None])[:, 0] * weights).sum()
            now = log_p[len(answers) :]
            before = now.detach() if before is None else before
            kl = (now.exp() * (now - before)).sum(-1).mean() if kept else weights.new_zeros(())
            loss = nll + settings.kl_factor * kl + settings.weight_decay * change.norm() / size**2
            history.append((float(loss.detach()), float(nll.detach()), float(kl.detach())))
            bar.update(1)
            if not torch.isfinite(loss):
                raise ModelError(
                    f"{what}: the loss is {history[-1][0]} at step {step}; the model is left as it was. Try a smaller "
                    f"lr than {settings.lr:g}, or float32"
                )
            if step == settings.steps - 1 or history[-1][0] < ENOUGH:
                break
            optimizer.zero_grad()
            loss.backward()
            try:
                optimizer.step()
            except RuntimeError as error:  # an lr that does not fit into the change's type
                raise ModelError(
                    f"{what}: no step can be taken with lr {settings.lr:g} ({error}); try a smaller one"
                ) from None
            with torch.no_grad():
                norm = change.norm()
                if not norm.isfinite():  # clipped it would be 0, as if nothing had gone wrong
                    change.fill_(float("nan"))
                if norm > settings.clamp * size:
                    change.mul_(settings.clamp * size / norm)
    columns = torch.tensor(history, dtype=torch.float64).T
    return FoundValue(change=change.detach(), losses=columns[0], nll=columns[1], kl=columns[2])
