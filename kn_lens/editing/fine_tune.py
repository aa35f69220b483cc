"""Fine-tuning of one matrix on one fact, each weight kept near where it was: the baseline of editing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from kn_lens.editing.edit import Edit, require_editable, require_weight
from kn_lens.editing.hyperparameters import hyperparameters_of
from kn_lens.editing.rome import Layer, chosen_layer
from kn_lens.errors import ModelError, PromptError, SettingsError
from kn_lens.forward import clean_run, frozen_weights
from kn_lens.models.kind import is_masked, model_name
from kn_lens.models.stepping import readout, run_block
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.tokens import TokenResolver, UnusablePrompt
from kn_lens.results import provenance

if TYPE_CHECKING:
    import pandas as pd

_WEIGHT = "mlp.W_out"


@dataclass(frozen=True, kw_only=True)
class FineTuneEdit(Edit):
    """A fine-tuned matrix, as what was added to it.

    Attributes:
        layer: Of the matrix, W_out.
        losses: Mean −log p per token of the new answer: before each step, and at the end.
    """

    layer: int
    losses: Float[Tensor, " step"]

    def to_frame(self) -> pd.DataFrame:
        """One row per step: the loss."""
        import pandas as pd

        return pd.DataFrame({"loss": self.losses.tolist()}).rename_axis("step").reset_index()


def fine_tune(
    model: Any,
    fact: Fact | Prompt,
    *,
    layer: Layer = None,
    steps: int = 25,
    lr: float | None = None,
    epsilon: float | None = None,
    weight_decay: float = 0.0,
    stop_at: float = 0.02,
    seed: int = 0,
    progress: bool = False,
) -> FineTuneEdit:
    """Constrained fine-tuning (Zhu et al. 2020) of W_out of one layer; the model is left as it was.

    Minimize over Δ, by Adam from Δ = 0, each entry of Δ clipped to ±ε after each step:

        mean −log p per token of the new answer to the fact's prompt, with W + Δ

    By trial on capitals: tiny-causal (layer 1, 20 facts) gives all new answers with lr 2e-3 and ε = 2e-2, 60 % of them
    with ε = 1e-2; SmolLM2-135M (layer 4, 5 facts) gives all with lr 1e-3 and ε = 5e-3, none with 2e-3. These are the
    defaults. Without the bound (ε = ∞, plain fine-tuning) lr 1e-3 does for both.

    Args:
        model: A causal model that can be edited.
        fact: What it shall say; of a minimal pair's prompt, the foil after its cue.
        layer: Of the matrix; as for :func:`kn_lens.editing.rome.rome`.
        steps: At most so many; at least one is taken.
        lr: Adam's learning rate; by default ``tuning_lr`` of the model's
            :class:`~kn_lens.editing.hyperparameters.Hyperparameters`.
        epsilon: ε (FT-L); by default ``tuning_epsilon`` of the same. ``math.inf`` clips nothing (FT).
        weight_decay: Adam's, which pulls Δ to 0.
        stop_at: No further step once the loss is below this.
        seed: Of a layer that is chosen by tracing.
        progress: Show a progress bar over the steps.

    Raises:
        ModelError: For a masked model, a layer that there is not, or a loss that is NaN.
        PromptError: If the prompt cannot be posed.
        SettingsError: For a setting outside its range.
    """
    if is_masked(model):
        raise ModelError(f"{model_name(model)} is a masked model; fine-tuning takes causal ones")
    require_editable(model)
    require_weight(model, f"blocks.0.{_WEIGHT}")
    known = hyperparameters_of(model)
    lr = known.tuning_lr if lr is None else lr
    epsilon = known.tuning_epsilon if epsilon is None else epsilon
    _check(steps, lr, epsilon, weight_decay, stop_at)
    fact = Fact.from_prompt(fact) if isinstance(fact, Prompt) else fact
    at = chosen_layer(model, fact, layer, position=known.position, seed=seed)
    try:
        entry = TokenResolver(model).resolve(fact.prompt())
    except UnusablePrompt as error:
        raise PromptError(str(error)) from error
    name = f"blocks.{at}.{_WEIGHT}"
    weight = dict(model.named_parameters())[name].detach()
    tokens = torch.tensor([entry.ids + entry.target_ids[:-1]], device=weight.device)
    answer = torch.tensor(entry.target_ids, device=weight.device)
    resid = clean_run(model, tokens, target=0).resid[at]
    # Half precision would lose most of Adam's small steps.
    change = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32), requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=lr, weight_decay=weight_decay)
    losses: list[float] = []
    with torch.enable_grad(), frozen_weights(model), progress_bar(steps, fact.name, "step", progress) as bar:
        for step in range(steps + 1):
            loss = _loss(model, at, resid, weight, change, answer)
            losses.append(float(loss.detach()))
            if not torch.isfinite(loss):
                raise ModelError(
                    f"fine-tuning on {fact.name}: the loss is {losses[-1]} at step {step}; the model is left as it "
                    f"was. Try a smaller lr than {lr:g}, or float32"
                )
            if step == steps or (step and losses[-1] < stop_at):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                change.clamp_(-epsilon, epsilon)
            bar.update(1)
    return FineTuneEdit(
        editor="fine-tune",
        fact=fact,
        rows={name: torch.arange(len(weight))},
        changes={name: change.detach().to(weight.dtype).cpu()},
        layer=at,
        losses=torch.tensor(losses, dtype=torch.float64),
        settings={
            "layer": layer,
            "steps": steps,
            "lr": lr,
            "epsilon": epsilon if epsilon < float("inf") else "none",
            "weight_decay": weight_decay,
            "stop_at": stop_at,
            "seed": seed,
        },
        provenance=provenance(model, PromptBatch.from_resolved(model, [entry])),
    )


def _loss(
    model: Any,
    layer: int,
    resid: Float[Tensor, "row position d_model"],
    weight: Float[Tensor, "d_mlp d_model"],
    change: Float[Tensor, "d_mlp d_model"],
    answer: Int[Tensor, " token"],
) -> Tensor:
    """Mean −log p of the answer's tokens, at the last positions; what enters ``layer`` does not depend on Δ."""
    changed = (weight + change).to(weight.dtype)
    resid = functional_call(model.blocks[layer], {_WEIGHT: changed}, (resid,))
    for later in range(layer + 1, model.cfg.n_layers):
        resid = run_block(model, later, resid)
    logits = readout(model, resid[:, -len(answer) :])[0]
    return torch.nn.functional.cross_entropy(logits.to(change.dtype), answer)


def _check(steps: int, lr: float, epsilon: float, weight_decay: float, stop_at: float) -> None:
    if steps < 1 or not lr > 0 or not epsilon > 0:
        raise SettingsError(
            f"steps is {steps}, lr {lr:g}, epsilon {epsilon:g}; steps must be at least 1, the others above 0 "
            f"(epsilon=math.inf clips nothing)"
        )
    if not (weight_decay >= 0 and stop_at >= 0):
        raise SettingsError(f"weight_decay is {weight_decay:g} and stop_at {stop_at:g}; both must be 0 or more")
