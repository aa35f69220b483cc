"""Causal tracing equals the textbook loop, state by state, for every stream, corruption, direction and severed path."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from kn_lens.forward import clean_run
from kn_lens.streams import stream_of
from kn_lens.tracing.corruption import corruption_of
from kn_lens.tracing.metrics import METRICS, all_metrics
from kn_lens.tracing.patched import Cell, patched
from tests.helpers import save_random_model
from tests.oracles import tracing as textbook
from tests.questions import assert_same_state, likely_batch, state_of

CAUSAL, MASKED = ("gpt2", "gpt_neox", "llama"), ("bert",)
SAMPLES = 3


def tracing_batch(model, count=4):
    """Prompts with cues, each asked for the model's own top answer, so that all are answered rightly."""
    batch = likely_batch(model)
    return batch.select(range(count))


def spoiler(corruption, entry):
    """The corruption of one prompt, as the oracle applies it to embeddings ``[sample, position, d_model]``."""

    def spoil(embeddings):
        places = list(entry.cue_positions)
        if corruption.name == "noise":
            embeddings[:, places] += corruption.noise(entry).to(embeddings)
        else:
            embeddings[:, places] = 0 if corruption.name == "zero" else corruption.mean.to(embeddings)
        return embeddings

    return spoil


def expected(model, trace, corruption, index, **settings):
    entry = corruption.batch.resolved[index]
    swapped = None if corruption.swapped is None else torch.tensor(corruption.swapped.ids[index])
    with torch.no_grad():
        logits = model(torch.tensor([entry.ids]))[0, entry.target_position]
    foil = logits.clone()
    foil[entry.target_ids[0]] = float("-inf")
    foil_id = int(foil.argmax())
    if corruption.swapped is not None and corruption.swapped.answers[index] not in (-1, entry.target_ids[0]):
        foil_id = corruption.swapped.answers[index]
    assert trace.foils[index] == corruption.batch.decode(foil_id)
    return textbook.causal_trace(
        model,
        torch.tensor(entry.ids),
        entry.target_position,
        entry.target_ids[0],
        foil_id,
        spoiler(corruption, entry),
        samples=corruption.samples,
        swapped=swapped,
        **settings,
    )


def check(model, *, stream, corruption="noise", window=1, direction="sufficiency", severed=None, count=3, **extra):
    batch = tracing_batch(model, count)
    trace = kn.causal_trace(
        model,
        batch,
        stream=stream,
        window=window,
        corruption=corruption,
        samples=SAMPLES,
        direction=direction,
        severed=severed,
        progress=False,
        **extra,
    )
    same = corruption_of(
        model, batch, corruption, samples=SAMPLES, noise=3.0, sigma=None, swaps=extra.get("swaps"), seed=0
    )
    where = stream_of(model, stream)
    units = None if where.n_units is None else list(range(where.n_units))
    if stream == "neuron":
        units = [0, 5, where.n_units - 1]
    layers = extra.get("layers") or list(range(model.cfg.n_layers))
    for index in range(len(trace)):
        oracle = expected(
            model, trace, same, index, stream=stream, window=window, direction=direction, severed=severed, units=units
        )
        length = len(trace.tokens[index])
        for name in METRICS:
            fast = trace.effects[name][index, :length, layers].double()
            fast = fast[..., None] if where.n_units is None else fast[..., units]
            slow = oracle[name][:, layers].double()
            torch.testing.assert_close(fast, slow, rtol=1e-5, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")
            assert trace.effects[name][index, length:].isnan().all()
    return trace


@pytest.mark.parametrize("family", [*CAUSAL, *MASKED])
@pytest.mark.parametrize("stream", ["resid", "mlp", "attn", "head"])
def test_every_stream_equals_the_textbook(exact_model, family, stream):
    trace = check(exact_model(family), stream=stream)
    assert trace.effects["probability"].abs().nan_to_num().max() > 1e-4  # something to tell apart


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("corruption", ["zero", "mean"])
def test_every_corruption_of_embeddings_equals_the_textbook(exact_model, family, corruption):
    check(exact_model(family), stream="resid", corruption=corruption)
    check(exact_model(family), stream="attn", corruption=corruption)


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("stream", ["resid", "head"])
def test_swaps_equal_the_textbook(exact_model, family, stream):
    model = exact_model(family)
    swaps = {"old France": "new Rome", "the boys": "the cats", "These dogs": "Those boys"}
    check(model, stream=stream, corruption="swap", swaps=swaps)


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "bert"])
@pytest.mark.parametrize("stream", ["resid", "mlp", "head"])
def test_necessity_equals_the_textbook(exact_model, family, stream):
    check(exact_model(family), stream=stream, direction="necessity", count=2)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("severed", ["mlp", "attn"])
