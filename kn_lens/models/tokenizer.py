"""The tokenizer that a loaded model carries: Hugging Face's own, with Hugging Face's defaults."""

from __future__ import annotations

from typing import Any


def attach_tokenizer(model: Any, tokenizer: Any) -> None:
    """Set ``model.tokenizer`` and make the model's string functions agree with it.

    TransformerLens would swap in a copy that adds a BOS and would invent missing special tokens; here
    ``model.to_tokens(text)`` gives exactly ``tokenizer(text)``. Two things are set on the tokenizer: it pads on the
    right, and with a token that it has already if none is named for padding. Its vocabulary does not change.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        spare = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
        tokenizer.pad_token = spare if spare is not None else tokenizer.convert_ids_to_tokens(0)
    adds_bos = adds_bos_itself(tokenizer)
    if isinstance(getattr(type(model), "tokenizer", None), property):
        # TransformerBridge: its setter would wrap the tokenizer again so that it adds a BOS.
        model._tokenizer = tokenizer
    else:
        model.tokenizer = tokenizer
    model.cfg.default_prepend_bos = adds_bos
    # TransformerLens strips what it believes the tokenizer added when the default is not to prepend.
    model.cfg.tokenizer_prepends_bos = adds_bos
    if hasattr(model, "mlm_head") and "token_type_ids" not in tokenizer.model_input_names:
        # HookedEncoder.to_tokens reads them; a generic tokenizer class does not return them unasked.
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]


def adds_bos_itself(tokenizer: Any) -> bool:
    """Whether ``tokenizer(text)`` begins with a BOS token."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id
