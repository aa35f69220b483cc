"""What a report shows of each method that a batch run can be made of."""

from __future__ import annotations

from kn_lens.runs.method_pages import attribution, editing, localization, patching, suppression, tracing
from kn_lens.runs.method_pages.material import MethodPage

METHOD_PAGES: dict[str, MethodPage] = {
    **tracing.PAGES,
    **patching.PAGES,
    **attribution.PAGES,
    **localization.PAGES,
    **suppression.PAGES,
    **editing.PAGES,
}
"""By the method's name."""
