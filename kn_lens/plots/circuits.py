"""Attention patterns and neuron activations as circuitsvis draws them, on pages that open without a network.

A circuitsvis object shown as text points to a CDN, and one shown offline carries the whole script with it. Here a page
carries the script once, whatever is drawn on it.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from kn_lens.errors import OutputError, PromptError, UnitsError
from kn_lens.models.kind import model_name
from kn_lens.models.stepping import target_logits
from kn_lens.plots.style import BLUE, INK, VERMILLION
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.prompt import Prompt
from kn_lens.sites import Unit, site_of

_STYLE = f"font-family:Helvetica,Arial,sans-serif;font-size:13px;color:{INK};margin:18px"


@dataclass(frozen=True)
class _Part:
    """One circuitsvis element below a heading (none if empty)."""

    heading: str
    element: str
    props: dict[str, Any]


@dataclass(frozen=True)
class CircuitPage:
    """Elements that are drawn by one copy of circuitsvis' script; Jupyter shows it, :meth:`save` writes it.

    Attributes:
        title: What is shown.
        subtitle: Model and settings.
        parts: The elements, in order.
    """

    title: str
    subtitle: str
    parts: tuple[_Part, ...]

    def fragment(self, script: bool = True) -> str:
        """HTML to put into a page: headings, the elements, and the script that draws them.

        Args:
            script: Carry circuitsvis with it. A page of several fragments carries it once: :func:`circuits_script`,
                before the first of them.
        """
        boxes, calls = [], []
        for part in self.parts:
            name = f"circuits-{uuid4().hex[:12]}"
            heading = f"<h3 style='margin:18px 0 4px'>{html.escape(part.heading)}</h3>" if part.heading else ""
            boxes.append(f"{heading}<div id='{name}' style='margin:2px 0'></div>")
            # A token such as "</script>" must not end the script.
            props = json.dumps(part.props).replace("</", "<\\/")
            calls.append(f"CircuitsVis.render('{name}', CircuitsVis.{part.element}, {props});")
        head = (
            f"<h2 style='margin:0'>{html.escape(self.title)}</h2><p style='color:#555'>{html.escape(self.subtitle)}</p>"
        )
        text = "\n".join([*([_bundle()] if script else []), *calls])
        return f"<div style='{_STYLE}'>{head}{''.join(boxes)}</div>\n<script type='module'>\n{text}\n</script>"

    def html(self) -> str:
        """A whole page, which opens without a network."""
        return (
            "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            f"<title>{html.escape(self.title)}</title></head><body style='margin:0'>{self.fragment()}</body></html>\n"
        )

    def save(self, path: str | Path) -> Path:
        """Write the page to ``path``.

        Raises:
            OutputError: If it cannot be written.
        """
        path = Path(path)
        try:
            path.write_text(self.html(), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
        return path

    def to_json(self) -> dict[str, Any]:
        """The page as JSON can hold it; :meth:`from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> CircuitPage:
        """The page that :meth:`to_json` told of.

        Raises:
            OutputError: If the fields are of no such page.
        """
        try:
            parts = tuple(_Part(**part) for part in fields["parts"])
            return cls(title=fields["title"], subtitle=fields["subtitle"], parts=parts)
        except (KeyError, TypeError) as error:
            raise OutputError(f"this is no page of circuitsvis elements ({error!r}); make it again") from None

    def _repr_html_(self) -> str:
        return self.fragment()


def circuits_script() -> str:
    """JavaScript that sets ``window.CircuitsVis``, for a page of several fragments that carry no script themselves.

    It stands in a ``<script>`` of either type before the first fragment, and loads nothing.
    """
    return f"window.CircuitsVis = window.CircuitsVis || (() => {{\n{_bundle()}\nreturn CircuitsVis;\n}})();"


def attention_of_heads(model: Any, prompt: Prompt | PromptBatch, heads: Sequence[Unit]) -> CircuitPage:
    """Attention patterns of some heads on one prompt: rows attend to columns.

    Args:
        model: A loaded model.
        prompt: One prompt, or a batch of one, which is shown with the tokens that it has.
        heads: The heads as (layer, head), in the order in which they are shown.

    Raises:
        UnitsError: If the model has no such head, or none is given.
        PromptError: If there are several prompts, or the model cannot be asked the one.
    """
    chosen = _checked(model, "head", heads)
    batch = as_batch(model, prompt)
    if len(batch) > 1:
        raise PromptError(f"attention_of_heads shows one prompt, and there are {len(batch)}; give batch.select([0])")
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in sorted({layer for layer, _ in chosen})]
    (store,) = _activations(model, batch, names)
    patterns = [store[f"blocks.{layer}.attn.hook_pattern"][head].tolist() for layer, head in chosen]
    props = {
        "attention": patterns,
        "attentionHeadNames": [f"{layer}:{head}" for layer, head in chosen],
        "tokens": _shown(batch, 0),
        "maskUpperTri": not batch.masked,
        "minValue": 0.0,
        "maxValue": 1.0,
        "positiveColor": BLUE,
    }
    entry = batch.prompts[0]
    subtitle = f"{model_name(model)}, heads as layer:head from 0. Prompt: {entry.text} → {entry.target}"
    return CircuitPage("Attention patterns of heads", subtitle, (_Part("", "AttentionHeads", props),))


def neuron_activations(
    model: Any, prompts: PromptBatch | Prompt | Iterable[Prompt], units: Sequence[Unit], *, site: str = "mlp"
) -> CircuitPage:
    """Activations of some neurons on every token of some prompts: blue above 0, vermillion below.

    Each neuron has a scale of its own, the same for all prompts; hovering over a token shows its value.

    Args:
        model: A loaded model.
        prompts: The prompts, in the order in which they are shown.
        units: The neurons as (layer, index).
        site: ``"mlp"`` (default) or ``"mlp_pre"``; see :data:`kn_lens.sites.SiteName`.

    Raises:
        UnitsError: If the model has no such neuron, or none is given.
        PromptError: If the model cannot be asked a prompt.
    """
    chosen = _checked(model, site, units)
    where = site_of(model, site)
    if where.is_head:
        raise UnitsError("neuron_activations shows neurons; for heads take attention_of_heads")
    batch = as_batch(model, prompts)
    names = [where.hook(layer) for layer in sorted({layer for layer, _ in chosen})]
    stores = _activations(model, batch, names)
    parts = []
    for layer, index in chosen:
        values = [store[where.hook(layer)][:, index].tolist() for store in stores]
        reach = max(abs(value) for row in values for value in row) or 1.0
        for at, row in enumerate(values):
            props = {
                "tokens": _shown(batch, at),
                "values": row,
                "minValue": -reach,
                "maxValue": reach,
                "positiveColor": BLUE,
                "negativeColor": VERMILLION,
            }
            heading = "" if at else f"neuron {layer}:{index}, largest |activation| {reach:.3g}"
            parts.append(_Part(heading, "ColoredTokens", props))
    subtitle = f"{model_name(model)}, site {site}, neurons as layer:index from 0, {len(batch)} prompts"
    return CircuitPage("Activations of neurons, token by token", subtitle, tuple(parts))


def _checked(model: Any, site: str, units: Sequence[Unit]) -> list[Unit]:
    chosen = list(dict.fromkeys((int(layer), int(index)) for layer, index in units))
    if not chosen:
        raise UnitsError(f"no {'heads' if site == 'head' else 'neurons'} to show; give (layer, index) pairs")
    site_of(model, site).check(chosen, model)
    return chosen


@torch.no_grad()
def _activations(model: Any, batch: PromptBatch, names: Sequence[str]) -> list[dict[str, Tensor]]:
    """The activations named, of each prompt by itself; nothing else is kept."""
    found = []
    for entry in batch.resolved:
        store: dict[str, Tensor] = {}

        def record(activation: Tensor, hook: Any, store: dict[str, Tensor] = store) -> None:
            store[hook.name] = activation[0].detach().float().cpu()

        tokens = torch.tensor([entry.ids], device=batch.tokens.device)
        with model.hooks(fwd_hooks=[(name, record) for name in names]):
            target_logits(model, tokens, torch.tensor([entry.target_position], device=tokens.device))
        found.append(store)
    return found


def _shown(batch: PromptBatch, index: int) -> list[str]:
    """Token labels; circuitsvis takes them for HTML, so that ``<s>`` would vanish, and ``‹s›`` does not."""
    table = str.maketrans({"<": "‹", ">": "›", "&": "＆"})
    return [f" {label.translate(table)} " for label in batch.token_labels(index)]


@cache
def _bundle() -> str:
    """circuitsvis' script, as the package carries it."""
    import circuitsvis

    path = Path(circuitsvis.__file__).parent / "dist" / "cdn" / "iife.js"
    # It ends in a reference to a map of its sources, which is not shipped with the page.
    text = path.read_text(encoding="utf-8").partition("//# sourceMappingURL=")[0]
    return text.replace("</script>", "<\\/script>")
