"""The checker of data: clean folders, and folders with every mistake in them, all of which it names at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from kn_lens.bundled import data_folder
from kn_lens.errors import DataError
from kn_lens.prompts.check import Problem, check_data

CAPITALS = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome"}
TEMPLATES = [
    ("The capital of {subject} is {object}.", False),
    ("The capital city of {subject} is {object}.", False),
    ("In {subject}, the king lives in {object}.", False),
    ("The king of {subject} lives in {object}.", False),
    ("The city of the king of {subject} is {object}.", True),
    ("In {subject}, the capital is {object}.", True),
    ("In {subject}, {object} is the capital.", False),
]
BACK = [
    ("{subject} is the capital of {object}.", False),
    ("{subject} is the city of the king of {object}.", False),
    ("The city {subject} is in {object}.", False),
    ("The capital {subject} is in {object}.", False),
    ("The king of {subject} is the king of {object}.", True),
    ("In {subject} lives the king of {object}.", True),
    ("{subject} of {object} is the capital.", False),
]
PAIRS = [
    ("The dog near the house", "runs", "run", ".", "dog", "singular"),
    ("The cats near the house", "run", "runs", ".", "cats", "plural"),
]


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def facts(pairs):
    return [{"subject": subject, "object": target} for subject, target in pairs]


def templates(rows):
    forms = {True: "causal", False: "masked"}
    return [
        {"template": text, "form": forms[text.endswith("{object}.")], **({"held_out": True} if held_out else {})}
        for text, held_out in rows
    ]


def one_prefix(prefix, good, bad, rest, cue, number):
    start = prefix.index(cue)
    return {
        "sentence_good": f"{prefix} {good}{rest}",
        "sentence_bad": f"{prefix} {bad}{rest}",
        "one_prefix_method": True,
        "one_prefix_prefix": prefix,
        "one_prefix_word_good": good,
        "one_prefix_word_bad": bad,
        "cue": cue,
        "cue_span": [start, start + len(cue)],
        "number": number,
    }


def two_prefix(head, good, bad, noun, number):
    return {
        "sentence_good": f"{head} {good} {noun}.",
        "sentence_bad": f"{head} {bad} {noun}.",
        "two_prefix_method": True,
        "two_prefix_prefix_good": f"{head} {good}",
        "two_prefix_prefix_bad": f"{head} {bad}",
        "two_prefix_word": noun,
        "cue": noun,
        "cue_span": [len(f"{head} {good} "), len(f"{head} {good} {noun}")],
        "number": number,
    }


@pytest.fixture
def folder(tmp_path):
    """A folder of data without mistakes."""
    lines(tmp_path / "relations/P36.jsonl", facts(CAPITALS.items()))
    lines(tmp_path / "relations/P36.templates.jsonl", templates(TEMPLATES))
    lines(tmp_path / "relations/P1376.jsonl", facts((city, country) for country, city in CAPITALS.items()))
    lines(tmp_path / "relations/P1376.templates.jsonl", templates(BACK))
    about = {
        "P36": {"name": "capital", "description": "The capital of a country.", "inverse": "P1376"},
        "P1376": {"name": "capital of", "description": "Of which country.", "inverse": "P36"},
    }
    (tmp_path / "relations/relations.json").write_text(json.dumps(about, indent=1))
    lines(tmp_path / "minimal_pairs/verbs.jsonl", [one_prefix(*pair) for pair in PAIRS])
    determiners = [("He saw", "this", "these", "dog", "singular"), ("He saw", "these", "this", "cats", "plural")]
    lines(tmp_path / "minimal_pairs/determiners.jsonl", [two_prefix(*pair) for pair in determiners])
    (tmp_path / "synonyms.json").write_text('{\n "physics": "physicist",\n "botany": "botanist"\n}\n')
    return tmp_path


def people(folder, fields, occupations):
    """P101 and P106 that the synonyms connect, with templates that compete with no others."""
    for name, pairs, word in (("P101", fields, "field"), ("P106", occupations, "work")):
        lines(folder / f"relations/{name}.jsonl", facts(pairs))
        rows = [f"The {word} {verb} {{subject}} is {{object}}." for verb in ("of", "by", "for", "near")]
        held_out = [f"The {word} of {{subject}} near {word} is {{object}}.", f"Is {word} near {{subject}} {{object}}."]
        rows = [(rows[0].replace("is", "was"), False), *((row, False) for row in rows[1:])]
        rows += [(row, True) for row in held_out] + [("Is {subject} of {object} here.", False)]
        lines(folder / f"relations/{name}.templates.jsonl", templates(rows))
    about = json.loads((folder / "relations/relations.json").read_text())
    for name in ("P101", "P106"):
        about[name] = {"name": name, "description": name, "inverse": None}
    (folder / "relations/relations.json").write_text(json.dumps(about, indent=1))


def found(folder):
    """The problems, with paths below the folder."""
    return [str(problem).replace(f"{folder}/", "") for problem in check_data(folder)]


def rewrite(path, number, row):
    """Put ``row`` into line ``number`` (from 1) of a file; behind its end, add it."""
    rows = path.read_text(encoding="utf-8").splitlines()
    text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
    rows[number - 1 : number] = [text]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


# -- no mistakes --------------------------------------------------------------------------------------------------


def test_the_bundled_data_is_clean():
    assert [str(problem) for problem in check_data(data_folder())] == []


def test_a_clean_folder_and_its_parts(folder):
    people(folder, [("Marie Curie", "physics")], [("Marie Curie", "physicist")])
    assert found(folder) == []
    for part in ("relations", "minimal_pairs"):  # what is absent is no problem
        shutil.rmtree(folder / part)
        assert found(folder) == []
    (folder / "synonyms.json").unlink()
    with pytest.raises(DataError, match=r"no relations/\*.jsonl, minimal_pairs/\*.jsonl or synonyms.json to check"):
        check_data(folder)


def test_relations_need_neither_relations_json_nor_their_inverse(folder):
    (folder / "relations/P1376.jsonl").unlink()
    (folder / "relations/P1376.templates.jsonl").unlink()
    assert found(folder) == []
    (folder / "relations/relations.json").unlink()
    assert found(folder) == []


# -- relations ----------------------------------------------------------------------------------------------------


def test_every_broken_line_is_named_and_the_rest_is_read(folder):
    path = folder / "relations/P36.jsonl"
    with path.open("ab") as file:
        file.write(b'{broken\n\n[1]\n{"subject": "Peru"}\n{"subject": " ", "object": 3}\n{"subject": "Per\xfa"}\n')
        file.write(b'{"subject": "Spain", "object": "Toledo"}\n{"subject": "Italy", "object": "Rome"}\n')
    assert found(folder) == [
        "relations/P36.jsonl:4: not JSON (Expecting property name enclosed in double quotes at column 2)",
        "relations/P36.jsonl:6: expected an object {…}, found list",
        "relations/P36.jsonl:7: field 'object' is missing",
        "relations/P36.jsonl:8: field 'subject' is ' ', not a text",
        "relations/P36.jsonl:8: field 'object' is 3, not a text",
        "relations/P36.jsonl:9: not UTF-8 text (byte 16 of the line); save it as UTF-8",
        "relations/P36.jsonl:10: 'Spain' has the object 'Toledo' here and 'Madrid' in line 2; a subject has one "
        "object: keep the right line and remove the other",
        "relations/P36.jsonl:11: the fact 'Italy → Rome' is stated twice, first in line 3; remove one",
    ]


def test_every_template_is_judged(folder):
    path = folder / "relations/P36.templates.jsonl"
    rewrite(path, 2, {"template": "The capital city is {object}.", "held_out": "no"})
    rewrite(path, 8, {"template": "{object} is where the king of {subject} lives."})
    rewrite(path, 9, {"template": "{subject} has {object}.", "form": "masked"})
    right = "write exactly one {subject} and one {object}"
    assert found(folder) == [
        f"relations/P36.templates.jsonl:2: template 'The capital city is {{object}}.' holds no {{subject}}; {right}",
        "relations/P36.templates.jsonl:2: held_out is 'no'; write true or false",
        'relations/P36.templates.jsonl:9: form is "masked", and only punctuation follows {object}; write "causal"',
        "relations/P36.templates.jsonl:8: {object} stands before {subject} in '{object} is where the king of "
        "{subject} lives.'; put the subject first",
    ]


def test_templates_that_compete_are_a_problem_told_once(folder, caplog):
    """A reader only warns of them. That they compete with subjects filled in too goes without saying."""
    path = folder / "relations/P36.templates.jsonl"
    rewrite(path, 8, templates([("The capital of {subject} is the city of {object}.", False)])[0])
    rewrite(path, 9, templates([("The capital of {subject} {object}.", False)])[0])
    compete = (
        "compete: where one asks for the object, the other may go on; reword one so that neither text up to {object} "
        "begins the other"
    )
    first, eighth, ninth = (f"'The capital of {{subject}}{end}'" for end in (" is", " is the city of", ""))
    assert found(folder) == [
        f"relations/P36.templates.jsonl:8: {eighth} and {first} (line 1) {compete}",
        f"relations/P36.templates.jsonl:9: {ninth} and {first} (line 1) {compete}",
        f"relations/P36.templates.jsonl:9: {ninth} and {eighth} (line 8) {compete}",
    ]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("kept", "problems"),
    [
        ([0, 1, 2, 4, 5], ["5 templates; write at least 6", "no masked template; write some in which words follow"]),
        ([6], ["1 templates; write", "no causal template; write some that end in {object}", "0 templates with"]),
        ([0, 1, 2, 3, 4, 6], ['1 templates with "held_out": true; mark exactly 2']),
    ],
)
def test_numbers_of_templates(folder, kept, problems):
    shutil.rmtree(folder / "minimal_pairs")
    path = folder / "relations/P36.templates.jsonl"
    lines(path, templates([TEMPLATES[index] for index in kept]))
    told = [line for line in found(folder) if line.startswith("relations/P36.templates.jsonl: ")]
    assert len(told) == len(problems)
    for line, problem in zip(told, problems, strict=True):
        assert problem in line


def test_a_relation_without_templates(folder):
    (folder / "relations/P36.templates.jsonl").unlink()
    assert found(folder)[0] == ("relations/P36.templates.jsonl: no such file; write the templates of P36.jsonl into it")
    (folder / "relations/P36.templates.jsonl").write_text("")
    assert "relations/P36.templates.jsonl: the file is empty; expected one JSON object per line" in found(folder)


@pytest.mark.parametrize("word", ["New York", "Bogotá", "Saint-Denis", "R2", "N'Djamena"])
def test_objects_are_one_word(folder, word):
    for name, pair in (("P36", ("Peru", word)), ("P1376", (word, "Peru"))):
        path = folder / f"relations/{name}.jsonl"
        rewrite(path, 4, {"subject": pair[0], "object": pair[1]})
    assert found(folder) == [
        f"relations/P36.jsonl:4: object {word!r} is not one word of the letters A to Z; respell or remove it"
    ]


def test_held_out_templates_hold_known_words(folder):
    path = folder / "relations/P36.templates.jsonl"
    rewrite(path, 6, templates([("Inside {subject}'s walls, the capital is {object}.", True)])[0])
    assert found(folder) == [
        "relations/P36.templates.jsonl:6: 'Inside', \"'s\", 'walls' of a held-out template stands in no training "
        "template; use known words"
    ]
    path = folder / "relations/P1376.templates.jsonl"  # in another relation will do
    rewrite(path, 7, templates([("Inside {subject}'s {object} are walls.", False)])[0])
    assert found(folder) == []


def test_questions_of_different_relations_do_not_compete(folder):
    """Only where their subjects meet: the question is the filled one."""
    path = folder / "relations/P1376.templates.jsonl"
    rewrite(path, 4, templates([("In {subject}, the king {object}.", False)])[0])
    assert found(folder) == []
    for name, pair in (("P36", ("Paris", "Texas")), ("P1376", ("Texas", "Paris"))):  # Paris, a subject of both
        rewrite(folder / f"relations/{name}.jsonl", 4, {"subject": pair[0], "object": pair[1]})
    here, there = "relations/P36.templates.jsonl:3", "relations/P1376.templates.jsonl:4"
    assert found(folder) == [
        f"{here}: asks 'In Paris, the king lives in', which begins with 'In Paris, the king' of {there}; reword one"
    ]


def test_subjects_that_begin_each_other_do_not_compete_by_letters(folder):
    for name, turn in (("P36", 1), ("P1376", -1)):
        pairs = [("Niger", "Niamey"), ("Nigeria", "Abuja")]
        for number, pair in enumerate(pairs, start=4):
            rewrite(folder / f"relations/{name}.jsonl", number, facts([pair[::turn]])[0])
    assert found(folder) == []


def test_relations_json(folder):
    path = folder / "relations/relations.json"
    about = {"P36": {"name": " ", "inverse": "P9"}}
    path.write_text(json.dumps(about, indent=1))
    assert found(folder) == [
        'relations/relations.json: P1376 is missing; write "P1376": {"name": …, "description": …, "inverse": …}',
        "relations/relations.json:2: P36 has no 'name'; give it as a text",
        "relations/relations.json:2: P36 has no 'description'; give it as a text",
        "relations/relations.json:2: the inverse of P36 is 'P9', no relation of this file; name one, or write null",
    ]
    path.write_text('{"P36":\n 3')
    assert [line for line in found(folder) if line.startswith("relations/relations.json:2: not JSON")]
    path.write_text("[]")
    assert [line for line in found(folder) if line.startswith("relations/relations.json: expected {")]


def test_inverse_relations_hold_the_inverse_facts(folder):
    rewrite(folder / "relations/P36.jsonl", 2, {"subject": "Spain", "object": "Toledo"})
    problem = "lacks its inverse; add"
    there, back = folder / "relations/P36.jsonl", folder / "relations/P1376.jsonl"
    assert check_data(folder) == [
        Problem(f"{back}:2", f"'Madrid → Spain' {problem} 'Spain → Madrid' to {there}"),
        Problem(f"{there}:2", f"'Spain → Toledo' {problem} 'Toledo → Spain' to {back}"),
    ]
    path = folder / "relations/relations.json"
    path.write_text(path.read_text().replace('"inverse": "P36"', '"inverse": null'))
    assert found(folder)[0] == "relations/relations.json:7: P1376 is the inverse of P36; give it the inverse 'P36' too"
    assert len(found(folder)) == 2


# -- minimal pairs ------------------------------------------------------------------------------------------------

VERB = one_prefix(*PAIRS[0])
NOUN = two_prefix("He saw", "this", "these", "dog", "singular")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**VERB, "sentence_bad": VERB["sentence_good"]}, "sentence_good and sentence_bad are the same: 'The dog near"),
        ({**VERB, "sentence_bad": "The dog near a house run."}, "must differ in exactly one word"),
        ({**VERB, "sentence_bad": "The dog near the house runs!"}, "must differ in exactly one word"),
        ({**VERB, "cue": "house"}, "cue_span [4, 7] holds 'dog', and cue is 'house'; make them the same"),
        ({**VERB, "cue_span": [4, 8]}, "cue_span [4, 8] holds 'dog ', and cue is 'dog'; make them the same"),
        ({**VERB, "cue_span": None}, "cue_span is None; expected [start, end] characters of sentence_good"),
        ({**VERB, "cue_span": [True, 7]}, "cue_span is [True, 7]; expected [start, end]"),
        ({**VERB, "cue_span": [4, 99]}, "cue_span is [4, 99]; expected [start, end]"),
        (
            one_prefix("The dog of the dog", "runs", "run", ".", "dog", "singular"),
            "the cue 'dog' stands 2 times in 'The dog of the dog runs.' as a word; it must stand there once",
        ),
        ({**VERB, "cue": "do", "cue_span": [4, 6]}, "the cue 'do' stands 0 times in"),
        ({**VERB, "cue": "runs", "cue_span": [23, 27]}, "the cue 'runs' is the word asked for; give the word that"),
        (
            {**one_prefix("The dog", "runs", "run", " near the house.", "dog", "singular"), **{"cue": "house"}}
            | {"cue_span": [22, 27]},
            "the cue 'house' stands behind 'runs'; one_prefix_method wants it before (or use two_prefix_method)",
        ),
        ({**VERB, "number": "dual"}, 'number is \'dual\'; write "singular" or "plural"'),
        ({name: value for name, value in VERB.items() if name != "number"}, "number is None; write"),
        (
            {**VERB, "one_prefix_word_bad": "ran"},
            "sentence_bad is 'The dog near the house run.'; it must begin with one_prefix_prefix and "
            "one_prefix_word_bad, 'The dog near the house' and 'ran'",
        ),
        (
            {**NOUN, "two_prefix_prefix_good": "He saw"},
            "sentence_good is 'He saw this dog.'; it must begin with two_prefix_prefix_good and two_prefix_word, "
            "'He saw' and 'dog'",
        ),
        ({**NOUN, "two_prefix_word": ""}, "two_prefix_word missing beside the others of ['two_prefix_prefix_good',"),
        ({"sentence_good": "It is."}, "field 'sentence_bad' is missing"),
    ],
)
def test_mistakes_in_pairs(folder, row, problem):
    rewrite(folder / "minimal_pairs/verbs.jsonl", 3, row)
    told = [line for line in found(folder) if "is that of line" not in line]
    assert len(told) == 1
    assert told[0].startswith("minimal_pairs/verbs.jsonl:3: ")
    assert problem in told[0]


def test_sentences_are_distinct(folder):
    path = folder / "minimal_pairs/verbs.jsonl"
    rewrite(path, 3, VERB)
    rewrite(path, 4, {**VERB, "number": "dual"})
    assert found(folder) == [
        "minimal_pairs/verbs.jsonl:3: sentence_good is that of line 1 already; remove one",
        'minimal_pairs/verbs.jsonl:4: number is \'dual\'; write "singular" or "plural"',
        "minimal_pairs/verbs.jsonl:4: sentence_good is that of line 1 already; remove one",
    ]


def test_pairs_of_others_need_no_cue_and_no_number(folder):
    """BLiMP's own fields are enough; whole sentences may differ in any way."""
    bare = {name: VERB[name] for name in ("sentence_good", "sentence_bad", "one_prefix_method")}
    sentences = {"sentence_good": "The dog runs.", "sentence_bad": "Runs dog the."}
    copied = {name: NOUN[name] for name in ("sentence_good", "sentence_bad", "two_prefix_method")}
    lines(folder / "minimal_pairs/verbs.jsonl", [bare, sentences, {**copied, "UID": "determiner_noun_agreement_2"}])
    assert found(folder) == []


