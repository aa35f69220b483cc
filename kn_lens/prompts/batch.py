"""Prompts of one model as tensors: tokenised once, padded on the right, nothing dropped in silence."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kn_lens.errors import PromptError
from kn_lens.models.kind import is_masked, model_name
from kn_lens.prompts.prompt import Dropped, Prompt, count_reasons, group_indices
from kn_lens.prompts.tokens import ResolvedPrompt, TokenResolver, UnusablePrompt


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Prompts resolved for one model.

    Attributes:
        resolved: The prompts with their token ids, in order.
        tokens: Ids, padded on the right; causal models never see the padding, masked ones are
            given ``mask``.
        mask: True where there is a token.
        target_positions: The position whose logits answer.
        target_ids: First token of each target.
        foil_ids: First token of each foil, -1 where there is none.
        rivals: For two-prefix pairs: the other prefix of each prompt, as a batch of its own.
        dropped: Prompts left out, with reasons.
        masked: Whether the prompts are for a masked model.
        prepend_bos: None if the tokenizer decided (default).
    """

    resolved: tuple[ResolvedPrompt, ...]
    tokens: Int[Tensor, "prompt position"]
    mask: Bool[Tensor, "prompt position"]
    target_positions: Int[Tensor, " prompt"]
    target_ids: Int[Tensor, " prompt"]
    foil_ids: Int[Tensor, " prompt"]
    rivals: PromptBatch | None = None
    dropped: tuple[Dropped, ...] = ()
    masked: bool
    model_name: str
    prepend_bos: bool | None = None
    _tokenizer: Any = field(repr=False, compare=False, default=None)

    @classmethod
    def from_prompts(
        cls,
        model: Any,
        prompts: Iterable[Prompt],
        *,
        targets: Literal["single", "any"] = "any",
        on_unusable: Literal["raise", "drop"] = "raise",
        prepend_bos: bool | None = None,
    ) -> PromptBatch:
        """Resolve prompts for a model.

        Args:
            model: Model with a tokenizer.
            prompts: The prompts.
            targets: ``"single"`` leaves out targets of several tokens; ``"any"`` keeps them
                (attribution averages over the target's tokens, teacher-forced).
            on_unusable: ``"raise"`` stops at the first prompt that the model cannot be asked;
                ``"drop"`` leaves it out and records why.
            prepend_bos: None leaves the BOS to the tokenizer; True or False forces it.

        Raises:
            PromptError: If a prompt cannot be posed (``"raise"``), or if none is left.
        """
        resolver = TokenResolver(model, prepend_bos)
        kept: list[ResolvedPrompt] = []
        dropped: list[Dropped] = []
        for prompt in prompts:
            try:
                kept.append(resolver.resolve(prompt, single_token=targets == "single"))
            except UnusablePrompt as error:
                if on_unusable == "raise":
                    where = f" ({prompt.source})" if prompt.source else ""
                    raise PromptError(f"{error}{where}") from error
                dropped.append(Dropped(text=prompt.text, reason=error.reason, source=prompt.source))
        return cls.from_resolved(model, kept, dropped, prepend_bos=prepend_bos)

    @classmethod
    def from_resolved(
        cls,
        model: Any,
        resolved: Sequence[ResolvedPrompt],
        dropped: Sequence[Dropped] = (),
        *,
        prepend_bos: bool | None = None,
    ) -> PromptBatch:
        """A batch of prompts whose tokens are known already.

        Raises:
            PromptError: If there are none, with the reasons why others were left out.
        """
        if not resolved:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in count_reasons(dropped).items())
            raise PromptError(
                f"{model_name(model)} can be asked none of the {len(dropped)} prompts ({reasons})"
                if dropped
                else "no prompts: give at least one"
            )
        return cls._build(
            resolved,
            dropped=tuple(dropped),
            masked=is_masked(model),
            model_name=model_name(model),
            prepend_bos=prepend_bos,
            tokenizer=model.tokenizer,
            device=next(model.parameters()).device,
        )

    @classmethod
    def _build(
        cls,
        resolved: Sequence[ResolvedPrompt],
        *,
        tokenizer: Any,
        device: torch.device,
        **shared: Any,
    ) -> PromptBatch:
        width = max(len(entry.ids) for entry in resolved)
        tokens = torch.full((len(resolved), width), tokenizer.pad_token_id or 0, dtype=torch.long)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for index, entry in enumerate(resolved):
            tokens[index, : len(entry.ids)] = torch.tensor(entry.ids)
            mask[index, : len(entry.ids)] = True
        with_rival = [entry for entry in resolved if entry.rival_ids is not None]
        if with_rival and len(with_rival) != len(resolved):
            raise PromptError("two-prefix pairs cannot share a batch with other prompts; ask them apart")
        rivals = None
        if with_rival:
            others = [_as_rival(entry) for entry in with_rival]
            rivals = cls._build(others, tokenizer=tokenizer, device=device, **{**shared, "dropped": ()})

        def indices(values: Iterable[int]) -> Int[Tensor, " prompt"]:
            return torch.tensor(list(values), dtype=torch.long, device=device)

        return cls(
            resolved=tuple(resolved),
            tokens=tokens.to(device),
            mask=mask.to(device),
            target_positions=indices(entry.target_position for entry in resolved),
            target_ids=indices(entry.target_ids[0] for entry in resolved),
            foil_ids=indices(-1 if entry.foil_ids is None else entry.foil_ids[0] for entry in resolved),
            rivals=rivals,
            _tokenizer=tokenizer,
            **shared,
        )

    def _with(self, resolved: Sequence[ResolvedPrompt]) -> PromptBatch:
        return PromptBatch._build(
            resolved,
            dropped=self.dropped,
            masked=self.masked,
            model_name=self.model_name,
            prepend_bos=self.prepend_bos,
            tokenizer=self._tokenizer,
            device=self.tokens.device,
        )

    def __len__(self) -> int:
        return len(self.resolved)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts as text."""
        return tuple(entry.prompt for entry in self.resolved)

    @property
    def groups(self) -> dict[str, list[int]]:
        """Indices of the prompts of each group, groups in order of appearance."""
        return group_indices(self.prompts)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each prompt."""
        return [len(entry.ids) for entry in self.resolved]

    @property
    def starts_with_bos(self) -> bool:
        """Whether the prompts begin with the tokenizer's BOS (or CLS), by its own rule or by ``prepend_bos``."""
        first = self.resolved[0].ids[0]
        return first in (self._tokenizer.bos_token_id, self._tokenizer.cls_token_id)

    def select(self, indices: Sequence[int]) -> PromptBatch:
        """The prompts at ``indices``, without tokenising again."""
        return self._with([self.resolved[index] for index in indices])

    def fingerprint(self) -> str:
        """SHA-256 of the tokens, targets and foils: the same prompts give the same one."""
        asked = [(entry.ids, entry.target_ids, entry.foil_ids, entry.rival_ids) for entry in self.resolved]
        return hashlib.sha256(repr(asked).encode()).hexdigest()

    def token_labels(self, index: int) -> list[str]:
        """The tokens of prompt ``index`` as readable strings."""
        return [self.decode(token) for token in self.resolved[index].ids]

    def decode(self, token: int) -> str:
        """A token as text."""
        return self._tokenizer.decode([token]).strip() or repr(self._tokenizer.decode([token]))

    def teacher_forced(self) -> tuple[PromptBatch, list[int]]:
        """One single-token prompt per target token, and the prompt that each belongs to.

        A prompt with target tokens t₁ … tₖ becomes k prompts: the text for t₁, the text and t₁ for
        t₂, and so on.
        """
        if all(len(entry.target_ids) == 1 for entry in self.resolved):
            return self, list(range(len(self)))
        steps: list[ResolvedPrompt] = []
        owners: list[int] = []
        for index, entry in enumerate(self.resolved):
            for count, token in enumerate(entry.target_ids):
                ids = entry.ids + entry.target_ids[:count]
                steps.append(replace(entry, ids=ids, target_position=len(ids) - 1, target_ids=(token,), foil_ids=None))
                owners.append(index)
        return self._with(steps), owners