@pytest.mark.parametrize("direction", ["sufficiency", "necessity"])
def test_severed_paths_equal_the_textbook(exact_model, family, severed, direction):
    check(exact_model(family), stream="resid", severed=severed, direction=direction, count=2)
    check(exact_model(family), stream="mlp", severed=severed, direction=direction, count=1)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("stream", ["resid", "mlp", "attn"])
def test_windows_equal_the_textbook(exact_model, family, window, stream):
    check(exact_model(family), stream=stream, window=window, count=2)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_single_neurons_of_chosen_layers_equal_the_textbook(exact_model, family):
    """Users of ROME's code ask for single neurons."""
    trace = check(exact_model(family), stream="neuron", layers=[1], count=2)
    assert trace.effects["kl"][:, :, [0, 2]].isnan().all()  # the layers not asked for


def test_chosen_positions_are_those_of_the_whole_trace(exact_model):
    model = exact_model("gpt2")
    batch = tracing_batch(model)
    whole = kn.causal_trace(model, batch, stream="attn", progress=False)
    for positions in ("target", "cue", "cue_last"):
        some = kn.causal_trace(model, batch, stream="attn", positions=positions, progress=False)
        known = ~some.effects["kl"].isnan()
        for name in METRICS:
            torch.testing.assert_close(some.effects[name][known], whole.effects[name][known], rtol=0, atol=1e-9)
        places = {"target": 1, "cue_last": 1}.get(positions, 2)
        assert known[0].any(-1).sum() == places


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_a_prompts_company_does_not_matter(exact_model, family):
    """Mixed lengths in one batch, and each prompt alone; σ given, as it is a property of the data set."""
    model = exact_model(family)
    batch = tracing_batch(model, 5)
    together = kn.causal_trace(model, batch, stream="head", samples=SAMPLES, sigma=0.1, progress=False)
    for index in range(len(batch)):
        alone = kn.causal_trace(model, batch.select([index]), stream="head", samples=SAMPLES, sigma=0.1, progress=False)
        length = len(alone.tokens[0])
        assert alone.tokens[0] == together.tokens[index]
        for name in METRICS:
            torch.testing.assert_close(
                alone.effects[name][0], together.effects[name][index, :length], rtol=1e-6, atol=1e-7
            )