# -- synonyms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", ":1: not JSON"),
        ('["physics"]', ': expected {"physics": "physicist", …}, one word of the letters A to Z each'),
        ('{"physics": 3}', ": expected {"),
        ('{"physics": "man of physics"}', ": expected {"),
        (
            '{\n"physics": "physicist",\n"physics": "scientist"}',
            ":2: the field 'physics' is paired with 'physicist', 'scientist'; pair each word once",
        ),
        (
            '{\n\n"physics": "scientist",\n"botany": "scientist"}',
            ":3: the occupation 'scientist' is paired with 'physics', 'botany'; pair each word once",
        ),
    ],
)
def test_mistakes_in_synonyms(folder, text, problem):
    (folder / "synonyms.json").write_text(text)
    (told,) = found(folder)
    assert told.startswith(f"synonyms.json{problem}")


def test_occupations_are_those_of_the_fields(folder):
    fields = [("Marie Curie", "physics"), ("Carl Linnaeus", "botany"), ("Ada Lovelace", "computing"), ("A B", "botany")]
    occupations = [
        ("Marie Curie", "physicist"),
        ("Carl Linnaeus", "physicist"),
        ("Ada Lovelace", "programmer"),
        ("C D", "poet"),
    ]
    people(folder, fields, occupations)
    here, there = folder / "relations/P101.jsonl", folder / "relations/P106.jsonl"
    assert check_data(folder) == [
        Problem(f"{here}:4", f"'A B' is missing in {there}; add the same person there"),
        Problem(f"{there}:4", f"'C D' is missing in {here}; add the same person there"),
        Problem(
            f"{there}:2",
            f"'Carl Linnaeus' has the occupation 'physicist'; by {here}:2 and synonyms.json it is 'botanist'",
        ),
        Problem(f"{here}:3", "the field 'computing' is missing in synonyms.json; add its occupation"),
    ]


# -- command ------------------------------------------------------------------------------------------------------


def run(*arguments):
    command = [sys.executable, "-m", "kn_lens.prompts.check", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout.splitlines(), ran.stderr.splitlines()


def test_the_command_counts_or_complains(folder):
    assert run(folder) == (
        0,
        [
            "P1376        3 facts, 6 causal and 1 masked templates, 2 held out",
            "P36          3 facts, 6 causal and 1 masked templates, 2 held out",
            "determiners  2 pairs",
            "verbs        2 pairs",
            "synonyms     2 pairs of words",
        ],
        [],
    )
    rewrite(folder / "relations/P36.jsonl", 4, "{")
    rewrite(folder / "minimal_pairs/verbs.jsonl", 3, "[]")
    code, out, errors = run(folder)
    assert (code, errors) == (2, [])
    assert [line.rpartition("/")[2].partition(": ")[0] for line in out] == ["P36.jsonl:4", "verbs.jsonl:3"]
    code, out, errors = run(folder / "nothing")
    assert (code, out) == (2, [])
    assert errors == [f"{folder / 'nothing'}: no relations/*.jsonl, minimal_pairs/*.jsonl or synonyms.json to check"]
