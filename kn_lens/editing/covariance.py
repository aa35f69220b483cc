"""The second moment C = E[k kᵀ] of an edited matrix's inputs, over the tokens of a text: which keys a model uses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.editing.edit import require_editable, require_weight, unedited
from kn_lens.editing.rank_one import parameter_of
from kn_lens.editing.rows import EditSite
from kn_lens.editing.second_moment import file_windows, key_width, own_windows, second_moment
from kn_lens.errors import DataError, ModelError, OutputError, SettingsError, near_matches
from kn_lens.models.cache import cache_folder, cached_folder, file_hash
from kn_lens.models.hashing import weights_hash
from kn_lens.models.kind import is_masked, model_name
from kn_lens.results import Result, provenance

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SELF = "self"

_FORMAT = 2  # of what is kept in the cache, and of how it is made
_TEXT_TOKENS = 100_000
_LEAST_SELF_TOKENS = 20_000
_SELF_TOKENS_PER_INPUT = 20
_RIDGES = (0.0, 1e-8, 1e-6, 1e-4, 1e-2)
_WELL_CONDITIONED = 1e7
"""Largest condition number. Of a matrix kept in float32, eigenvalues below about 1e-8 of the largest are rounding."""


@dataclass(frozen=True, kw_only=True)
class Covariance(Result):
    """C = E[k kᵀ], not centered, of one matrix of one model.

    Attributes:
        matrix: C.
        layer: Of the matrix.
        site: ``"mlp"``: k are the neurons that W_out reads; ``"attn"``: the heads' values that W_O reads.
        tokens: How many k it is the mean of.
        source: ``"self"``: text that the model sampled; else the text's file name.
        sha256: Of that file; empty for ``"self"``.
    """

    matrix: Float[Tensor, "d_in d_in"]
    layer: int
    site: EditSite
    tokens: int
    source: str
    sha256: str

    @classmethod
    def load(cls, folder: str | Path) -> Covariance:
        """Read back what ``save`` wrote; the .safetensors file in the folder may be named too.

        Raises:
            OutputError: If it holds no covariance.
        """
        path = Path(folder)
        return super().load(path.parent if path.suffix == ".safetensors" else path)

    @property
    def ridge(self) -> float:
        """What was added to the diagonal for :meth:`solve`, as a share of its mean; 0 for a well-conditioned C."""
        return self._factor[0]

    def solve(self, key: Float[Tensor, "*key d_in"]) -> Float[Tensor, "*key d_in"]:
        """C⁻¹k, computed in float64, in the key's own type and place."""
        columns = key.detach().double().cpu().reshape(-1, key.shape[-1]).T
        return torch.cholesky_solve(columns, self._factor[1]).T.reshape(key.shape).to(key)

    def describe(self) -> str:
        """``"self, 20480 tokens"``, with the ridge if there is one."""
        ridge = f", ridge {self.ridge:g}" if self.ridge else ""
        return f"{self.source}, {self.tokens} tokens{ridge}"

    def to_frame(self) -> pd.DataFrame:
        """One row per eigenvalue, ascending: how far C is from singular."""
        import pandas as pd

        values = torch.linalg.eigvalsh(self.matrix.double()).tolist()
        return pd.DataFrame({"eigenvalue": values}).rename_axis("rank").reset_index()

    @cached_property
    def _factor(self) -> tuple[float, Float[Tensor, "d_in d_in"]]:
        """The smallest ridge that makes C well conditioned, and the Cholesky factor of the sum."""
        matrix = self.matrix.to(torch.float64, copy=True)  # the ridge is added in place
        values = torch.linalg.eigvalsh(matrix)
        mean = float(matrix.diagonal().mean())
        enough = (each for each in _RIDGES if _condition(values + each * mean) <= _WELL_CONDITIONED)
        ridge = next(enough, _RIDGES[-1])
        if ridge:
            few = f"{self.tokens} tokens for {len(matrix)} inputs, " if self.tokens < len(matrix) else ""
            log.warning(
                "the covariance of layer %d (%s, from %s) is close to singular (%scondition number %.1g): "
                "%g of its mean diagonal is added to the diagonal",
                self.layer,
                self.site,
                self.source,
                few,
                _condition(values),
                ridge,
            )
        matrix.diagonal().add_(ridge * mean)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            raise ModelError(
                f"the covariance of layer {self.layer} ({self.site}, from {self.source}) cannot be inverted even with "
                f"{ridge:g} of its mean diagonal added; make it from a longer text"
            )
        return ridge, factor


def covariance_for(
    model: Any,
    source: str | Path | Covariance,
    *,
    layer: int,
    site: EditSite = "mlp",
    seed: int = 0,
    progress: bool = True,
) -> Covariance | None:
    """The covariance that an edit is given: None for ``"identity"``, itself if it is one, else :func:`covariance_of`.

    It is that of the model without the edits applied to it: one serves a whole sequence of edits, as published.

    Raises:
        ModelError: If it is of another model, layer, site or size.
        DataError: As :func:`covariance_of`.
    """
    if source == "identity":
        return None
    with unedited(model):
        if isinstance(source, Covariance):
            check_covariance(source, model, layer, site)
            return source
        return covariance_of(model, source, layer=layer, site=site, seed=seed, progress=progress)


