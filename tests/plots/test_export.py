"""Files for papers: of the size asked for, with real text of 7 to 9 points, on white, and with nothing cut off."""

from __future__ import annotations

import copy
import re
import struct
import sys
import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.errors import OutputError, SettingsError
from kn_lens.plots.paper import sheet, wrapped

MM = 72 / 25.4  # points


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Skips where no browser draws figures."""
    try:
        kn.plots.export(layers(), tmp_path_factory.mktemp("probe") / "figure.svg")
    except OutputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def trace(organism):
    model = organism("tiny-causal")
    facts = kn.load_relation("P36").prompts(model, groups=3, per_group=1)
    return kn.causal_trace(model, facts, samples=2, progress=False)


def layers():
    return kn.plots.layers_of_units({"facts": [(0, 1), (0, 2), (3, 1)], "agreement": [(2, 7)]}, 4, "a model")


def table():
    frame = pd.DataFrame({"measure": ["units of the site, of which there are many more than one would think"] * 9})
    return kn.plots.measures_table(frame.assign(facts="62.5 % [31 %, 86 %]", agreement="100.0 % [68 %, 100 %]"))


def pixels(path):
    """An 8-bit PNG's pixels, and its pixels per meter."""
    content = path.read_bytes()
    at, data, found = 8, b"", {}
    while at < len(content):
        (length,), kind = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        body = content[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", content[at + 8 + length : at + 12 + length])[0]
        data += body if kind == b"IDAT" else b""
        found.setdefault(kind, body)
        at += 12 + length
    width, height, _, color = struct.unpack(">IIBB", found[b"IHDR"][:10])
    depth = {2: 3, 6: 4}[color]
    raw = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * depth)
    rows = np.zeros((height + 1, width + 1, depth), np.int64)
    for y, line in enumerate(raw, start=1):
        _unfilter(int(line[0]), line[1:].reshape(width, depth), rows, y)
    return rows[1:, 1:, :3], struct.unpack(">IIB", found[b"pHYs"])


def _unfilter(kind, line, rows, y):
    """One row, by the PNG specification's filters 0 to 4."""
    if kind in (0, 2):
        rows[y, 1:] = (line + (rows[y - 1, 1:] if kind == 2 else 0)) % 256
        return
    if kind == 1:
        rows[y, 1:] = np.cumsum(line, 0) % 256
        return
    for x in range(1, line.shape[0] + 1):
        left, up, corner = rows[y, x - 1], rows[y - 1, x], rows[y - 1, x - 1]
        if kind == 3:
            guess = (left + up) // 2
        else:
            ways = np.abs([up - corner, left - corner, left + up - 2 * corner])
            guess = np.where(
                (ways[0] <= ways[1]) & (ways[0] <= ways[2]), left, np.where(ways[1] <= ways[2], up, corner)
            )
        rows[y, x] = (line[x - 1] + guess) % 256


@pytest.mark.parametrize(
    ("kind", "width"),
    [("layers", "column"), ("table", "column"), ("map", "page"), ("averages", "page"), ("patterns", "column")],
)
def test_nothing_is_cut_off(browser, organism, trace, tmp_path, kind, width) -> None:
    """Ink is there, and none of it at the edges."""
    figure = {
        "layers": layers,
        "table": table,
        "map": lambda: kn.plots.causal_trace(trace, 0, subtitle="tiny-causal, capitals"),
        "averages": lambda: kn.plots.trace_averages({"residual": trace, "again": trace}),
        "patterns": lambda: kn.plots.attention_of_heads(
            organism("tiny-causal"), trace.prompts[0], [(0, 1), (1, 2), (3, 3)]
        ),
    }[kind]()
    path = kn.plots.export(figure, tmp_path / "figure.png", width=width, title=width == "page", dpi=60)
    image, (x, y, unit) = pixels(path)
    assert image.shape[1] == pytest.approx({"column": 84, "page": 174}[width] / 25.4 * 60, abs=1)
    assert (x, y, unit) == (2362, 2362, 1)  # 60 pixels an inch
    edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert edges.min() == 255
    ink = (image < 128).any(-1)
    assert ink.mean() > 0.005
    left, right = np.flatnonzero(ink.any(0))[[0, -1]]
    top, bottom = np.flatnonzero(ink.any(1))[[0, -1]]
    assert right - left > 0.85 * image.shape[1]  # it fills its room
    assert bottom - top > 0.6 * image.shape[0]


def test_an_svg_is_of_real_text_in_points(browser, tmp_path) -> None:
    figure = layers()
    path = kn.plots.export(figure, tmp_path / "figure.svg", width=100, height=60)
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    name = "{http://www.w3.org/2000/svg}"
    assert (root.get("width"), root.get("height")) == ("100.00mm", "60.00mm")
    assert root.find(f"{name}title").text == "Layers of the units found"
    scale = 100 * MM / float(root.get("viewBox").split()[2])  # points in a unit
    texts = {}
    for entry in root.iter(f"{name}text"):
        (size,) = re.findall(r"font-size: ([\d.]+)px", entry.get("style"))
        texts["".join(entry.itertext())] = float(size) * scale
    assert {"layer (from 0)", "share of units found", "facts (3 units)", "agreement (1 units)", "60%"} <= set(texts)
    assert not any("Layers of" in text for text in texts)  # left to the caption
    assert min(texts.values()) > 7
    assert max(texts.values()) < 9
    assert texts["60%"] == pytest.approx(8, abs=0.01)
    larger = kn.plots.export(figure, tmp_path / "larger.svg", width=100, text=12, title=True).read_text("utf-8")
    assert "Layers of the units found" in larger.split("</title>")[1]


