"""The folder of a reproduction: what was asked, a folder per experiment, and what a report shows of them.

``DIR/manifest.json`` says what was asked, of which model; ``DIR/E1/`` … hold ``manifest.json`` (settings, findings,
verdicts, checksums), ``result/`` and tables. An experiment's folder appears when it is whole: what is on disk is done.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kn_lens.errors import OutputError
from kn_lens.experiments.experiment import EXPERIMENTS, Experiment, ExperimentResult, experiment
from kn_lens.prompts.prompt import count_reasons
from kn_lens.report.content import ModelReport, Section
from kn_lens.runs.output import MANIFEST, check_output, output_folder, read_manifest

COMMAND = "reproduce"
REPORT = "report.html"
PIECES = "pieces"

_RESULT = "result"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What makes two reproductions the same one: model, weights, size, seed, number type."""

    model: str
    weights_hash: str
    size: str
    seed: int
    dtype: str


def check_reproduction(out: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a folder that holds something else, or a reproduction that was asked otherwise.

    Args:
        out: The folder; it need not exist.
        asked: Some fields of :class:`Asked`: those that are known.

    Raises:
        OutputError: With what differs.
    """
    if not (out / MANIFEST).is_file():
        check_output(out)
        return
    there = _manifest(out)["asked"]
    differing = [
        f"{name} (there {there.get(name)}, here {value})" for name, value in asked.items() if there.get(name) != value
    ]
    if differing:
        raise OutputError(f"{out} holds a reproduction that differs in {', '.join(differing)}; name another --out")


def begin(out: Path, asked: Asked, experiments: Sequence[str], about: Mapping[str, Any]) -> None:
    """Write the manifest of a reproduction; where there is one, with its experiments and those asked for now."""
    former = _manifest(out)["experiments"] if (out / MANIFEST).is_file() else ()
    named = [name for name in EXPERIMENTS if name in {*former, *experiments}]
    content = {"command": COMMAND, "asked": asdict(asked), "experiments": named, **about}
    try:
        out.mkdir(parents=True, exist_ok=True)
        partial = out / f"{MANIFEST}.new"
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        partial.replace(out / MANIFEST)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from None


def save_result(out: Path, name: str, result: ExperimentResult, seconds: float) -> list[str]:
    """Write the folder of an experiment; a former one is replaced. Returns the findings written."""
    module = experiment(name)
    manifest: dict[str, Any] = {
        "command": f"{COMMAND}, {name}",
        "state": "done",
        "title": module.TITLE,
        "seconds": seconds,
        "settings": result.settings,
        "provenance": result.provenance,
        "findings": module.findings(result),
        "verdicts": [asdict(verdict) for verdict in module.verdicts(result)],
        "dropped": count_reasons([entry for _, entry in module.dropped(result)]),
    }
    with output_folder(out / name, manifest) as folder:
        result.save(folder.path / _RESULT)
        for table, frame in module.tables(result).items():
            folder.write_table(table, frame)
        manifest["sha256"] = {file: _sha256(folder.path / file) for file in folder.files()}
    return manifest["findings"]


def save_failure(out: Path, name: str, state: str, reason: str) -> None:
    """Note that an experiment cannot be run on this model (``"unsuited"``), or could not (``"failed"``), and why."""
    with output_folder(out / name, {"command": f"{COMMAND}, {name}", "state": state, "reason": reason}):
        pass


def state_of(out: Path, name: str) -> tuple[str, str]:
    """The state of an experiment (``"done"``, ``"unsuited"``, ``"failed"``, ``"damaged"``, ``"not run"``), and why."""
    folder = out / name
    if not folder.is_dir():
        return "not run", "not run yet"
    try:
        manifest = read_manifest(folder)
        state, reason = manifest["state"], manifest.get("reason", "")
        for file, expected in manifest.get("sha256", {}).items():
            if not (folder / file).is_file():
                return "damaged", f"{folder / file} is missing"
            if _sha256(folder / file) != expected:
                return "damaged", f"{folder / file} is not as it was written"
    except (OutputError, KeyError, TypeError, AttributeError) as error:
        return "damaged", f"{folder / MANIFEST} cannot be read ({error})"
    return state, reason


def read_reproduction(out: Path) -> ModelReport:
    """What a report shows: everything that is there, also of a run in progress.

    Raises:
        OutputError: If the folder holds no reproduction.
    """
    manifest = _manifest(out)
    sections = [_section(out, name) for name in EXPERIMENTS if name in manifest["experiments"] or (out / name).is_dir()]
    return ModelReport(
        model=manifest["asked"]["model"],
        size=manifest["asked"]["size"],
        kind=manifest["kind"],
        shape=manifest["shape"],
        settings={name: manifest["asked"][name] for name in ("seed", "dtype")}
        | {"date": manifest["date"], "command": _command(out, manifest)},
        provenance=manifest["provenance"],
        sections=sections,
        finished=all(section.state != "not run" for section in sections),
    )


def unfinished_of(out: Path, names: Iterable[str]) -> list[str]:
    """The experiments that have no result yet.

    Raises:
        OutputError: If one is damaged; naming the file, and how to have it computed again.
    """
    found = []
    for name in names:
        state, reason = state_of(out, name)
        if state == "damaged":
            raise OutputError(f"{reason}; add --redo {name} to compute {name} again")
        if state != "done":
            found.append(name)
    return found


def _section(out: Path, name: str) -> Section:
    module = experiment(name)
    head: dict[str, Any] = {"name": name, "title": module.TITLE, "about": module.ABOUT, "paper": module.PAPER}
    state, reason = state_of(out, name)
    if state != "done":
        return Section(**head, state=state, reason=reason)  # type: ignore[arg-type]
    try:
        result = module.Result.load(out / name / _RESULT)
    except OutputError as error:  # whole, but of another version
        return Section(**head, state="damaged", reason=str(error))
    return section_of(name, module, result, read_manifest(out / name)["seconds"])


def section_of(name: str, module: Experiment, result: ExperimentResult, seconds: float | None = None) -> Section:
    """What a report shows of a result."""
    return Section(
        name=name,
        title=module.TITLE,
        about=module.ABOUT,
        paper=module.PAPER,
        state="done",
        findings=module.findings(result),
        verdicts=module.verdicts(result),
        figures=module.figures(result),
        tables=module.tables(result),
        dropped=module.dropped(result),
        settings=result.settings,
        seconds=seconds,
    )


def _command(out: Path, manifest: Mapping[str, Any]) -> str:
    """The command that runs all that was asked for."""
    asked, named = manifest["asked"], manifest["experiments"]
    some = [] if named == list(EXPERIMENTS) else ["--experiments", ",".join(named)]
    options = ["--size", asked["size"], "--seed", str(asked["seed"]), "--dtype", asked["dtype"], "--out", str(out)]
    return shlex.join(["kn-lens", COMMAND, asked["model"], *some, *options])


def _manifest(out: Path) -> dict[str, Any]:
    manifest = read_manifest(out)
    if manifest.get("command") == COMMAND and not {"asked", "experiments", "kind", "shape", "date"} <= set(manifest):
        raise OutputError(f"{out / MANIFEST} is damaged: it lacks what kn-lens {COMMAND} writes")
    if manifest.get("command") != COMMAND:
        raise OutputError(f"{out} was written by kn-lens {manifest.get('command')}, not by kn-lens {COMMAND}")
    return manifest


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
