"""Run files: what they may say, and that every complaint names its line."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from kn_lens.batches.config import DataEntry, RunConfig, RunFileError
from kn_lens.batches.run_file import read_run_file
from kn_lens.errors import SettingsError

PLAIN = "model: tiny-causal\ndata: P36\nmethod: causal_trace\n"


def read(folder, text: str | bytes) -> RunConfig:
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_run_file(path)


def complaints(folder, text: str | bytes) -> list[str]:
    """The lines of the error, without the file's name."""
    with pytest.raises(RunFileError) as refusal:
        read(folder, text)
    name = f"{folder / 'run.yaml'}:"
    lines = str(refusal.value).splitlines()
    assert all(line.startswith(name) for line in lines)
    return [line.removeprefix(name) for line in lines]


def test_a_file_says_model_data_and_method_and_the_rest_has_defaults(tmp_path):
    config = read(tmp_path, PLAIN)
    assert config.model_dump(exclude={"settings"}) == {
        "model": "tiny-causal",
        "data": ({"name": "P36", "groups": None, "prompts": None, "templates": "all", "augment": False},),
        "method": "causal_trace",
        "seed": 0,
        "shard": 16,
        "dtype": "float32",
        "device": None,
        "threads": 1,
        "memory_budget": 1e9,
        "on_bad_row": "error",
        "gpus_per_worker": None,
    }
    assert config.settings.model_dump()["stream"] == ("resid",)
    assert config.settings.model_dump()["samples"] == 10


def test_what_a_file_says_is_what_python_says(tmp_path):
    text = """
        model: tiny-causal
        data:
          - P36
          - {name: subject_verb_agreement, groups: 3, prompts: 2, augment: yes}
        method: causal_trace
        settings: {stream: [mlp, attn], noise: 1e-1, layers: [0, 3]}
        memory_budget: 2e9  # no number to readers of YAML 1.1
        seed: 1_0
        shard: 1e2
        dtype: float64
        gpus_per_worker: .5
    """
    entry = {"name": "subject_verb_agreement", "groups": 3, "prompts": 2, "augment": True}
    assert read(tmp_path, text) == RunConfig(
        model="tiny-causal",
        data=["P36", entry],
        method="causal_trace",
        settings={"stream": ["mlp", "attn"], "noise": 0.1, "layers": [0, 3]},
        memory_budget=2_000_000_000,
        seed=10,
        shard=100,
        dtype="float64",
        gpus_per_worker=0.5,
    )


def test_a_configuration_survives_json_and_pickle():
    config = RunConfig(model="tiny-causal", data=DataEntry(name="P36", groups=2), method="causal_trace")
    told = config.model_dump(mode="json")
    assert told["data"] == [{"name": "P36", "groups": 2, "prompts": None, "templates": "all", "augment": False}]
    assert told["settings"]["samples"] == 10  # the method's own settings, not those of their base
    assert RunConfig.of(told) == config
    assert RunConfig.model_validate(told) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert RunConfig(**{**told, "settings": config.settings}) == config


def test_all_complaints_come_in_one_go_with_their_lines(tmp_path):
    text = """model: tiny-causal
data:
  - P36
  - {name: P63, grups: 3}
  - nowhere.jsonl
  - groups: 0
method: causal_trace
settings:
  smaples: 3
  samples: ten
  stream: [resid, rsid]
  noise: true
  layers:
    - 0
    - a
shard: 0
seed: 010
dtype: flaot16
shard: 3
extra: 1
"""
    assert complaints(tmp_path, text) == [
        "4: unknown key 'grups' in data[1]. Did you mean 'groups'?",
        "4: no data named 'P63', and no such file here. Did you mean 'P38' or 'P37' or 'P36'?",
        "5: no data named 'nowhere.jsonl', and no such file here.",
        "6: 'name' is missing in data[3]",
        "6: data[3].groups is 0; give 1 or more",
        "9: unknown key 'smaples' in settings. Did you mean 'samples' or 'swaps'?",
        "10: samples is 'ten'; give a whole number",
        "11: stream[1] is 'rsid'; give 'resid', 'mlp', 'attn', 'head' or 'neuron'. Did you mean 'resid'?",
        "12: noise is true; give a number",
        "15: layers[1] is 'a'; give a whole number",
        "16: shard is 0; give 1 or more",
        "17: 010 begins with 0, which some read as octal; write 10, or '010' if it is a text",
        "18: dtype is 'flaot16'; give 'float32', 'float16', 'bfloat16' or 'float64'. Did you mean 'float16' or "
        "'bfloat16' or 'float64'?",
        "19: 'shard' is there twice, first in line 16; remove one",
        "20: unknown key 'extra'. Known: model, data, method, settings, seed, shard, dtype, device, threads, "
        "memory_budget, on_bad_row, gpus_per_worker",
    ]