def test_memory_budget_changes_nothing(exact_model):
    model = exact_model("gpt2")
    batch = tracing_batch(model)
    whole = kn.causal_trace(model, batch, stream="mlp", progress=False)
    small = kn.causal_trace(model, batch, stream="mlp", memory_budget=1, progress=False)
    for name in METRICS:
        torch.testing.assert_close(whole.effects[name], small.effects[name], equal_nan=True, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_restoring_everything_gives_the_clean_run(exact_model, family):
    """The residual stream of all positions put back at one layer: the logits are the clean ones, whatever the layer."""
    model = exact_model(family)
    batch = tracing_batch(model, 1)
    spoiled = corruption_of(model, batch, "noise", samples=2, noise=3.0, sigma=None, swaps=None, seed=0)
    stream = stream_of(model, "resid")
    entry = batch.resolved[0]
    names = [name for layer in range(model.cfg.n_layers) if (name := stream.hook(layer)) is not None]
    run = {"target": entry.target_position, "keep": names, "keep_prefix": True}
    clean = clean_run(model, batch.tokens, **run)
    corrupted = clean_run(model, spoiled.tokens([0], len(entry.ids)), hooks=spoiled.hooks(model, [0]), **run)
    measure = all_metrics(batch.target_ids, batch.target_ids, clean.logits)
    cells = [Cell(range(layer, layer + 1)) for layer in range(model.cfg.n_layers)]
    found = patched(
        model, stream, corrupted, clean.repeated(2), cells, None, lambda logits, rows: measure(logits, rows // 2)
    )
    before = measure(clean.logits, torch.tensor([0]))
    after = measure(corrupted.logits, torch.tensor([0, 0]))
    assert (after[:, 0] - before[:, 0]).abs().min() > 1e-4  # the corruption did something
    torch.testing.assert_close(found, before[None].expand_as(found), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stream", ["mlp", "attn"])
def test_a_window_of_all_layers_is_one_restoration(exact_model, stream):
    """Every layer's window is the whole model: all layers have the same effect, that of hooks made by hand."""
    model = exact_model("gpt2")
    trace = check(model, stream=stream, window=3, count=1)
    middle = trace.effects["logit_difference"][0, :, 1]  # its window of 3 covers all three layers
    assert middle.abs().max() > 1e-4


def test_before_the_cue_the_effect_is_exactly_zero(exact_model):
    model = exact_model("llama")
    trace = kn.causal_trace(model, tracing_batch(model), stream="resid", progress=False)
    assert all(cue[0] > 0 for cue in trace.cue_positions[:2])
    for index, cue in enumerate(trace.cue_positions):
        for values in trace.effects.values():
            assert (values[index, : cue[0]] == 0).all()


def test_the_last_state_at_the_answer_is_the_whole_effect(exact_model):
    """Restoring the last residual stream at the target position gives back all that the corruption took."""
    for family in ("gpt2", "bert"):
        model = exact_model(family)
        trace = kn.causal_trace(model, tracing_batch(model), stream="resid", progress=False)
        for name in METRICS:
            last = torch.stack([trace.effects[name][i, at, -1] for i, at in enumerate(trace.target_positions)])
            torch.testing.assert_close(last, trace.total_effect(name), rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was(random_model):
    model = random_model("llama")
    before = state_of(model)
    kn.causal_trace(model, tracing_batch(model), stream="head", severed="mlp", progress=False)
    assert_same_state(model, before)


def test_sigma_is_that_of_the_cues_embeddings(exact_model):
    """Which noise level for a new model? Measured on the data set, and recorded."""
    for family in ("gpt2", "bert"):
        model = exact_model(family)
        batch = tracing_batch(model)
        trace = kn.causal_trace(model, batch, noise=2.0, layers=[0], progress=False)
        weights = (model.embed.embed if family == "bert" else model.embed).W_E
        ids = [entry.ids[at] for entry in batch.resolved for at in entry.cue_positions]
        spread = float(weights[ids].detach().std(correction=0))
        assert trace.sigma == trace.settings["sigma"] == pytest.approx(2 * spread, rel=1e-5)
        again = kn.causal_trace(model, batch, sigma=trace.sigma, layers=[0], progress=False)
        assert torch.equal(again.corrupted["kl"], trace.corrupted["kl"])


def bridge_of(family, folder):
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    save_random_model(folder, family)
    auto = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    bridge = TransformerBridge.boot_transformers(
        str(folder),
        hf_model=auto.from_pretrained(folder),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
    )
    bridge.enable_compatibility_mode()
    return bridge


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_bridge_gives_the_same(tmp_path, family):
    """TransformerBridge runs all rows whole: slower, same numbers."""
    bridge = bridge_of(family, tmp_path)
    model = kn.load_model(str(tmp_path), device="cpu")
    batch = tracing_batch(model, 2)
    for stream in ("resid", "head"):
        for direction in ("sufficiency", "necessity"):
            options = {"stream": stream, "direction": direction, "severed": "mlp", "samples": 2, "sigma": 0.3}
            expected = kn.causal_trace(model, batch, progress=False, **options)
            found = kn.causal_trace(bridge, batch, progress=False, **options)
            for name in METRICS:
                torch.testing.assert_close(
                    found.effects[name], expected.effects[name], rtol=1e-3, atol=1e-5, equal_nan=True
                )


def test_a_masked_bridge_is_refused(tmp_path):
    """Its hooks have the names of HookedEncoder's and stand elsewhere."""
    bridge = bridge_of("bert", tmp_path)
    with pytest.raises(kn.ModelError, match=r"held as TransformerBridge.*take it as a HookedEncoder"):
        kn.causal_trace(bridge, likely_batch(bridge).select([0]), progress=False)


def test_draws_come_from_the_seed(exact_model):
    model = exact_model("gpt2")
    batch = tracing_batch(model, 2)
    first, again, other = (kn.causal_trace(model, batch, seed=seed, progress=False) for seed in (0, 0, 1))
    assert torch.equal(first.corrupted["kl"], again.corrupted["kl"])
    assert not torch.equal(first.corrupted["kl"], other.corrupted["kl"])


def test_saved_and_read_back(exact_model, tmp_path):
    model = exact_model("gpt2")
    trace = kn.causal_trace(model, tracing_batch(model), stream="head", progress=False)
    back = kn.Result.load(trace.save(tmp_path / "trace"))
    assert isinstance(back, kn.CausalTrace)
    for name in METRICS:
        assert torch.equal(back.effects[name].nan_to_num(7), trace.effects[name].nan_to_num(7))
    bare = {"effects": {}, "clean": {}, "corrupted": {}, "sigma": 0.0}
    assert back.sigma == trace.sigma
    assert replace(back, **bare) == replace(trace, **bare)
