"""What attention knockout returns: what the answer loses where it is kept from reading a block of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.results import Result
from kn_lens.tracing.averages import average_frame
from kn_lens.tracing.metrics import METRICS, check_metric

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class KnockoutTrace(Result):
    """Effects of cutting attention to the target position. Cut head by head, ``effects`` has one more axis.

    Attributes:
        effects: By metric, what the answer loses, by prompt, block and the layer the window is centered on; NaN where
            a prompt has no position of that block, and nothing is cut.
        clean: By metric, its value in the clean run.
        blocks: The positions cut off, see :data:`kn_lens.tracing.attention_knockout.Block`.
        window: Layers cut at once.
        foils: The word that the logit difference is taken against.
        metric: The one shown by default.
        prompts: The prompts, in order.
        dropped: Prompts left out, with reasons.
    """

    effects: dict[str, Float[Tensor, "prompt block layer *head"]]
    clean: dict[str, Float[Tensor, " prompt"]]
    blocks: tuple[str, ...]
    window: int
    foils: tuple[str, ...]
    metric: str
    prompts: tuple[Prompt, ...]
    dropped: tuple[Dropped, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def has_heads(self) -> bool:
        """Whether single heads were cut."""
        return next(iter(self.effects.values())).dim() == 4

    def average(self, metric: str | None = None, *, seed: int = 0, draws: int = 1000) -> pd.DataFrame:
        """The mean effect over the prompts that have the block, with bootstrap intervals over facts or pairs.

        Prompts with the same cue and answer are resampled together.

        Args:
            metric: By default the trace's own.
            seed: Of the bootstrap.
            draws: Of the bootstrap.

        Returns:
            Columns block, layer, (head,) mean, low, high (95 %), prompts.
        """
        name = self.metric if metric is None else metric
        check_metric(name)
        effects = dict(zip(self.blocks, self.effects[name].unbind(1), strict=True))
        axes = ["layer", *(["head"] if self.has_heads else [])]
        return average_frame(effects, self.prompts, "block", axes, seed=seed, draws=draws)

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt, block and layer (and head), one column per metric."""
        import pandas as pd

        known = ~self.effects[METRICS[0]].isnan()
        places = known.nonzero().numpy()
        names = ["prompt", "block", "layer", *(["head"] if self.has_heads else [])]
        frame = pd.DataFrame(places, columns=names)
        frame["block"] = [self.blocks[at] for at in places[:, 1]]
        for name, values in self.effects.items():
            frame[name] = values[known].numpy()
        return frame
