"""Causal tracing and attention knockout in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from kn_lens.batches.methods.join import ByPrompt
from kn_lens.batches.methods.method import (
    ONE_OR_SEVERAL,
    Method,
    MethodSettings,
    Preparation,
    Work,
    by_block,
    check_layers,
)
from kn_lens.errors import PromptError, SettingsError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from kn_lens.prompts.batch import PromptBatch
    from kn_lens.tracing.knockout_trace import KnockoutTrace
    from kn_lens.tracing.trace import CausalTrace

Stream = Literal["resid", "mlp", "attn", "head", "neuron"]
MetricName = Literal["probability", "log_probability", "logit_difference", "kl"]
PositionsName = Literal["target", "cue_last", "cue", "all"]
DirectionName = Literal["sufficiency", "necessity"]
Layers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]

STATE_EFFECTS = ByPrompt(
    fields=frozenset(
        ["effects", "clean", "corrupted", "tokens", "cue_positions", "target_positions", "foils", "twins", "prompts"]
    )
)
"""How results of states' effects are joined."""


class CausalTraceSettings(MethodSettings):
    """Options of :func:`kn_lens.causal_trace`; ``stream`` takes several, ``swaps`` a mapping from cues to new ones."""

    stream: Annotated[tuple[Stream, ...], ONE_OR_SEVERAL] = ("resid",)
    window: int | None = Field(default=None, ge=1)
    corruption: Literal["noise", "swap", "zero", "mean"] = "noise"
    samples: int = Field(default=10, ge=1)
    noise: float = Field(default=3.0, gt=0)
    sigma: float | None = Field(default=None, gt=0)
    swaps: dict[str, str] | None = None
    direction: DirectionName = "sufficiency"
    severed: Literal["mlp", "attn"] | None = None
    layers: Layers | None = None
    positions: PositionsName = "all"
    metric: MetricName | None = None


class CausalTraceMethod(Method):
    """:func:`kn_lens.causal_trace`, stream by stream; σ is measured on the cues of all prompts of a data set."""

    name = "causal_trace"
    variant_name = "stream"
    Settings = CausalTraceSettings
    needs_cues: ClassVar[bool] = True
    joined: ClassVar[ByPrompt] = STATE_EFFECTS

    def check(self, settings: CausalTraceSettings) -> None:
        """See :meth:`Method.check`."""
        if settings.swaps is not None and settings.corruption != "swap":
            raise SettingsError(
                f"swaps is given and the corruption is {settings.corruption!r}; take corruption: swap, or leave it out"
            )
        if "neuron" in settings.stream and settings.layers is None:
            raise SettingsError("stream neuron traces every neuron of a layer; say which layers, as in layers: [5]")
        for stream in settings.stream:
            if stream in ("head", "neuron") and settings.window not in (None, 1):
                raise SettingsError(
                    f"window is {settings.window} for stream {stream!r}: the units of two layers have nothing in "
                    f"common but a number; take window 1"
                )

    def check_model(self, model: Any, settings: CausalTraceSettings) -> None:
        """See :meth:`Method.check_model`."""
        from kn_lens.streams import stream_of

        for stream in settings.stream:
            stream_of(model, stream)
        check_layers(model, "layers", settings.layers or ())

    def twins(self, settings: CausalTraceSettings) -> bool:
        """For the corruption by another cue."""
        return settings.corruption == "swap"

    def prepare(self, model: Any, settings: CausalTraceSettings) -> Preparation:
        """σ of the noise, unless it is given, or the mean embedding."""
        measured = settings.corruption == "mean" or (settings.corruption == "noise" and settings.sigma is None)
        return MetricFits(settings.metric, _CueEmbeddings(model, settings) if measured else None)

    def compute(self, model: Any, work: Work) -> CausalTrace:
        """See :meth:`Method.compute`."""
        from kn_lens.tracing.causal_trace import causal_trace

        settings: CausalTraceSettings = work.settings
        options = settings.model_dump(exclude={"stream", "swaps", "sigma"})
        return causal_trace(
            model,
            work.posed,
            stream=work.variant,
            sigma=work.prepared.get("sigma", settings.sigma),
            mean=work.prepared.get("mean"),
            swaps=work.swaps,
            seed=work.seed,
            memory_budget=work.memory_budget,
            progress=False,
            **options,
        )

    def frame(self, result: CausalTrace, work: Work) -> pd.DataFrame:
        """One row per prompt and state, one column per metric."""
        return by_block(result.to_frame(), self.done(result, work))