def test_a_pdf_is_of_the_size_asked_for(browser, tmp_path) -> None:
    path = kn.plots.export(layers(), tmp_path / "figure.pdf", height=50)
    content = path.read_bytes()
    assert content.startswith(b"%PDF-")
    ((width, height),) = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content)  # one page
    assert float(width) == pytest.approx(84 * MM, abs=1)
    assert float(height) == pytest.approx(50 * MM, abs=1)
    assert b"/FontFile" in content  # text, with its font
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_figure_is_left_as_it_was(browser, tmp_path) -> None:
    figure = layers()
    before = copy.deepcopy(figure.to_dict())
    kn.plots.export(figure, tmp_path / "figure.svg")
    assert figure.to_dict() == before


def test_names_are_broken_where_the_width_asks_for_it() -> None:
    assert wrapped("as it is", 1000, 10) == "as it is"
    assert wrapped("one two three", 40, 10) == "one two<br>three"  # 5.6 pixels a letter
    assert wrapped("<b>one two</b> three", 40, 10) == "<b>one two</b><br>three"
    assert wrapped("<span style='color:red'>a b</span>", 1, 10) == "<span style='color:red'>a<br>b</span>"
    assert wrapped("1 &lt; 2", 29, 10) == "1 &lt; 2"  # as long as it looks


def test_layouts_are_scaled_as_a_whole() -> None:
    figure = layers()
    small, large = sheet(figure, width="column"), sheet(figure, width=84, text=16)
    assert small.scale == pytest.approx(8 * 96 / 72 / 13)
    assert small.width * small.scale == pytest.approx(84 / 25.4 * 96)
    assert large.width == pytest.approx(small.width / 2)
    assert sheet(figure, height=50).height * small.scale == pytest.approx(50 / 25.4 * 96)


def test_a_still_picture_holds_the_pages_numbers(organism) -> None:
    model = organism("tiny-causal")
    prompts = kn.load_relation("P36").prompts(model, groups=1, per_group=3)
    page = kn.plots.attention_of_heads(model, prompts.select([0]), [(0, 1), (2, 3)])
    drawn = kn.plots.still(page).to_dict()
    assert [trace["z"] for trace in drawn["data"]] == page.parts[0].props["attention"]
    assert list(drawn["layout"]["xaxis"]["ticktext"]) == prompts.token_labels(0)
    page = kn.plots.neuron_activations(model, prompts, [(0, 5), (1, 7)])
    first, second = kn.plots.still(page).to_dict()["data"]
    longest = max(len(part.props["values"]) for part in page.parts)
    for trace, parts in ((first, page.parts[:3]), (second, page.parts[3:])):
        for row, texts, part in zip(trace["z"], trace["text"], parts, strict=True):
            values = part.props["values"]
            assert row == [*values, *[None] * (longest - len(values))]
            assert list(texts[: len(values)]) == [token.strip() for token in part.props["tokens"]]
        assert (trace["zmin"], trace["zmax"]) == (parts[0].props["minValue"], parts[0].props["maxValue"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("figure.jpg", {}, r"'figure.jpg' ends in '.jpg'; figures are written as .pdf, .svg or .png"),
        ("figure", {}, r"'figure' has no suffix; figures are written as"),
        (
            "figure.pdf",
            {"width": "colum"},
            r"width is 'colum'; it is a number from 20 to 1000, in mm, or one of 'column'",
        ),
        ("figure.pdf", {"height": 3}, r"height is 3; it is a number from 20 to 1500, in mm"),
        ("figure.pdf", {"text": 100}, r"text is 100; it is a number from 4 to 40, in points"),
        ("figure.png", {"dpi": 10_000}, r"dpi is 10000; it is a number of pixels per inch from 30 to 2400"),
    ],
)
def test_settings_out_of_range(tmp_path, name, options, message) -> None:
    with pytest.raises(SettingsError, match=message):
        kn.plots.export(layers(), tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path) -> None:
    with pytest.raises(OutputError, match=r"there is no folder .*missing"):
        kn.plots.export(layers(), tmp_path / "missing" / "figure.pdf")
    (tmp_path / "folder.pdf").mkdir()
    with pytest.raises(OutputError, match=r"folder\.pdf: it is a folder"):
        kn.plots.export(layers(), tmp_path / "folder.pdf")


def test_without_a_browser_one_line_says_what_is_missing(tmp_path, monkeypatch) -> None:
    pytest.importorskip("kaleido")
    path = tmp_path / "figure.pdf"
    path.write_text("of before")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    with pytest.raises(OutputError, match=r"Chrome or Chromium, and BROWSER_PATH=.*none is not one: install") as raised:
        kn.plots.export(layers(), path)
    assert "\n" not in str(raised.value)
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(OutputError, match=r"kaleido, which is not installed: pip install 'kn-lens\[figures\]'"):
        kn.plots.export(layers(), path)
    assert path.read_text() == "of before"
    assert list(tmp_path.iterdir()) == [path]
