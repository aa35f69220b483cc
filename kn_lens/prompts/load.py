"""Data by name: bundled, ``blimp:<UID>``, ``pararel:<relation>``, or a path."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from kn_lens.bundled import data_folder
from kn_lens.errors import DataError, near_matches
from kn_lens.prompts.counter_facts import CounterFacts, is_counter_facts, read_counter_facts
from kn_lens.prompts.jsonl import Report, read_json, read_jsonl, stop
from kn_lens.prompts.known_facts import read_known_facts
from kn_lens.prompts.minimal_pairs import MinimalPairs, read_minimal_pairs
from kn_lens.prompts.prompt import MASK, Prompt
from kn_lens.prompts.prompt_file import is_prompt_row
from kn_lens.prompts.relations import Relation, read_relation, templates_path

BLIMP_FOLDER = "KN_LENS_BLIMP"
PARAREL_FOLDER = "KN_LENS_PARAREL"
_BLIMP_ON_HUB = "nyu-mll/blimp"


def bundled_names() -> list[str]:
    """Names of the bundled relations and paradigms."""
    folder = data_folder()
    relations = [path.stem for path in (folder / "relations").glob("*.jsonl") if "." not in path.stem]
    return sorted(relations) + sorted(path.stem for path in (folder / "minimal_pairs").glob("*.jsonl"))


def load_data(name: str, report: Report = stop) -> Relation | MinimalPairs | CounterFacts:
    """A data set by its name.

    Args:
        name: A bundled name (``"P36"``, ``"subject_verb_agreement"``); ``"blimp:<UID>"`` or
            ``"pararel:<relation>"`` (from the folder in ``KN_LENS_BLIMP`` / ``KN_LENS_PARAREL``, else
            BLiMP from the Hub); or a path to JSON Lines of pairs or facts, or to known facts or edits in JSON.
        report: Told of each bad row of a file of facts or pairs. By default the first one ends the reading; else
            bad rows are left out.

    Raises:
        DataError: If there is no such data (near matches are named) or a file of it is broken.
    """
    source, _, rest = name.partition(":")
    if source == "blimp" and rest:
        return _load_blimp(rest, report)
    if source == "pararel" and rest:
        return _load_pararel(rest, report)
    folder = data_folder()
    known = bundled_names()
    if name in known:
        relation = folder / "relations" / f"{name}.jsonl"
        if relation.is_file():
            return read_relation(relation, report=report)
        return read_minimal_pairs(folder / "minimal_pairs" / f"{name}.jsonl", report=report)
    path = Path(name).expanduser()
    if os.path.isfile(path):  # False, not an error, for a name too long to be one
        return _read_path(path, report)
    if os.path.isdir(path):
        raise DataError(f"{name} is a folder; name the .jsonl or .json file in it")
    raise DataError(
        f"no data named {name!r}.{near_matches(name, [*known, 'blimp:', 'pararel:'])} Bundled: "
        f"{', '.join(known)}; else blimp:<UID>, pararel:<relation>, or a path"
    )


def load_prompts(name: str) -> Relation | MinimalPairs:
    """Facts or minimal pairs by name; see :func:`load_data`.

    Raises:
        DataError: Also if the name is one of edits.
    """
    data = load_data(name)
    if isinstance(data, CounterFacts):
        raise DataError(
            f"{name!r} holds edits (CounterFact), which can only be evaluated: `kn-lens evaluate`, kn.evaluate_edits"
        )
    return data


def load_relation(name: str) -> Relation:
    """Facts by name; see :func:`load_data`.

    Raises:
        DataError: Also if the name is one of minimal pairs.
    """
    data = load_prompts(name)
    if not isinstance(data, Relation):
        raise DataError(f"{name!r} holds minimal pairs, not facts; use load_minimal_pairs")
    return data


def load_minimal_pairs(name: str) -> MinimalPairs:
    """Minimal pairs by name; see :func:`load_data`.

    Raises:
        DataError: Also if the name is one of facts.
    """
    data = load_prompts(name)
    if not isinstance(data, MinimalPairs):
        raise DataError(f"{name!r} holds facts, not minimal pairs; use load_relation")
    return data


def data_hash(data: Relation | MinimalPairs | CounterFacts) -> str | None:
    """SHA-256 of the file that the data was read from (with its templates), or None if it has none."""
    if data.path is None:
        return None
    digest = hashlib.sha256(data.path.read_bytes())
    templates = templates_path(data.path)
    if isinstance(data, Relation) and templates.is_file():
        digest.update(templates.read_bytes())
    return digest.hexdigest()


def _read_path(path: Path, report: Report) -> Relation | MinimalPairs | CounterFacts:
    if path.suffix == ".json":
        return read_counter_facts(path) if is_counter_facts(read_json(path)) else read_known_facts(path, report=report)
    if templates_path(path).is_file():
        return read_relation(path, report=report)
    where, first = next(read_jsonl(path, report=report), ("", None))
    if first is None:  # no row is sound, which the report has been told
        return MinimalPairs(name=path.stem, pairs=(), path=path)
    if is_prompt_row(first):
        raise DataError(f"{path} holds prompts, one a line; only runs take such files: `kn-lens run`, kn.run")
    if not {"sentence_good", "sentence_bad", "subject", "object"} & set(first):
        raise DataError(
            f"{where} has the fields {', '.join(map(repr, first))}: neither a minimal pair ('sentence_good', "
            f"'sentence_bad') nor a fact ('subject', 'object', with templates in {templates_path(path).name})"
        )
    if "subject" in first and "sentence_good" not in first:
        raise DataError(f"{path} holds facts, and their templates are missing: write {templates_path(path)}")
    return read_minimal_pairs(path, report=report)


def _load_blimp(uid: str, report: Report) -> MinimalPairs:
    folder = os.environ.get(BLIMP_FOLDER)
    if folder:
        path = Path(folder).expanduser() / f"{uid}.jsonl"
        if not path.is_file():
            known = sorted(entry.stem for entry in Path(folder).expanduser().glob("*.jsonl"))
            raise DataError(f"no {uid}.jsonl in {BLIMP_FOLDER}={folder}.{near_matches(uid, known)}")
        return read_minimal_pairs(path, name=f"blimp:{uid}", skip_identical=True, report=report)
    return read_minimal_pairs(_blimp_from_hub(uid), name=f"blimp:{uid}", skip_identical=True, report=report)


def _blimp_from_hub(uid: str) -> Path:
    """Fetch one BLiMP paradigm from the Hub and keep it as JSON Lines in the cache folder."""
    from datasets import load_dataset

    from kn_lens.models.cache import cache_folder

    path = cache_folder() / "blimp" / f"{uid}.jsonl"
    if path.is_file():
        return path
    try:
        rows = load_dataset(_BLIMP_ON_HUB, uid, split="train")
    except Exception as error:  # the Hub client raises many kinds; the user needs one line
        raise DataError(
            f"cannot fetch BLiMP's {uid!r} from the Hub ({type(error).__name__}); offline, put the files "
            f"<UID>.jsonl of github.com/alexwarstadt/blimp into a folder and set {BLIMP_FOLDER} to it"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)
    return path


def _load_pararel(relation: str, report: Report) -> Relation:
    folder = os.environ.get(PARAREL_FOLDER)
    if not folder:
        raise DataError(
            f"pararel:{relation} needs the folder of ParaRel's data_all_allbags.json "
            f"(github.com/Hunter-DDM/knowledge-neurons) in {PARAREL_FOLDER}"
        )
    path = Path(folder).expanduser() / "data_all_allbags.json"
    if not path.is_file():
        raise DataError(f"no data_all_allbags.json in {PARAREL_FOLDER}={folder}")
    return read_pararel(path, relation, report)


def read_pararel(path: Path, name: str, report: Report = stop) -> Relation:
    """One relation of ParaRel as Dai et al. store it: ``{relation: [[[prompt, answer, tag], …], …]}``.

    Raises:
        DataError: If the file is broken or holds no such relation.
    """
    bags = read_json(path)
    if name not in bags:
        raise DataError(f"{path} holds no relation {name!r}; it has {', '.join(sorted(bags))}")
    facts: dict[str, tuple[Prompt, ...]] = {}
    pairs: dict[str, tuple[str, str]] = {}
    label = name
    for number, bag in enumerate(bags[name]):
        where = f"{path} {name}[{number}]"
        try:
            subject = _common_subject([entry[0] for entry in bag])
            label = bag[0][2].split("(")[-1].rstrip(")")
            fact = f"{subject or number} → {bag[0][1]}"
            if fact in facts:
                fact = f"{fact} ({number})"
            facts[fact] = tuple(
                Prompt.from_cloze(text, answer, group=fact, cue=_once(subject, text), source=where)
                for text, answer, _ in bag
            )
            if subject:
                pairs[fact] = subject, bag[0][1]
        except (IndexError, TypeError, ValueError) as error:
            report(where, f"not a bag of [prompt, answer, relation] ({error})")
    return Relation(name=name, facts=facts, pairs=pairs, label=label, path=path)


def _common_subject(texts: list[str]) -> str:
    """The longest run of words, capitalised first, that all prompts of a bag share: their subject."""
    words = [text.replace(MASK, "").replace("'s", " ").strip(" .,").split() for text in texts]
    words = [[word.strip(".,") for word in entry] for entry in words]
    first = words[0]
    runs = [first[i:j] for i in range(len(first)) for j in range(len(first), i, -1)]
    joined = [f" {' '.join(entry)} " for entry in words]
    shared = [run for run in runs if all(f" {' '.join(run)} " in text for text in joined)]
    named = [run for run in shared if run[0][:1].isupper() or run[0][:1].isdigit()] or shared
    return " ".join(max(named, key=len, default=[]))


def _once(subject: str, text: str) -> str | None:
    found = re.findall(rf"(?<!\w){re.escape(subject)}(?!\w)", text) if subject else []
    return subject if len(found) == 1 else None