class MetricFits:
    """Refuses a metric that the prompts have not, and prompts of two kinds, whose default metrics differ.

    Args:
        metric: That of the settings.
        inner: What else is measured over the prompts.
    """

    def __init__(self, metric: str | None, inner: Preparation | None = None) -> None:
        self.metric, self.inner = metric, inner
        self._two_prefix: bool | None = None

    def add(self, batch: PromptBatch) -> None:
        """Take in a block of prompts.

        Raises:
            SettingsError: For the logit difference of two-prefix pairs.
            PromptError: If they share a data set with other prompts.
        """
        from kn_lens.tracing.metrics import default_metric

        default_metric(self.metric, batch)
        two_prefix = batch.rivals is not None
        if self._two_prefix not in (None, two_prefix):
            raise PromptError("two-prefix pairs cannot share a data set with other prompts; give them apart")
        self._two_prefix = two_prefix
        if self.inner is not None:
            self.inner.add(batch)

    def values(self) -> dict[str, Any]:
        """What else was measured."""
        return {} if self.inner is None else self.inner.values()


class _CueEmbeddings:
    """Mean and spread of the embeddings of all cue tokens, in float64, whatever the blocks.

    σ = noise · standard deviation over all numbers of all cue tokens' embeddings.
    """

    def __init__(self, model: Any, settings: CausalTraceSettings) -> None:
        from kn_lens.tracing.corruption import embedding_matrix

        self.settings = settings
        self._matrix: Tensor = embedding_matrix(model)
        self._counts: dict[int, int] = {}

    def add(self, batch: PromptBatch) -> None:
        """Take in a block of prompts."""
        for entry in batch.resolved:
            for at in entry.cue_positions:
                token = entry.ids[at]
                self._counts[token] = self._counts.get(token, 0) + 1

    def values(self) -> dict[str, Any]:
        """``sigma``, or ``mean``."""
        import torch

        # Token by token, in their order: the sums are then the same to the last bit in whatever blocks prompts came.
        tokens = sorted(self._counts)
        total = sum(self._counts.values())
        mean = torch.zeros(self._matrix.shape[1], dtype=torch.float64)
        for token in tokens:
            mean += self._counts[token] * self._matrix[token].double().cpu()
        mean /= total
        if self.settings.corruption == "mean":
            return {"mean": mean.tolist()}
        center = float(mean.mean())
        spread = 0.0
        for token in tokens:
            spread += self._counts[token] * float((self._matrix[token].double().cpu() - center).square().sum())
        return {"sigma": self.settings.noise * (spread / (total * len(mean))) ** 0.5}


class AttentionKnockoutSettings(MethodSettings):
    """Options of :func:`kn_lens.attention_knockout`."""

    window: int | None = Field(default=None, ge=1)
    blocks: Annotated[tuple[Literal["cue", "other", "target"], ...], ONE_OR_SEVERAL] = ("cue", "other", "target")
    heads: bool = False
    metric: MetricName | None = None


class AttentionKnockoutMethod(Method):
    """:func:`kn_lens.attention_knockout`."""

    name = "attention_knockout"
    Settings = AttentionKnockoutSettings
    needs_cues: ClassVar[bool] = True
    joined: ClassVar[ByPrompt] = ByPrompt(fields=frozenset(["effects", "clean", "foils", "prompts"]))

    def check(self, settings: AttentionKnockoutSettings) -> None:
        """See :meth:`Method.check`."""
        if settings.heads and settings.window not in (None, 1):
            raise SettingsError(
                f"window is {settings.window} with heads: the heads of two layers have nothing in common but a "
                f"number; take window 1"
            )

    def check_model(self, model: Any, settings: AttentionKnockoutSettings) -> None:
        """See :meth:`Method.check_model`."""
        from kn_lens.streams import stream_of

        stream_of(model, "pattern")  # refuses models whose attention hooks are not what is cut

    def prepare(self, model: Any, settings: AttentionKnockoutSettings) -> Preparation:
        """Only whether the metric suits the prompts."""
        return MetricFits(settings.metric)

    def compute(self, model: Any, work: Work) -> KnockoutTrace:
        """See :meth:`Method.compute`."""
        from kn_lens.tracing.attention_knockout import attention_knockout

        options = work.settings.model_dump()
        return attention_knockout(model, work.posed, memory_budget=work.memory_budget, progress=False, **options)

    def frame(self, result: KnockoutTrace, work: Work) -> pd.DataFrame:
        """One row per prompt, block and layer (and head), one column per metric."""
        return by_block(result.to_frame(), self.done(result, work))
