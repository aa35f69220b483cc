"""Where and how hard a model is edited, by its name: published settings, measured ones, and a default for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kn_lens.editing.contexts import LENGTHS
from kn_lens.models.kind import model_name

Position = Literal["subject_last", "last"]
"""Where an edit acts: at the subject's last token (Meng et al.), or at the prompt's, whose outputs are the answer's."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Settings of the search for v*, by default those published for llama-2-7b.

    Attributes:
        layer: Layer of the edited matrix; None: to be found by tracing.
        steps: Evaluations of the loss; after the last one nothing is changed any more.
        lr: Adam's learning rate.
        weight_decay: Weight of ‖δ‖ / ‖v₀‖² in the loss.
        clamp: Largest ‖δ‖, in ‖v₀‖.
        kl_factor: Weight of the KL divergence on "{subject} is a".
        attention_layer: Of W_O, edited at the prompt's last token; None: to be found by tracing.
        position: Where an MLP is edited. In tiny-causal, as causal traces show, nothing that happens at the subject
            behind the first layer's attention reaches the answer: it is edited at the prompt's last token.
        prefixes: Sampled prefixes, (tokens, how many). tiny-causal was trained on single sentences and has none.
        tuning_lr: Adam's learning rate of the fine-tuning baseline.
        tuning_epsilon: The most that it may change a weight by (by trial: half of it writes few facts).
        source: Where the settings are from.
    """

    layer: int | None = None
    steps: int = 25
    lr: float = 0.5
    weight_decay: float = 1e-3
    clamp: float = 4.0
    kl_factor: float = 0.0625
    attention_layer: int | None = None
    position: Position = "subject_last"
    prefixes: tuple[tuple[int, int], ...] = LENGTHS
    tuning_lr: float = 1e-3
    tuning_epsilon: float = 5e-3
    source: str

    def position_at(self, site: str) -> Position:
        """Where an edit of ``"mlp"`` or ``"attn"`` acts: attention at the last token, which holds what it read."""
        return "last" if site == "attn" else self.position

    def layer_at(self, site: str) -> int | None:
        """The layer of the site's matrix; None: to be found by tracing."""
        return self.attention_layer if site == "attn" else self.layer


_KNOWN = {
    "gpt2-xl": Hyperparameters(layer=17, steps=20, weight_decay=0.5, source="published (ROME, gpt2-xl)"),
    "llama-2-7b": Hyperparameters(layer=5, source="published (llama-2-7b)"),
    "smollm2-135m": Hyperparameters(layer=4, attention_layer=20, source="measured on capitals"),
    "tiny-causal": Hyperparameters(
        layer=1,
        attention_layer=3,
        position="last",
        prefixes=(),
        tuning_lr=2e-3,
        tuning_epsilon=2e-2,
        source="measured on capitals",
    ),
}
_DEFAULT = Hyperparameters(source="default (as llama-2-7b)")


def hyperparameters_of(model: Any) -> Hyperparameters:
    """The settings for a model, by the longest known name that its own holds."""
    name = model_name(model).lower()
    matching = [known for known in _KNOWN if known in name]
    return _KNOWN[max(matching, key=len)] if matching else _DEFAULT
