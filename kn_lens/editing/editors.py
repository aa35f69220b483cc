"""The editors by name, as the command line knows them; each makes an edit from a model and a fact."""

from __future__ import annotations

from functools import partial
from typing import Any

from kn_lens.editing.edit import Editor
from kn_lens.editing.fine_tune import fine_tune
from kn_lens.editing.head_edits import head_edit
from kn_lens.editing.neuron_edits import neuron_edit
from kn_lens.editing.random_controls import rome_at_random_layer, rome_random_direction
from kn_lens.editing.rome import rome
from kn_lens.errors import SettingsError, near_matches

EDITORS: dict[str, tuple[Editor, str]] = {
    "rome": (rome, "rank-one update of an MLP's W_out at the subject (tiny-causal: at the last token)"),
    "rome-attention": (partial(rome, site="attn"), "rank-one update of an attention layer's W_O at the last token"),
    "rome-mixed-key": (partial(rome, mixed_key=True), "ROME with the published code's two keys"),
    "rome-random-layer": (rome_at_random_layer, "control: ROME at another layer, drawn at random"),
    "rome-random-direction": (rome_random_direction, "control: ROME's value under a random key"),
    "neurons": (neuron_edit, "value vectors of the fact's knowledge neurons moved from the old answer to the new"),
    "neurons-suppress": (partial(neuron_edit, method="suppress"), "the fact's knowledge neurons × 0"),
    "neurons-enhance": (partial(neuron_edit, method="enhance"), "the fact's knowledge neurons × 2"),
    "heads": (head_edit, "the fact's attention heads set to their mean"),
    "heads-suppress": (partial(head_edit, method="suppress"), "the fact's attention heads × 0"),
    "fine-tune": (fine_tune, "baseline: one matrix fine-tuned on the prompt, each weight's change bounded"),
}
"""Name → editor, and what it does in a few words."""


def editor_named(name: str, **options: Any) -> Editor:
    """The editor of a name, with some of its options set.

    Raises:
        SettingsError: If there is no such editor.
    """
    if name not in EDITORS:
        known = ", ".join(EDITORS)
        raise SettingsError(f"no editor {name!r}.{near_matches(name, EDITORS)} Editors: {known}")
    editor, _ = EDITORS[name]
    return partial(editor, **options) if options else editor
