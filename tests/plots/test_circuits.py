"""Pages of circuitsvis hold the model's own numbers, one script, and nothing from the network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import kn_lens as kn
from kn_lens.errors import OutputError, PromptError, UnitsError
from kn_lens.plots import circuits
from tests.questions import assert_same_state, questions, state_of


def props_of(page, element):
    return [part.props for part in page.parts if part.element == element]


@pytest.mark.parametrize("family", ["llama", "bert"])  # llama: 4 heads that share 2 keys and values
def test_patterns_are_the_models_own(random_model, family) -> None:
    model = random_model(family)
    prompt = questions(model, 1)[0]
    before = state_of(model)
    page = kn.plots.attention_of_heads(model, prompt, [(2, 3), (0, 1), (2, 0)])
    assert_same_state(model, before)
    batch = kn.PromptBatch.from_prompts(model, [prompt])
    _, cache = model.run_with_cache(batch.tokens)
    (props,) = props_of(page, "AttentionHeads")
    expected = torch.stack(
        [cache[f"blocks.{layer}.attn.hook_pattern"][0, head] for layer, head in ((2, 3), (0, 1), (2, 0))]
    )
    torch.testing.assert_close(torch.tensor(props["attention"]), expected, atol=1e-6, rtol=0)
    assert props["attentionHeadNames"] == ["2:3", "0:1", "2:0"]
    assert props["maskUpperTri"] is (family == "llama")
    assert [token.strip() for token in props["tokens"]] == [
        label.replace("<", "‹").replace(">", "›") for label in batch.token_labels(0)
    ]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_activations_are_the_models_own(random_model, family) -> None:
    model = random_model(family)
    prompts = questions(model)
    page = kn.plots.neuron_activations(model, prompts, [(1, 5), (0, 7)])
    batch = kn.PromptBatch.from_prompts(model, prompts)
    rows = props_of(page, "ColoredTokens")
    assert len(rows) == 2 * len(prompts)
    for place, (layer, index) in enumerate(((1, 5), (0, 7))):
        values = []
        for at, entry in enumerate(batch.resolved):
            _, cache = model.run_with_cache(torch.tensor([entry.ids]))
            values.append(cache[f"blocks.{layer}.mlp.hook_post"][0, :, index])
            shown = rows[place * len(prompts) + at]
            torch.testing.assert_close(torch.tensor(shown["values"]), values[-1], atol=1e-5, rtol=1e-5)
        reach = float(torch.cat(values).abs().max())
        scales = {(row["minValue"], row["maxValue"]) for row in rows[place * len(prompts) : (place + 1) * len(prompts)]}
        assert len(scales) == 1
        assert next(iter(scales)) == (pytest.approx(-reach, rel=1e-5), pytest.approx(reach, rel=1e-5))


def test_only_what_is_shown_is_kept(random_model) -> None:
    model = random_model("llama")
    batch = kn.PromptBatch.from_prompts(model, questions(model, 2))
    stores = circuits._activations(model, batch, ["blocks.1.attn.hook_pattern"])
    assert [set(store) for store in stores] == [{"blocks.1.attn.hook_pattern"}] * 2


def test_a_page_carries_one_script_and_nothing_else_to_load(random_model, tmp_path) -> None:
    model = random_model("llama")
    page = kn.plots.neuron_activations(model, questions(model), [(1, 5), (0, 7)])
    text = page.save(tmp_path / "neurons.html").read_text(encoding="utf-8")
    assert text == text.strip() + "\n"
    assert text.count("var CircuitsVis=") == 1
    assert text.count("<script") == text.count("</script>") + text.count("<script>", text.index("var CircuitsVis"))
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=", text.split("var CircuitsVis")[0])
    calls = text[text.rindex("CircuitsVis.ColoredTokens") :]
    assert "import " not in calls
    for host in ("unpkg.com", "jsdelivr.net", "sourceMappingURL"):
        assert host not in text
    assert page._repr_html_().count("var CircuitsVis=") == 1


def test_tokens_cannot_end_the_script() -> None:
    part = circuits._Part("<b>", "ColoredTokens", {"tokens": ["</script><b>"], "values": [1.0]})
    text = circuits.CircuitPage("A <title>", "", (part,)).html()
    calls = text[text.rindex("CircuitsVis.render(") :]
    assert calls.count("</script>") == 1
    assert "<h2 style='margin:0'>A &lt;title&gt;</h2>" in text
    assert "&lt;b&gt;</h3>" in text


def test_a_page_is_read_back(random_model) -> None:
    page = kn.plots.attention_of_heads(random_model("llama"), questions(random_model("llama"), 1)[0], [(2, 3), (0, 1)])
    assert circuits.CircuitPage.from_json(json.loads(json.dumps(page.to_json()))) == page
    with pytest.raises(OutputError, match="no page of circuitsvis elements"):
        circuits.CircuitPage.from_json({"title": "", "subtitle": "", "parts": [{"heading": ""}]})


def test_fragments_can_share_a_script() -> None:
    part = circuits._Part("", "ColoredTokens", {"tokens": ["a"], "values": [1.0]})
    fragment = circuits.CircuitPage("A", "", (part,)).fragment(script=False)
    assert "var CircuitsVis=" not in fragment
    assert fragment.count("CircuitsVis.render(") == 1
    assert circuits.circuits_script().count("var CircuitsVis=") == 1
    assert "</script" not in circuits.circuits_script()


def text_drawn(browser: str, page: Path, profile: Path) -> str:
    """The words that a page shows, drawn without a network. A browser that hangs is tried again, then given up."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--disable-sync", "--disable-extensions", "--disable-background-networking", "--disable-quic"]
    command += ["--disable-component-update", "--virtual-time-budget=4000", "--host-resolver-rules=MAP * ~NOTFOUND"]
    for attempt in range(3):
        own = f"--user-data-dir={profile}-{attempt}"
        try:
            done = subprocess.run(
                [*command, own, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=40, check=False
            )
        except subprocess.TimeoutExpired:
            continue
        body = re.sub(r"<script.*?</script>", "", done.stdout.partition("<body")[2], flags=re.S)
        return re.sub(r"<[^>]*>|&nbsp;", " ", body).replace("\xa0", " ")
    pytest.skip(f"{browser} does not answer on this machine")


def test_a_browser_without_a_network_draws_the_tokens(organism, tmp_path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    model = organism("tiny-causal")
    batch = kn.load_relation("P36").prompts(model, groups=2, per_group=1)
    kn.plots.neuron_activations(model, batch, [(1, 5)]).save(tmp_path / "neurons.html")
    kn.plots.attention_of_heads(model, batch.select([0]), [(0, 1), (2, 3)]).save(tmp_path / "heads.html")
    drawn = {name: text_drawn(browser, tmp_path / f"{name}.html", tmp_path / name) for name in ("neurons", "heads")}
    shown = drawn["neurons"].split()
    for index in range(len(batch)):
        labels = batch.token_labels(index)
        assert any(shown[at : at + len(labels)] == labels for at in range(len(shown))), drawn["neurons"]
    assert "0:1 Zoomed" in drawn["heads"]
    assert "2:3" in drawn["heads"]


@pytest.mark.parametrize("kind", ["text/javascript", "module"])
def test_a_browser_draws_several_fragments_by_one_script(kind, tmp_path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    words = (["one", "two"], ["three", "four"])
    parts = [circuits._Part("", "ColoredTokens", {"tokens": tokens, "values": [0.5, 1.0]}) for tokens in words]
    fragments = [circuits.CircuitPage("", "", (part,)).fragment(script=False) for part in parts]
    page = tmp_path / "page.html"
    head = f"<head><meta charset='utf-8'><script type='{kind}'>{circuits.circuits_script()}</script></head>"
    page.write_text(f"<!doctype html><html>{head}<body>{''.join(fragments)}</body></html>", encoding="utf-8")
    shown = text_drawn(browser, page, tmp_path / "profile").split()
    assert [word for word in shown if word in ("one", "two", "three", "four")] == ["one", "two", "three", "four"]


def test_units_that_are_not_there_are_refused(random_model, tmp_path) -> None:
    model = random_model("llama")
    prompt = questions(model, 1)[0]
    with pytest.raises(UnitsError, match="unit 2:4 is not in"):
        kn.plots.attention_of_heads(model, prompt, [(2, 4)])
    with pytest.raises(UnitsError, match="no heads to show"):
        kn.plots.attention_of_heads(model, prompt, [])
    with pytest.raises(UnitsError, match="for heads take attention_of_heads"):
        kn.plots.neuron_activations(model, prompt, [(0, 1)], site="head")
    with pytest.raises(OutputError, match="cannot write"):
        kn.plots.neuron_activations(model, prompt, [(0, 1)]).save(tmp_path / "none" / "page.html")


def test_one_prompt_is_shown_with_its_own_tokens(random_model) -> None:
    model = random_model("gpt2")  # its tokenizer adds no BOS
    batch = kn.PromptBatch.from_prompts(model, questions(model, 1), prepend_bos=True)
    (props,) = props_of(kn.plots.attention_of_heads(model, batch, [(1, 2)]), "AttentionHeads")
    assert len(props["tokens"]) == len(batch.resolved[0].ids)
    assert "endoftext" in props["tokens"][0]
    _, cache = model.run_with_cache(batch.tokens)
    torch.testing.assert_close(
        torch.tensor(props["attention"][0]), cache["blocks.1.attn.hook_pattern"][0, 2], atol=1e-6, rtol=0
    )
    with pytest.raises(PromptError, match=r"shows one prompt, and there are 2; give batch\.select"):
        kn.plots.attention_of_heads(model, kn.PromptBatch.from_prompts(model, questions(model, 2)), [(1, 2)])
