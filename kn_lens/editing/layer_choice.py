"""Which layer to edit: the one whose MLP output, where the edit acts, brings back most of a known answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.editing.edit import require_editable
from kn_lens.editing.hyperparameters import Position
from kn_lens.editing.rows import EditSite
from kn_lens.errors import PromptError
from kn_lens.models.kind import model_name
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Dropped, count_reasons
from kn_lens.results import Result
from kn_lens.tracing.causal_trace import causal_trace

if TYPE_CHECKING:
    import pandas as pd

_INSTEAD = "give layer=N, the number of a layer"


@dataclass(frozen=True, kw_only=True)
class LayerChoice(Result):
    """A layer chosen by causal tracing.

    Attributes:
        layer: Of the largest mean effect; of layers that are equal the lowest.
        effects: Indirect effect of restoring the MLP (or attention) outputs around each layer where the edit would act.
        metric: What the effects are measured in.
        window: How many layers were restored together.
        facts: The facts that were traced, one per row of ``effects``.
        dropped: The others: answered wrongly, of several tokens, without an old answer.
    """

    layer: int
    effects: Float[Tensor, "fact layer"]
    metric: str
    window: int
    facts: tuple[Fact, ...]
    dropped: tuple[Dropped, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: the mean effect over facts."""
        import pandas as pd

        means = self.effects.mean(0).tolist()
        return pd.DataFrame({"layer": range(len(means)), "effect": means, "facts": len(self.facts)})


def layer_by_tracing(
    model: Any,
    facts: Sequence[Fact],
    *,
    site: EditSite = "mlp",
    position: Position = "subject_last",
    seed: int = 0,
    progress: bool = True,
) -> LayerChoice:
    """The layer of the largest mean indirect effect of MLP outputs at the subject's last token (Meng et al. 2022).

    The facts are asked for their old answers. Where tracing points to is not always where an edit works best (Hase et
    al. 2023); a sweep over layers tells.

    Args:
        model: A model that can be edited; it is left as it was.
        facts: Facts with old answers; those that the model does not give are left out and counted.
        site: ``"mlp"`` (default), or ``"attn"``: effects of attention outputs.
        position: ``"subject_last"`` (default), or ``"last"``: effects at the prompt's last token.
        seed: Of the noise.
        progress: Show a progress bar.

    Raises:
        PromptError: If no fact has an old answer, or the model gives none of them.
        ModelError: For a model that cannot be edited.
    """
    require_editable(model)
    asked = {fact.prompt(fact.old): fact for fact in facts if fact.old is not None}
    unknown = [
        Dropped(text=fact.question, reason="old answer not known", source=fact.source)
        for fact in facts
        if fact.old is None
    ]
    if not asked:
        first = f" {facts[0].question!r}" if facts else " the facts, which are none"
        raise PromptError(
            f"no layer can be chosen by tracing: the answer before the edit is not known of{first}; give the fact "
            f"old=…, or {_INSTEAD}"
        )
    try:
        batch = PromptBatch.from_prompts(model, asked, targets="single", on_unusable="drop")
        traced = "cue_last" if position == "subject_last" else "target"
        trace = causal_trace(model, batch, stream=site, positions=traced, seed=seed, progress=progress)
    except PromptError as error:
        raise PromptError(f"no layer of {model_name(model)} can be chosen by tracing: {error}; {_INSTEAD}") from error
    rows = torch.arange(len(trace))
    last = torch.tensor(
        [positions[-1] for positions in trace.cue_positions]
        if position == "subject_last"
        else [*trace.target_positions]
    )
    effects = trace.effects[trace.metric][rows, last]
    return LayerChoice(
        layer=int(effects.mean(0).argmax()),
        effects=effects,
        metric=trace.metric,
        window=trace.window,
        facts=tuple(asked[prompt] for prompt in trace.prompts),
        dropped=(*unknown, *trace.dropped),
        settings={
            "seed": seed,
            "position": position,
            "facts": len(facts),
            "left out": count_reasons([*unknown, *trace.dropped]),
        },
        provenance=trace.provenance,
    )
