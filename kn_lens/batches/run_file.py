"""Run files: YAML read so that every complaint, of syntax or of meaning, names its line.

Scalars are read by the rules of YAML 1.2 (core schema): ``1e9`` is a number, ``no`` and ``2024-01-01`` are texts. A
number that begins with 0 is refused: some readers take 010 for eight.
"""

from __future__ import annotations

import os
import re
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import yaml

from kn_lens.batches.config import RunConfig, RunFileError
from kn_lens.batches.wording import Loc
from kn_lens.bundled import data_folder
from kn_lens.errors import near_matches
from kn_lens.models.names import KNOWN

_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
_LONGEST_NUMBER = 400
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    "-.inf": -float("inf"),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_EXAMPLE = "model: tiny-causal, data: P36, method: causal_trace; `kn-lens init tracing` writes one"


def read_run_file(path: str | os.PathLike[str]) -> RunConfig:
    """The run that a YAML file describes.

    Raises:
        RunFileError: No such file, no YAML, or everything that is wrong with it: one line each, beginning with
            ``FILE:LINE: ``.
    """
    path = Path(path)
    return _Reader(path).config(_text_of(path))


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RunFileError(f"no file {path}; `kn-lens init tracing > {path}` writes one to begin with") from None
    except IsADirectoryError:
        raise RunFileError(f"{path} is a folder; name the run file in it, or `kn-lens resume {path}`") from None
    except UnicodeDecodeError as error:
        raise RunFileError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise RunFileError(f"{path} cannot be read ({error.strerror})") from None


class _Reader:
    """Reads one file, and keeps what is wrong with it by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[tuple[int, str]] = []

    def config(self, text: str) -> RunConfig:
        root = self._parse(text)
        if root is None:
            raise RunFileError(f"{self.path}: the file is empty; it says what to run: {_EXAMPLE}")
        if not isinstance(root, yaml.MappingNode):
            raise RunFileError(f"{self._at(_line(root))}: expected 'key: value' lines ({_EXAMPLE})")
        described = self._value(root)
        config = None
        try:
            config = RunConfig.of(described)
        except RunFileError as error:
            self.problems += [(_line_at(root, fault.loc), fault.text) for fault in error.faults]
        found = [*_unknown_model(described.get("model")), *_unknown_data(described.get("data"))]
        self.problems += [(_line_at(root, loc), text) for loc, text in found]
        if self.problems or config is None:
            lines = sorted(dict.fromkeys(self.problems), key=lambda problem: problem[0])
            raise RunFileError("\n".join(f"{self._at(line)}: {text}" for line, text in lines))
        return config

    def _at(self, line: int) -> str:
        return f"{self.path}:{line}"

    def _parse(self, text: str) -> yaml.Node | None:
        try:
            nodes = list(yaml.compose_all(text, Loader=yaml.BaseLoader))
        except yaml.MarkedYAMLError as error:
            raise RunFileError(f"{self._syntax(error, text)}") from None
        except yaml.YAMLError as error:
            raise RunFileError(f"{self.path}: not YAML ({str(error).splitlines()[0]})") from None
        if len(nodes) > 1:
            raise RunFileError(f"{self._at(_line(nodes[1]))}: a second document begins ('---'); a file holds one run")
        return nodes[0] if nodes and not (isinstance(nodes[0], yaml.ScalarNode) and not nodes[0].value) else None

    def _syntax(self, error: yaml.MarkedYAMLError, text: str) -> str:
        mark = error.problem_mark or error.context_mark
        if mark is None:
            return f"{self.path}: not YAML ({error.problem})"
        where = f"{self._at(mark.line + 1)}: not YAML at column {mark.column + 1}"
        line = text.splitlines()[mark.line : mark.line + 1]
        if line and "\t" in line[0][: mark.column + 1]:
            return f"{where}: a tab; indent with spaces"
        return f"{where} ({error.problem})"

    def _value(self, node: yaml.Node, within: frozenset[int] = frozenset()) -> Any:
        if id(node) in within:
            self.problems.append((_line(node), "an alias that holds itself; write the values out"))
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, within | {id(node)})
        if isinstance(node, yaml.SequenceNode):
            return [self._value(entry, within | {id(node)}) for entry in node.value]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, within: frozenset[int]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append((_line(key), "a key is a list or a mapping; write a name"))
            elif key.value in lines:
                text = f"{key.value!r} is there twice, first in line {lines[key.value]}; remove one"
                self.problems.append((_line(key), text))
            else:
                lines[key.value] = _line(key)
                found[key.value] = self._value(value, within)
        return found

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        if node.tag != yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG:
            self.problems.append((_line(node), f"the tag {node.tag}; write the value without it"))
        if node.style is not None:  # in quotes, or a block of text
            return text
        if text in _SPECIAL:
            return _SPECIAL[text]
        if not _NUMBER.fullmatch(text) or len(text) > _LONGEST_NUMBER:
            return text
        if re.match(r"[-+]?0[\d_]", text):
            right = re.sub(r"^([-+]?)[0_]+(?=\d)", r"\1", text)
            problem = f"{text} begins with 0, which some read as octal; write {right}, or '{text}' if it is a text"
            self.problems.append((_line(node), problem))
        digits = text.replace("_", "")
        return int(digits) if re.fullmatch(r"[-+]?\d+", digits) else float(digits)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _line_at(root: yaml.Node, loc: Loc) -> int:
    """The line of a key or an entry; where it is missing, of the mapping that lacks it."""
    node, line = root, _line(root)
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                return line
            line, node = _line(found[0]), found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = _line(node)
        else:
            return line
    return line


def _unknown_model(name: Any) -> list[tuple[Loc, str]]:
    """A path where nothing is, or one of our own names misspelled; only loading can tell of other names."""
    if not isinstance(name, str) or name in KNOWN or os.path.exists(Path(name).expanduser()):
        return []
    if name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        return [(("model",), f"no folder or file {name!r} here")]
    if any(SequenceMatcher(None, name.lower(), known).ratio() >= 0.85 for known in KNOWN):
        return [(("model",), f"no model {name!r}.{near_matches(name, KNOWN)}")]
    return []


def _unknown_data(data: Any) -> list[tuple[Loc, str]]:
    """Data sets that are neither bundled nor files here, by where they are named."""
    entries = list(enumerate(data)) if isinstance(data, list) else [(None, data)]
    found: list[tuple[Loc, str]] = []
    for at, entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else entry
        if not isinstance(name, str) or not name or re.match(r"(blimp|pararel):.", name):
            continue
        known = _bundled()
        if name in known or os.path.exists(Path(name).expanduser()):
            continue
        near = near_matches(name, [*known, "blimp:", "pararel:"])
        loc = ("data", *(() if at is None else (at,)), *(("name",) if isinstance(entry, dict) else ()))
        found.append((loc, f"no data named {name!r}, and no such file here.{near}"))
    return found


def _bundled() -> list[str]:
    """As :func:`kn_lens.prompts.load.bundled_names`, without loading torch."""
    folders = [data_folder() / name for name in ("relations", "minimal_pairs")]
    return sorted(path.stem for folder in folders for path in folder.glob("*.jsonl") if "." not in path.stem)
