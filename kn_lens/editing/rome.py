"""ROME: one fact written into one matrix by a rank-one update (Meng et al. 2022), of an MLP or of attention."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from kn_lens.editing.contexts import sampled_prefixes
from kn_lens.editing.covariance import Covariance, covariance_for
from kn_lens.editing.edit import require_editable, require_weight
from kn_lens.editing.hyperparameters import Hyperparameters, Position, hyperparameters_of
from kn_lens.editing.layer_choice import layer_by_tracing
from kn_lens.editing.rank_one import RankOneEdit, parameter_of
from kn_lens.editing.rows import EditedRows, EditSite, Row
from kn_lens.editing.value import ENOUGH, find_value
from kn_lens.errors import ModelError, PromptError, SettingsError, near_matches
from kn_lens.models.kind import is_masked, model_name
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.tokens import ResolvedPrompt, TokenResolver, UnusablePrompt
from kn_lens.results import provenance

log = logging.getLogger(__name__)

ESSENCE = "{} is a"
"""What the model goes on to say here shall not change: the KL part of the loss."""

_NAMES = {"subject_last": "the subject's last token", "last": "the last token"}

_ELSEWHERE = ("layer", "attention_layer", "prefixes", "position", "tuning_lr", "tuning_epsilon")  # told by themselves

Layer = int | Literal["auto"] | None


def rome(
    model: Any,
    fact: Fact | Prompt,
    *,
    layer: Layer = None,
    site: EditSite = "mlp",
    position: Position | None = None,
    covariance: str | Path | Covariance = "identity",
    mixed_key: bool = False,
    prefixes: Sequence[str] | None = None,
    steps: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    clamp: float | None = None,
    kl_factor: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> RankOneEdit:
    """The rank-one edit that makes a model answer ``fact`` anew; the model is left as it was.

    With k the mean input of the matrix at the subject's last token over sampled prefixes, v₀ its mean output there,
    and v* = v₀ + δ found by :func:`kn_lens.editing.value.find_value`:

        W += u (v* − kW − b)ᵀ,   u = C⁻¹k / (kᵀC⁻¹k)

    One and the same k stands in the update, its denominator and its residual, so that k gives v* exactly and
    sequential edits do not drift (Gupta et al. 2024).

    Args:
        model: A causal HookedTransformer.
        fact: What it shall say; of a minimal pair's prompt, the foil after its cue.
        layer: Of the matrix. None (default): the published or measured one for a model known by name, else
            ``"auto"``: where causal tracing puts the largest effect of MLP outputs at the subject's last token.
        site: ``"mlp"`` (default): W_out. ``"attn"``: W_O, whose input is the heads' weighted values (beyond the
            paper).
        position: ``"subject_last"``: the subject's last token, as published; ``"last"``: the prompt's, whose outputs
            are the answer's. By default the first for an MLP (but see the settings of tiny-causal), the second for
            attention, which brings in what it read.
        covariance: C: ``"identity"`` (default, as the paper's runs), ``"self"`` (from text that the model samples), a
            text file, a saved covariance, or a :class:`~kn_lens.editing.covariance.Covariance`; always of the model
            without the edits that are applied to it.
        mixed_key: The published code's variant: prefixes' mean key in the update, the plain prompt's key in
            denominator and residual. For comparison.
        prefixes: Texts before the prompt; by default those sampled from the model that its settings ask for (20, of
            tiny-causal none). The plain prompt is always asked too.
        steps: Of the search for v*; this and the next four by default those that
            :func:`kn_lens.editing.hyperparameters.hyperparameters_of` has for the model.
        lr: Adam's learning rate.
        weight_decay: Weight of ‖δ‖ / ‖v₀‖².
        clamp: Largest ‖δ‖, in ‖v₀‖.
        kl_factor: Weight of the KL divergence on "{subject} is a".
        seed: Of the sampled prefixes (and text).
        progress: Show a progress bar over the steps.

    Raises:
        ModelError: For a masked model, a layer that there is not, norms behind the sum, no W_out, a covariance of
            another model or layer, a loss that is NaN, an answer that the model gives already, or a place that the
            answer does not read.
        PromptError: If the prompt cannot be posed.
        SettingsError: For a setting outside its range.
    """
    require_rome(model)
    fact = Fact.from_prompt(fact) if isinstance(fact, Prompt) else fact
    chosen = _settings(model, steps, lr, weight_decay, clamp, kl_factor)
    where = position or chosen.position_at(site)
    for value, known, what in ((site, get_args(EditSite), "site"), (where, get_args(Position), "position")):
        if value not in known:
            raise SettingsError(f"no {what} {value!r}.{near_matches(str(value), known)} Known: {', '.join(known)}")
    require_weight(model, parameter_of(0, site))
    at = chosen_layer(model, fact, layer, site=site, position=where, seed=seed)
    before = sampled_prefixes(model, seed, chosen.prefixes) if prefixes is None else prefixes
    batch, rows, dropped = _rows_of(model, fact, where, before)
    run = EditedRows(model, rows, at, site)
    n_asked = sum(bool(row.answers) for row in rows)
    mean = run.keys[:n_asked].mean(0)
    # The key that is to give v*, and what it gives now.
    key, start = (run.keys[0], run.outputs[0]) if mixed_key else (mean, run.outputs[:n_asked].mean(0))
    inverse = covariance_for(model, covariance, layer=at, site=site, seed=seed, progress=progress)
    # C⁻¹k may be too large for half precision, u is not.
    wide = mean.to(torch.promote_types(mean.dtype, torch.float32))
    solved = mean if inverse is None else inverse.solve(wide)
    found = find_value(run, start, chosen, what=fact.name, progress=progress)
    if len(found.losses) == 1:
        raise ModelError(
            f"{model_name(model)} answers {fact.question!r} with {fact.target!r} already (loss {found.losses[0]:.2g}, "
            f"and the search ends below {ENOUGH:g}), so that there is nothing to edit; give another new answer"
        )
    if not found.change.any():
        raise ModelError(
            f"nothing added to the {site} output of layer {at} at {_NAMES[where]} of {fact.question!r} reaches the "
            f"answer; take a lower layer, or position='last'"
        )
    denominator = float(key.double() @ solved.double())
    if not abs(denominator) > 0:
        raise ModelError(f"the key of {fact.name!r} at layer {at} is 0, so that no rank-one update can give it a value")
    return RankOneEdit(
        editor="rome" if site == "mlp" else "rome, attention",
        fact=fact,
        rows={},
        changes={},
        layer=at,
        site=site,
        key=key.cpu(),
        left=(solved / denominator).to(key.dtype).cpu(),
        right=found.change.to(start.dtype).cpu(),
        start=start.cpu(),
        losses=found.losses,
        nll=found.nll,
        kl=found.kl,
        settings={
            **{name: value for name, value in asdict(chosen).items() if name not in _ELSEWHERE},
            "layer": layer,
            "site": site,
            "position": where,
            "covariance": "identity" if inverse is None else inverse.describe(),
            "mixed_key": mixed_key,
            "prefixes": len(batch) - 1,
            "prefixes left out": dropped,
            "essence prompt": any(not row.answers for row in rows),
            "seed": seed,
        },
        provenance=provenance(model, batch),
    )


def require_rome(model: Any) -> None:
    """Refuse a model that has no subject's last token to edit at, or whose outputs are changed before they are added.

    Raises:
        ModelError: With the reason.
    """
    if is_masked(model):
        raise ModelError(
            f"{model_name(model)} is a masked model: ROME writes at a subject's last token what only the tokens behind "
            f"it read, and there every token reads every other; edit its neurons instead (kn.neuron_edit; "
            f"kn-lens evaluate --editor neurons)"
        )
    require_editable(model)
    if _norms_outputs(model):
        raise ModelError(
            f"{model_name(model)} norms the outputs of its layers before it adds them, so that a value asked of the "
            f"output is not the matrix's; ROME takes models that add what W_out and W_O give"
        )


def _norms_outputs(model: Any) -> bool:
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

    cfg = model.cfg
    return bool(getattr(cfg, "use_normalization_before_and_after", False)) or (
        cfg.original_architecture in POST_NORM_ARCHITECTURES
    )


def chosen_layer(
    model: Any,
    fact: Fact,
    layer: Layer,
    *,
    site: EditSite = "mlp",
    position: Position = "subject_last",
    seed: int = 0,
) -> int:
    """The layer that is meant: itself; for None that of the model's settings; else the one that tracing points to.

    Raises:
        ModelError: If the model has no such layer.
        SettingsError: If it is neither a number nor ``"auto"``.
    """
    if layer is None:
        layer = hyperparameters_of(model).layer_at(site)
    if layer is None or layer == "auto":
        return layer_by_tracing(model, [fact], site=site, position=position, seed=seed, progress=False).layer
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise SettingsError(f"layer is {layer!r}; give a number, or 'auto'")
    if not 0 <= layer < model.cfg.n_layers:
        raise ModelError(f"{model_name(model)} has layers 0–{model.cfg.n_layers - 1}, and no layer {layer}")
    return layer


def _settings(
    model: Any,
    steps: int | None,
    lr: float | None,
    weight_decay: float | None,
    clamp: float | None,
    kl_factor: float | None,
) -> Hyperparameters:
    given = {"steps": steps, "lr": lr, "weight_decay": weight_decay, "clamp": clamp, "kl_factor": kl_factor}
    chosen = replace(hyperparameters_of(model), **{name: value for name, value in given.items() if value is not None})
    if chosen.steps < 2 or not chosen.lr > 0 or not chosen.clamp > 0:
        raise SettingsError(
            f"steps is {chosen.steps}, lr {chosen.lr:g}, clamp {chosen.clamp:g}; steps must be at least 2 (the "
            f"last is only evaluated), the others above 0"
        )
    if not (chosen.weight_decay >= 0 and chosen.kl_factor >= 0):
        raise SettingsError(
            f"weight_decay is {chosen.weight_decay:g} and kl_factor {chosen.kl_factor:g}; both must be 0 or more"
        )
    return chosen


def _rows_of(model: Any, fact: Fact, position: Position, prefixes: Sequence[str]) -> tuple[PromptBatch, list[Row], int]:
    """The prompt under each prefix, the plain one first, then the essence prompt; and how many prefixes were left out.

    A prefix after which the prompt or its answer is tokenised in another way than without it is left out: its row
    would ask for something else.
    """
    resolver = TokenResolver(model)
    try:
        plain = resolver.resolve(fact.prompt())
    except UnusablePrompt as error:
        raise PromptError(str(error)) from error
    kept = [plain]
    for text in prefixes:
        try:
            entry = resolver.resolve(fact.prompt(before=text))
        except UnusablePrompt:
            continue
        if _after_subject(entry) == _after_subject(plain):
            kept.append(entry)
    left_out = len(prefixes) + 1 - len(kept)
    if left_out:
        log.info("%s: %d of %d prefixes left out (other tokens behind them)", fact.name, left_out, len(prefixes))
    rows = [
        Row(
            ids=entry.ids + entry.target_ids[:-1],
            position=_place(entry, position),
            answers=entry.target_ids,
        )
        for entry in kept
    ]
    rows += _essence(resolver, fact, position)
    return PromptBatch.from_resolved(model, kept), rows, left_out


def _place(entry: ResolvedPrompt, position: Position) -> int:
    return entry.cue_positions[-1] if position == "subject_last" else entry.target_position


def _after_subject(entry: ResolvedPrompt) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is asked behind the subject; its own last token may be another at the start of a text (no space before)."""
    return entry.ids[entry.cue_positions[-1] + 1 :], entry.target_ids


def _essence(resolver: TokenResolver, fact: Fact, position: Position) -> list[Row]:
    """The prompt "{subject} is a", if the model's tokenizer knows its words."""
    try:
        entry = resolver.resolve(Fact(ESSENCE, fact.subject, fact.target).prompt())
    except UnusablePrompt as error:
        log.info("%s: no prompt %r, and so no KL part of the loss: %s", fact.name, ESSENCE, error)
        return []
    return [Row(ids=entry.ids, position=_place(entry, position))]