def as_batch(model: Any, prompts: PromptBatch | Prompt | Iterable[Prompt]) -> PromptBatch:
    """Prompts in any form that the public functions take, as a batch for ``model``.

    Raises:
        PromptError: If a batch was made for another kind of model, or a prompt cannot be posed.
    """
    if isinstance(prompts, PromptBatch):
        if prompts.masked != is_masked(model):
            kinds = ("masked", "causal") if prompts.masked else ("causal", "masked")
            raise PromptError(
                f"the prompts were made for {prompts.model_name}, a {kinds[0]} model; {model_name(model)} is "
                f"{kinds[1]}: make them anew with .prompts(model)"
            )
        highest = int(prompts.tokens.max())
        if highest >= model.cfg.d_vocab:
            raise PromptError(
                f"the prompts hold token {highest} and {model_name(model)} knows {model.cfg.d_vocab} tokens: "
                f"they were made for {prompts.model_name}; make them anew with .prompts(model)"
            )
        return prompts
    if isinstance(prompts, Prompt):
        prompts = [prompts]
    return PromptBatch.from_prompts(model, prompts)


def _as_rival(entry: ResolvedPrompt) -> ResolvedPrompt:
    """The other prefix of a two-prefix pair, asked for the same word."""
    ids = entry.rival_ids or ()
    cue = entry.rival_cue_positions
    return replace(entry, ids=ids, target_position=len(ids) - 1, foil_ids=None, cue_positions=cue, rival_ids=None)
