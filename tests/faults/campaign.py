"""All faults one after another, and one table of what they came to: ``make test-faults``."""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from kn_lens._version import __version__
from tests.faults import disks, kills, others
from tests.faults.bench import Bench, NotTried, Row

_HEAD = ("what was done", "times", "finished before", "lost", "half-written read", "tables", "")


def main() -> int:
    """Do all faults, or those that are named; exit code 1 if one lost something or did not come out as it must."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("fault-campaign.md"), help="where the table is written")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; by default another each time")
    parser.add_argument("--kills", type=int, default=30, help="of the coordinator, and as many of workers")
    parser.add_argument("--only", nargs="*", default=None, help="names of faults")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    asked = parser.parse_args()
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    faults: dict[str, Callable[[Bench], Row | Sequence[Row]]] = {
        "group": partial(kills.kill_coordinator, times=asked.kills - asked.kills // 2, everyone=True),
        "coordinator": partial(kills.kill_coordinator, times=asked.kills // 2, everyone=False),
        "workers": partial(kills.kill_workers, times=asked.kills),
        "signals": kills.signals,
        "disk": disks.disk_full,
        "limit": disks.files_limited,
        "read-only": disks.read_only,
        "parts": disks.damaged_parts,
        "index": disks.damaged_index,
        "manifest": disks.damaged_manifest,
        "prompts": disks.damaged_prompts,
        "two": others.two_at_once,
        "failing": others.failing_prompt,
        "memory": others.out_of_memory,
        "clock": others.jumping_clock,
    }
    unknown = set(asked.only or ()) - set(faults)
    if unknown:
        parser.error(f"no faults {', '.join(sorted(unknown))}; there are {', '.join(faults)}")
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kn-lens-faults-"))
    _say(f"seed {seed}, runs in {folder}")
    bench = Bench(folder, seed, _say)
    lines: list[str] = []
    good = True
    for name, fault in faults.items():
        if asked.only is not None and name not in asked.only:
            continue
        _say(f"{time.monotonic() - began:.0f} s: {name}")
        try:
            found = fault(bench)
        except NotTried as error:
            lines.append(_line(name, "0", *["–"] * 4, f"not tried: {error}"))
        except Exception as error:  # the others are done none the less
            good = False
            _say(f"FAILED: {type(error).__name__}: {error}")
            lines.append(_line(name, "?", *["?"] * 4, f"**FAILED**: {' '.join(str(error).split())[:300]}"))
        else:
            rows = [found] if isinstance(found, Row) else found
            good = good and all(row.good for row in rows)
            lines += [_row(row) for row in rows]
        asked.out.write_text(_page(lines, seed, time.monotonic() - began), encoding="utf-8")
    _say(asked.out.read_text(encoding="utf-8"))
    if not asked.keep:
        shutil.rmtree(folder)
    return 0 if good else 1


def _page(lines: Sequence[str], seed: int, seconds: float) -> str:
    head = [_line(*_HEAD), _line(*["---"] * len(_HEAD))]
    about = (
        f"kn_lens {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores; seed {seed}; {seconds / 60:.0f} minutes."
    )
    told = (
        "Real processes of the real command line on tiny-causal. Lost: finished pieces that were gone or changed "
        "after. Half-written: parts, manifests and tables that a reader met while the run went on, or that were "
        "there after the fault. Tables: those of `kn-lens results`, held against the undisturbed run's bytes."
    )
    return "\n".join(["# Fault campaign", "", about, "", told, "", *head, *lines, ""])


def _row(row: Row) -> str:
    equal = {True: "equal", False: "**DIFFERENT**", None: "–"}[row.equal]
    finished = "–" if row.finished is None else f"{row.finished}"
    return _line(row.fault, f"{row.times}", finished, f"{row.lost}", f"{row.torn}", equal, row.note)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