def covariance_of(
    model: Any,
    source: str | Path,
    *,
    layer: int,
    site: EditSite = "mlp",
    tokens: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Covariance:
    """C = E[k kᵀ] over a text, kept in the cache by the model's weights, the text and the settings.

    Each line of a file is a text of its own, read in windows of at most 128 tokens. A BOS that the model's tokenizer
    puts first stands before each window, and does not count.

    Args:
        model: A causal model.
        source: ``"self"``, text that the model samples itself; a text file, or a gzipped one, of any size; or a
            covariance that was saved: its folder, or the .safetensors file in it.
        layer: Of the matrix.
        site: ``"mlp"`` (default): W_out; ``"attn"``: W_O.
        tokens: How many to read. By default 100,000 of a file, or what there is; of the model's own text 20 for each
            input of the matrix, at least 20,000.
        seed: Of the sampling.
        progress: Show a progress bar.

    Raises:
        ModelError: For a masked model, a layer that there is not, a covariance of another matrix, NaN in the keys.
        DataError: For a file that is missing, no text, or holds no tokens.
        SettingsError: For an unknown site, or fewer than 1 token.
    """
    _require(model, layer, site, tokens)
    if str(source) != SELF:
        path = Path(source).expanduser()
        if path.suffix == ".safetensors" or path.is_dir():
            return _saved(path, model, layer, site)
        if not path.is_file():
            raise DataError(f"no file {path} to take a covariance from; name a text, a saved covariance, or 'self'")
        name, sha256 = path.name, _sha256(path, path.stat().st_size, path.stat().st_mtime_ns)
        wanted = _TEXT_TOKENS if tokens is None else tokens
        windows = file_windows(model, path)
    else:
        name, sha256 = SELF, ""
        wanted = max(_LEAST_SELF_TOKENS, _SELF_TOKENS_PER_INPUT * key_width(model, site)) if tokens is None else tokens
        windows = own_windows(model, seed)
    settings = {"layer": layer, "site": site, "tokens": wanted, **({"seed": seed} if name == SELF else {})}
    made_on = provenance(model)
    marks = [f"v{_FORMAT}", weights_hash(model), made_on["dtype"], layer, site, sha256[:16] or SELF, wanted]
    folder = cache_folder() / "covariance" / "-".join(str(mark) for mark in [*marks, *([seed] if name == SELF else [])])

    def build() -> Covariance:
        total, seen = second_moment(model, windows, wanted, layer, site, progress)
        if not seen:
            raise DataError(f"{source} holds no tokens to take a covariance from")
        return Covariance(
            matrix=(total / seen).float(),
            layer=layer,
            site=site,
            tokens=seen,
            source=name,
            sha256=sha256,
            settings=settings,
            provenance=made_on,
        )

    return _kept(folder, build)


def check_covariance(covariance: Covariance, model: Any, layer: int, site: EditSite) -> None:
    """Refuse a covariance that is not of this matrix of this model.

    Raises:
        ModelError: If the layer, the site, the size or the model's weights are others.
    """
    here, made_on = model_name(model), covariance.provenance.get("model")
    if (covariance.layer, covariance.site) != (layer, site):
        raise ModelError(
            f"this covariance is of layer {covariance.layer} ({covariance.site}), and the edit is of layer {layer} "
            f"({site}); give one of that layer"
        )
    if len(covariance.matrix) != key_width(model, site):
        raise ModelError(
            f"this covariance is of {len(covariance.matrix)} inputs ({made_on}), and the matrix of {here} reads "
            f"{key_width(model, site)}; give one of this model"
        )
    if covariance.provenance.get("weights_hash") != weights_hash(model):
        raise ModelError(
            f"this covariance was made on other weights ({made_on}) than {here} has now; give one made on these"
        )


def _saved(path: Path, model: Any, layer: int, site: EditSite) -> Covariance:
    if not path.exists():
        raise DataError(f"no file {path}; name a saved covariance, a text, or 'self'")
    try:
        covariance = Covariance.load(path)
    except OutputError as error:
        raise DataError(f"{path} is no saved covariance: {error}") from None
    check_covariance(covariance, model, layer, site)
    return covariance


_IN_MEMORY: dict[Path, Covariance] = {}
_HELD = 2  # of GPT-2 XL each is 164 MB, and its factor twice that


def _kept(folder: Path, build: Callable[[], Covariance]) -> Covariance:
    """From memory, from the cache, or built: the Cholesky factor of one that is used for many edits is kept too."""
    if folder in _IN_MEMORY:
        return _IN_MEMORY[folder]
    built: list[Covariance] = []

    def write(place: Path) -> None:
        built.append(build())
        built[0].save(place)

    try:
        cached_folder(folder, write)
    except (OSError, OutputError) as error:
        if not built:
            built.append(build())
        log.warning("the covariance cannot be kept in %s (%s); it will be made again next time", folder.parent, error)
    found = built[0] if built else Covariance.load(folder)
    while len(_IN_MEMORY) >= _HELD:
        _IN_MEMORY.pop(next(iter(_IN_MEMORY)))
    _IN_MEMORY[folder] = found
    return found


def _condition(values: Float[Tensor, " d_in"]) -> float:
    """From ascending eigenvalues; ∞ where the least is 0 or, by rounding, below."""
    return float(values[-1] / values[0]) if values[0] > 0 else float("inf")


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, modified: int) -> str:
    """Of a file, read again only if its size or time has changed."""
    return file_hash(path, "sha256")


def _require(model: Any, layer: int, site: str, tokens: int | None) -> None:
    if is_masked(model):
        raise ModelError(f"{model_name(model)} is a masked model; covariances are for rank-one edits of causal models")
    require_editable(model)
    if site not in get_args(EditSite):
        raise SettingsError(f"no site {site!r}.{near_matches(str(site), get_args(EditSite))} Sites: mlp, attn")
    require_weight(model, parameter_of(0, site))
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < model.cfg.n_layers:
        raise ModelError(f"{model_name(model)} has layers 0–{model.cfg.n_layers - 1}, and no layer {layer}")
    if tokens is not None and tokens < 1:
        raise SettingsError(f"tokens is {tokens}; a covariance needs at least 1")
