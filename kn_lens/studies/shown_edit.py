"""An edit shown whole: what the model answered before and after it, as tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.criteria.questions import Question
from kn_lens.criteria.scores import Answered
from kn_lens.editing.rank_one import RankOneEdit
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Dropped
from kn_lens.scoring import target_distribution
from kn_lens.studies.saved import (
    dropped_fields,
    dropped_of,
    read_fields,
    read_table,
    reading,
    write_fields,
    write_tables,
    writing,
)

if TYPE_CHECKING:
    import pandas as pd

PROMPT, PARAPHRASE = "prompt", "paraphrase"
INVERSE_NEW, INVERSE_OLD = "inverse, new answer", "inverse, old answer"
"""Kinds of question."""

_TOP = 5
_TABLES = ("questions", "answers", "written")

Top = list[list[tuple[str, float]]]
"""For each question the most probable first tokens of its answer, with their probabilities."""


@dataclass(frozen=True, kw_only=True)
class ShownEdit:
    """An edit, and the model before and after it.

    Attributes:
        edit: The edit; the model is left without it.
        seconds: That it took to make.
        own_old: Whether the old answer is the model's own word, not one that was given.
        questions: One row per question: ``kind`` (prompt, paraphrase, inverse about the new or the old answer),
            ``question``, ``answer`` that it is about, and, ``_before`` and ``_after``: ``p`` (geometric mean over the
            answer's tokens) and ``given`` (each of its tokens is the most probable one).
        answers: One row per question, state and rank: the most probable first tokens.
        written: What the model writes: ``text``, ``before``, ``after``.
        inverse: Where the inverse questions are from: ``"P1376"``, ``"given"``, or None where there are none.
        dropped: Questions that the model cannot be asked.
    """

    edit: RankOneEdit
    seconds: float
    own_old: bool
    questions: pd.DataFrame
    answers: pd.DataFrame
    written: pd.DataFrame
    inverse: str | None
    dropped: tuple[Dropped, ...]

    def save(self, folder: Path) -> Path:
        """Write the edit, its tables and the rest.

        Raises:
            OutputError: If they cannot be written.
        """
        with writing(folder):
            fields = {"seconds": self.seconds, "own_old": self.own_old, "inverse": self.inverse}
            write_fields(folder, {**fields, "dropped": dropped_fields(self.dropped)})
            write_tables(folder, {name: getattr(self, name) for name in _TABLES})
            self.edit.save(folder / "edit")
        return folder

    @classmethod
    def load(cls, folder: Path) -> ShownEdit:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds no edit that was shown.
        """
        with reading(folder, "edit"):
            fields = read_fields(folder)
            return cls(
                edit=RankOneEdit.load(folder / "edit"),
                seconds=fields["seconds"],
                own_old=fields["own_old"],
                inverse=fields["inverse"],
                dropped=dropped_of(fields["dropped"]),
                **{name: read_table(folder, name) for name in _TABLES},
            )

    @property
    def fact(self) -> Fact:
        """What was to be said."""
        assert self.edit.fact is not None
        return self.edit.fact

    def texts_frame(self) -> pd.DataFrame:
        """What the model writes before and after, each text on one line."""
        import pandas as pd

        rows = self.written[["before", "after"]].to_numpy().tolist()
        return pd.DataFrame([[" ".join(text.split()) for text in row] for row in rows], columns=["before", "after"])

    def edit_frame(self) -> pd.DataFrame:
        """One row: what was edited, how much, and the loss of the search."""
        import pandas as pd

        edit = self.edit
        row = {"edit": self.fact.name, "layer": edit.layer, "matrix": edit.parameter, "norm": edit.norm}
        row |= {"steps": len(edit.losses), "first loss": float(edit.losses[0]), "last loss": float(edit.losses[-1])}
        row |= {"at": str(edit.settings["position"]).replace("_", " "), "covariance": edit.settings["covariance"]}
        return pd.DataFrame([row | {"seconds": self.seconds}])

    def answers_frame(self, *kinds: str) -> pd.DataFrame:
        """What a terminal shows of the questions of some kinds: the most probable words before and after."""
        import pandas as pd

        rows: list[dict[str, Any]] = self.questions.to_dict("records")  # type: ignore[assignment]
        return pd.DataFrame(
            [
                {
                    "question": row["question"],
                    "before": self._top(row["question"], "before"),
                    "after": self._top(row["question"], "after"),
                    "p of": row["answer"],
                    "p before": row["p_before"],
                    "p after": row["p_after"],
                }
                for row in rows
                if row["kind"] in kinds
            ],
            columns=["question", "before", "after", "p of", "p before", "p after"],
        )

    def findings(self) -> list[str]:
        """Sentences computed from the numbers."""
        fact = self.fact
        asked: Any = self.questions
        (first,) = asked[asked["kind"] == PROMPT].to_dict("records")
        top = {when: self._top(first["question"], when).split("\n")[0] for when in ("before", "after")}
        said = [
            f"“{fact.question}”: the most probable word goes from {top['before']} to {top['after']}, and "
            f"p({fact.target}) from {first['p_before']:.2g} to {first['p_after']:.2g}"
            f"{'' if first['given_after'] else ': the new answer is not given'}."
        ]
        for kind, about in ((PARAPHRASE, "Other wordings"), (INVERSE_NEW, fact.target), (INVERSE_OLD, fact.old)):
            rows = asked[asked["kind"] == kind]
            if not len(rows):
                continue
            where = about if kind == PARAPHRASE else f"The inverse question about {about}"
            counts = [f"{int(rows[f'given_{when}'].sum())} of {len(rows)}" for when in ("after", "before")]
            said.append(f"{where}: {rows['answer'].iloc[0]} is given in {counts[0]} (before the edit in {counts[1]}).")
        return said

    def _top(self, question: str, when: str) -> str:
        rows: Any = self.answers
        rows = rows[(rows["question"] == question) & (rows["when"] == when)].drop_duplicates("rank")
        return "\n".join(f"{row.answer} {100 * row.probability:.1f} %" for row in rows.itertuples())


def top_answers(model: Any, questions: Sequence[Question]) -> Top:
    """The most probable first tokens of each question's answer."""
    batch = PromptBatch.from_prompts(model, [question.prompt for question in questions], targets="any")
    values, tokens = target_distribution(model, batch).float().topk(_TOP)
    return [
        [(batch.decode(token), value) for token, value in zip(row, shares, strict=True)]
        for row, shares in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def questions_frame(questions: Sequence[tuple[str, Question]], before: Answered, after: Answered) -> pd.DataFrame:
    """The ``questions`` of a :class:`ShownEdit`."""
    import pandas as pd

    rows = []
    for at, (kind, question) in enumerate(questions):
        row = {"kind": kind, "question": question.prompt.text, "answer": question.prompt.target}
        for when, answered in (("before", before), ("after", after)):
            row |= {f"p_{when}": float(answered.target[at].exp()), f"given_{when}": bool(answered.exact[at])}
        rows.append(row)
    return pd.DataFrame(rows)


def answers_frame(questions: Sequence[Question], top: Mapping[str, Top]) -> pd.DataFrame:
    """The ``answers`` of a :class:`ShownEdit`."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"question": question.prompt.text, "when": when, "rank": rank, "answer": word, "probability": value}
            for at, question in enumerate(questions)
            for when, found in top.items()
            for rank, (word, value) in enumerate(found[at], start=1)
        ]
    )