def test_python_gets_the_same_sentences_without_lines():
    with pytest.raises(SettingsError) as refusal:
        RunConfig(model=2024, data=["P37", "P37"], method="causal_trac", seed=True, memory_budget=float("nan"))
    lines = str(refusal.value).splitlines()
    assert lines[:2] == [
        "model is 2024; give a text, in quotes",
        "data holds 'P37' 2 times; a run takes each data set once",
    ]
    assert lines[2].startswith("no method 'causal_trac'. Did you mean 'causal_trace'")
    assert lines[3:] == ["seed is true; give a whole number", "memory_budget is nan; give a finite number"]
    with pytest.raises(RunFileError, match=r"^a run is described by a mapping of its fields, not by list$"):
        RunConfig.of(["P36"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            PLAIN + "settings:\n  stream: neuron\n",
            ["4: stream neuron traces every neuron of a layer; say which layers,"],
        ),
        (PLAIN + "settings: {stream: []}\n", ["4: stream is empty; name at least one"]),
        (PLAIN + "settings: [3]\n", ["4: settings is [3]; give the options of causal_trace by name"]),
        (PLAIN + "settings:\n  swaps: [1]\n", ["5: swaps is [1]; give a mapping"]),
        (PLAIN + "seed:\n", ["4: seed is empty; give a whole number"]),
        (PLAIN + "seed: on\nthreads: 2024-01-01\nshard: 12:30\n", ["4: seed is 'on'; give a whole number"]),
        (PLAIN + "device: no\n", ["4: device is 'no'; write cpu, cuda, cuda:1 …, or leave it out"]),
        (PLAIN + "memory_budget: -.inf\n", ["4: memory_budget is -inf; give a finite number"]),
        (
            "model: tiny-casual\ndata: P36\nmethod: causal_trace",
            ["1: no model 'tiny-casual'. Did you mean 'tiny-causal'"],
        ),
        ("model: ./no\ndata: P36\nmethod: causal_trace", ["1: no folder or file './no' here"]),
        ("model: gpt2\ndata:\nmethod: causal_trace", ["2: data is empty; name at least one data set"]),
        ("model: gpt2\ndata: {groups: 1}\nmethod: causal_trace", ["2: 'name' is missing in data"]),
        ("data: P36\n", ["1: 'model' is missing", "1: 'method' is missing"]),
        ("model: gpt2\ndata: P36\nmethod: patch", ["3: no method 'patch'."]),
    ],
)
def test_one_complaint_at_its_line(tmp_path, text, expected):
    found = complaints(tmp_path, text)
    assert [line[: len(start)] for line, start in zip(found, expected, strict=False)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", " the file is empty; it says what to run: model: tiny-causal"),
        ("# nothing\n", " the file is empty; it says what to run: model: tiny-causal"),
        ("- model: gpt2\n", "1: expected 'key: value' lines (model: tiny-causal"),
        ("model\n", "1: expected 'key: value' lines (model: tiny-causal"),
        ("data:\n\t- P36\n", "2: not YAML at column 1: a tab; indent with spaces"),
        ("model: [a\ndata: b\n", "2: not YAML at column 5 (expected ',' or ']', but got ':')"),
        ("\nmodel: a: b\n", "2: not YAML at column 9 (mapping values are not allowed here)"),
        ("model: a\n---\nmodel: b\n", "3: a second document begins ('---'); a file holds one run"),
        (b"model: \xff\n", " not UTF-8 text (byte 7); save it as UTF-8"),
        (b"model: \x00\n", " not YAML (unacceptable character #x0000: special characters are not allowed)"),
    ],
)
def test_what_is_no_run_file_at_all(tmp_path, text, expected):
    assert complaints(tmp_path, text)[0].startswith(expected)


def test_tags_aliases_and_odd_keys_are_refused(tmp_path):
    text = PLAIN + "settings: &s\n  swaps: *s\ndevice: !!python/object:os.system x\n? [a]\n: 3\n"
    found = complaints(tmp_path, text)
    assert "4: an alias that holds itself; write the values out" in found
    assert "6: the tag tag:yaml.org,2002:python/object:os.system; write the value without it" in found
    assert "7: a key is a list or a mapping; write a name" in found


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RunFileError, match=r"^no file .*none.yaml; `kn-lens init tracing > .*` writes one"):
        read_run_file(tmp_path / "none.yaml")
    with pytest.raises(RunFileError, match=r"is a folder; name the run file in it, or `kn-lens resume"):
        read_run_file(tmp_path)


def test_windows_line_ends_and_byte_order_marks_are_read(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode()) == read(tmp_path, PLAIN)


def test_reading_a_file_loads_no_torch(tmp_path):
    (tmp_path / "run.yaml").write_text(PLAIN)
    code = "import sys; from kn_lens.batches.run_file import read_run_file; read_run_file(sys.argv[1]); "
    code += "assert not {'torch', 'pandas', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.yaml")], check=True)
