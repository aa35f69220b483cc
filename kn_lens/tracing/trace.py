"""What causal tracing returns."""

from __future__ import annotations

from dataclasses import dataclass

from kn_lens.results import Result
from kn_lens.tracing.state_effects import StateEffects


@dataclass(frozen=True, kw_only=True)
class CausalTrace(StateEffects, Result):
    """Effects of restored states, ``[prompt, position, layer]``, with one more axis for heads or neurons.

    Attributes:
        stream: What was restored; see :data:`kn_lens.streams.StreamName`.
        window: Layers restored at once, centered on the one named.
        corruption: How the cue was corrupted; ``corrupted`` holds means over its samples.
        severed: What was held at the values of the run patched into, after the patched layers; or None.
        sigma: Standard deviation of the noise; NaN without noise.

    The others are those of :class:`kn_lens.tracing.state_effects.StateEffects`; ``twins`` are there for swaps only.
    """

    stream: str
    window: int
    corruption: str
    severed: str | None
    sigma: float
