"""``kn-lens rome``: one fact edited, and what the model says before and after."""

from __future__ import annotations

from typing import Annotated

import typer

from kn_lens.cli.options import Device, Dtype, LayerOption, ModelName, Out, Seed, layer_of, load
from kn_lens.runs.console import report_dropped, show, written


def rome(
    model: ModelName,
    prompt: Annotated[str, typer.Option(help="The question, {} for the subject: 'The capital of {} is'.")],
    subject: Annotated[str, typer.Option(help="Whom it is about.")],
    new: Annotated[str, typer.Option(help="The answer that the model shall give.")],
    old: Annotated[str | None, typer.Option(help="The answer before; by default the model's own first word.")] = None,
    paraphrase: Annotated[list[str] | None, typer.Option(help="The question in other words. Repeat for more.")] = None,
    inverse: Annotated[
        list[str] | None,
        typer.Option(
            help="A question about the answer whose answer is the subject: '{} is the capital of'. Repeat for more. By "
            "default those of the bundled relation that the prompt is a template of, if it has an inverse."
        ),
    ] = None,
    layer: LayerOption = None,
    site: Annotated[str, typer.Option(help="mlp (W_out, as published) or attn (W_O).")] = "mlp",
    position: Annotated[
        str | None,
        typer.Option(
            help="subject_last or last: where it acts; by default the first, for attn and tiny-causal the last."
        ),
    ] = None,
    covariance: Annotated[
        str, typer.Option(help="Of the keys: identity, self (from the model's own text), a text, or a saved one.")
    ] = "identity",
    mixed_key: Annotated[bool, typer.Option("--mixed-key", help="The published code's two keys.")] = False,
    steps: Annotated[int | None, typer.Option(help="Of the search for the value.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the search.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of the change of the value.")] = None,
    clamp: Annotated[float | None, typer.Option(help="Largest change of the value, in norms of the value.")] = None,
    kl_factor: Annotated[float | None, typer.Option(help="Weight of what '{} is a' shall still say.")] = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Edit one fact by ROME: answers, inverse questions and texts before and after."""
    from kn_lens.prompts.fact import Fact
    from kn_lens.runs.output import check_output
    from kn_lens.runs.rome import save_edit
    from kn_lens.studies.edit_fact import RomeSettings, edit_fact, inverse_prompts
    from kn_lens.studies.shown_edit import INVERSE_NEW, INVERSE_OLD, PARAPHRASE, PROMPT

    settings = RomeSettings(
        layer=layer_of(layer),
        site=site,
        position=position,
        covariance=covariance,
        mixed_key=mixed_key,
        steps=steps,
        lr=lr,
        weight_decay=weight_decay,
        clamp=clamp,
        kl_factor=kl_factor,
        seed=seed,
    )
    settings.check()
    fact = Fact(prompt, subject, new, old=old, paraphrases=tuple(paraphrase or ()))
    inverse_prompts(fact, inverse or ())
    if out is not None:
        check_output(out)
    shown = edit_fact(load(model, device, dtype), fact, settings, inverse=inverse or ())
    show(shown.edit_frame(), "The edit")
    report_dropped("Questions", shown.dropped)
    if shown.own_old and shown.fact.old is not None:
        typer.echo(f"No --old was given; {shown.fact.old} is the model's own answer.")
    show(shown.answers_frame(PROMPT, PARAPHRASE), "Most probable words before and after")
    if shown.inverse is None and any(entry.source in (INVERSE_NEW, INVERSE_OLD) for entry in shown.dropped):
        typer.echo("No inverse question: the model can be asked none of them, for the reasons above.")
    elif shown.inverse is None:
        typer.echo(
            "No inverse question: the prompt is no template of a bundled relation that has an inverse (--inverse)."
        )
    else:
        named = "as given" if shown.inverse == "given" else f"wordings of {shown.inverse}"
        show(shown.answers_frame(INVERSE_NEW, INVERSE_OLD), f"Inverse questions, {named}: new answer, then old")
    show(shown.texts_frame(), "What the model writes, a row for each text")
    for sentence in shown.findings():
        typer.echo(f"• {sentence}")
    if out is not None:
        save_edit(out, shown, settings)
        written(out)
