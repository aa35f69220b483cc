"""Figures as files for papers (PDF, SVG, PNG), and as output that notebooks and code hosts show.

Plotly's own script draws its figures, and a browser must run it: kaleido drives a Chrome or Chromium that is there,
without a window and without a network.
"""

from __future__ import annotations

import html
import os
import re
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.errors import OutputError, SettingsError
from kn_lens.plots.circuits import CircuitPage
from kn_lens.plots.paper import Sheet, sheet
from kn_lens.plots.still import still

if TYPE_CHECKING:
    import plotly.graph_objects as go

FORMATS = ("pdf", "svg", "png")

_HOW = "pip install 'kn-lens[figures]'"
_SHOWN_WIDTH, _SHOWN_TEXT, _SHOWN_DPI = 200.0, 9.5, 120


def export(
    figure: go.Figure | CircuitPage,
    path: str | Path,
    *,
    width: float | str = "column",
    height: float | None = None,
    text: float = 8.0,
    title: bool = False,
    dpi: int = 300,
) -> Path:
    """Write a figure as a paper needs it: of the width printed, texts of 7 to 9 points, on white.

    Text stays text in PDF and SVG. It needs kaleido (the extra ``figures``) and a Chrome or Chromium, which the
    environment variable ``BROWSER_PATH`` names where it is not found.

    Args:
        figure: A figure of :mod:`kn_lens.plots` or any other of Plotly; or a page of attention patterns or activations,
            which is drawn as :func:`kn_lens.plots.still` draws it.
        path: Where to; the suffix says how: ``.pdf``, ``.svg`` or ``.png``.
        width: In mm, or ``"column"`` (84, the default) or ``"page"`` (174; for figures of several panels).
        height: In mm; by default what suits the figure.
        text: Size of ordinary text in points, 8 by default.
        title: Keep the title and the settings below it. By default they are left to the caption.
        dpi: Resolution of a PNG, in pixels per inch.

    Returns:
        The path written.

    Raises:
        OutputError: If it cannot be written, or there is no kaleido or browser to draw it.
        SettingsError: For another suffix, or a size out of range.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        said = f"ends in {path.suffix!r}" if path.suffix else "has no suffix"
        raise SettingsError(f"{path.name!r} {said}; figures are written as .pdf, .svg or .png")
    if not 30 <= dpi <= 2400:
        raise SettingsError(f"dpi is {dpi}; it is a number of pixels per inch from 30 to 2400")
    drawn = figure if not isinstance(figure, CircuitPage) else still(figure)
    laid = sheet(drawn, width=width, height=height, text=text, title=title)
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    _write(path, _image(laid, kind, dpi, _plain_title(drawn)))
    return path


def show(figure: go.Figure | CircuitPage) -> None:
    """Show a figure in a notebook: the interactive one, and beside it a picture for readers that run no scripts.

    The picture is left out where no browser is there to draw it. Outside of notebooks the figure is opened as
    Plotly's own ``show`` opens it.

    Args:
        figure: A figure, or a page of attention patterns or activations.
    """
    drawn = still(figure) if isinstance(figure, CircuitPage) else figure
    notebook = sys.modules.get("IPython")  # loaded wherever one runs
    if notebook is None or notebook.get_ipython() is None:
        drawn.show()
        return
    bundle: dict[str, Any] = {"text/plain": _plain_title(drawn)}
    if isinstance(figure, CircuitPage):
        bundle["text/html"] = figure.fragment()
    else:
        bundle |= figure._repr_mimebundle_(None, None)
    try:
        laid = sheet(drawn, width=_SHOWN_WIDTH, text=_SHOWN_TEXT, title=True)
        bundle["image/png"] = _image(laid, "png", _SHOWN_DPI, "")
    except OutputError:
        pass  # without a picture
    notebook.display.display(bundle, raw=True)


def _image(laid: Sheet, kind: str, dpi: int, name: str) -> bytes:
    """The laid-out figure as the bytes of a file."""
    scale = laid.scale * (dpi / 96 if kind == "png" else 1)
    drawn = _drawn(laid, kind, scale)
    if kind == "svg":
        return _of_size(drawn.decode("utf-8"), laid, name).encode("utf-8")
    return _with_dpi(drawn, dpi) if kind == "png" else drawn


def _drawn(laid: Sheet, kind: str, scale: float) -> bytes:
    try:
        import kaleido
    except ImportError:
        raise OutputError(f"figures are drawn by kaleido, which is not installed: {_HOW}") from None
    page = kaleido.PageGenerator(mathjax=False)  # it would be fetched from the network
    page.header += "<style>@page { margin: 0 }</style>"  # of a PDF, which is shrunk otherwise
    options = {"format": kind, "width": laid.width, "height": laid.height, "scale": scale}
    try:
        return kaleido.calc_fig_sync(laid.figure, opts=options, kopts={"page_generator": page})
    except Exception as error:
        raise OutputError(_what_failed(error)) from None


def _what_failed(error: Exception) -> str:
    """One line on a browser that is missing or does not do its work."""
    from kaleido.errors import ChromeNotFoundError

    if isinstance(error, ChromeNotFoundError):
        named = os.environ.get("BROWSER_PATH")
        where = f"BROWSER_PATH={named} is not one" if named else "none is found"
        return (
            f"figures are drawn by a Chrome or Chromium, and {where}: install chromium, run kaleido_get_chrome, or set "
            "BROWSER_PATH to its program"
        )
    said = " ".join(str(error.args[0] if error.args else "").split())[:200]
    return f"the browser did not draw the figure ({type(error).__name__}{f': {said}' if said else ''})"


def _of_size(svg: str, laid: Sheet, name: str) -> str:
    """The SVG in mm, so that it is placed as large as it prints, and with a name for those who do not see it."""
    head, end, rest = svg.partition(">")
    for side, pixels in (("width", laid.width), ("height", laid.height)):
        head = re.sub(rf' {side}="[^"]*"', f' {side}="{pixels * laid.scale * 25.4 / 96:.2f}mm"', head, count=1)
    return f"{head}{end}<title>{html.escape(name)}</title>{rest}"


def _with_dpi(png: bytes, dpi: int) -> bytes:
    """The PNG with its resolution in a pHYs chunk right behind the header (PNG specification, 11.3.4.3)."""
    header = 8 + 25  # the signature and IHDR
    per_meter = round(dpi / 0.0254)
    body = b"pHYs" + struct.pack(">IIB", per_meter, per_meter, 1)
    return png[:header] + struct.pack(">I", 9) + body + struct.pack(">I", zlib.crc32(body)) + png[header:]


def _plain_title(figure: go.Figure) -> str:
    title = (figure.to_dict()["layout"].get("title") or {}).get("text") or ""
    return html.unescape(re.sub(r"<[^>]*>", "", title.split("<br>")[0]))


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            partial = Path(file.name)
            file.write(content)
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
