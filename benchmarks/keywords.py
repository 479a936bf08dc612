"""Measure the accuracy of names and terms with keywords, and the cost of a list.

    make keywords                              the recordings of samples/real-speech
    .venv/bin/python -m benchmarks.keywords --recordings FOLDER --names FILE

FOLDER contains recordings and `recordings.json`; FILE lists the names and terms of some of the
recordings. Each of these recordings is recognised three times: without keywords, with its own
names among 100, and with 200 that it does not contain. Words are compared as in
`benchmarks.accuracy`. The cost of a list is the ratio of alternating passes with and without it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jiwer

from benchmarks.accuracy import ENGLISH_MODEL, REAL_SPEECH, Recording, load, plain, read_recordings
from parakeet_api.keywords import Keyword, bare
from parakeet_api.model.keyword_trees import KeywordTrees
from parakeet_api.model.recognizer import Recognizer
from parakeet_api.transcript import Chunk, Word

NAMES = REAL_SPEECH / "names.json"
LISTED, ABSENT, LONGEST = 100, 200, 500
"""Phrases in a list with the spoken ones, in a list without them, and in the longest list."""
_ROUNDS = 5
_TIMED = 12
"""Recordings on which speed is measured."""


@dataclass(frozen=True, eq=False)
class Case:
    """A recording with the names and terms that it contains."""

    recording: Recording
    names: frozenset[str]

    @property
    def spoken(self) -> list[str]:
        """Return the reference words."""
        return [bare(word) for word in plain(self.recording.text).split()]


@dataclass(frozen=True)
class Score:
    """Counts of names and of all other words."""

    said: int
    found: int
    """Out of the spoken ones."""
    taken: int
    """Words inserted by keywords."""
    right: int
    """Of these."""
    other_words: int
    """Reference words that are not names."""
    other_errors: int

    @property
    def rest_percent(self) -> float:
        """Return the word error rate without the names."""
        return 100 * self.other_errors / max(1, self.other_words)


def read_cases(folder: Path, names: Path) -> list[Case]:
    """Read the recordings that have names."""
    listed: Mapping[str, list[str]] = json.loads(names.read_text(encoding="utf-8"))
    entries = json.loads((folder / "recordings.json").read_text(encoding="utf-8"))
    return [
        Case(recording, frozenset(map(bare, listed[entry["file"]])))
        for entry, recording in zip(entries, read_recordings(folder), strict=True)
        if entry["file"] in listed
    ]


def invented_names() -> Iterator[str]:
    """Yield invented names, without end."""
    syllables = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
    drawn = random.Random(0)
    while True:
        yield "".join(drawn.choice(syllables) for _ in range(drawn.randint(2, 4))).capitalize()


def lists_of(case: Case, cases: Sequence[Case]) -> tuple[list[Keyword], list[Keyword]]:
    """Return a list with a recording's names and one without; both also have others' names."""
    said = set(case.spoken)
    others = sorted({name for other in cases for name in other.names} - said)
    random.Random(case.recording.text).shuffle(others)
    strange = [*others, *itertools.islice(invented_names(), ABSENT)]
    own = sorted(case.names)

    def keywords(names: Sequence[str]) -> list[Keyword]:
        return [Keyword(name.capitalize()) for name in names]

    return keywords([*own, *strange[: LISTED - len(own)]]), keywords(strange[:ABSENT])


def score(cases: Sequence[Case], transcripts: Sequence[Sequence[Word]]) -> Score:
    """Compare transcripts with the references."""
    parts = [_score(case, words) for case, words in zip(cases, transcripts, strict=True)]
    return Score(*(sum(column) for column in zip(*parts, strict=True)))


def _score(case: Case, words: Sequence[Word]) -> tuple[int, int, int, int, int, int]:
    spoken, heard = case.spoken, [bare(word) for word in plain(_text(words)).split()]
    said, found = Counter(spoken), Counter(heard)
    taken = [bare(word.text) for word in words if word.from_keyword]
    steps = jiwer.process_words(" ".join(spoken), " ".join(heard) or "-").alignments[0]
    errors = 0
    for step in steps:
        if step.type == "insert":
            errors += step.hyp_end_idx - step.hyp_start_idx
        elif step.type != "equal":
            lost = spoken[step.ref_start_idx : step.ref_end_idx]
            errors += sum(word not in case.names for word in lost)
    return (
        sum(said[name] for name in case.names),
        sum(min(said[name], found[name]) for name in case.names),
        len(taken),
        sum(found[name] <= said[name] for name in taken),
        sum(word not in case.names for word in spoken),
        errors,
    )


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def chunk_of(case: Case) -> Chunk:
    """Return a whole recording as one chunk."""
    samples = case.recording.samples
    return Chunk(0, 0, samples, 0, len(samples))


def transcribe(
    recognizer: Recognizer, cases: Sequence[Case], trees: KeywordTrees
) -> Iterator[tuple[list[Word], list[Word], list[Word]]]:
    """Return each recording's words without keywords, with its own, and with only others'."""
    for case in cases:
        chunk = chunk_of(case)
        with_own, without = (trees.tree(keywords) for keywords in lists_of(case, cases))
        heard = [chunk, replace(chunk, keywords=with_own), replace(chunk, keywords=without)]
        plain_words, own_words, other_words = recognizer.recognize(heard)
        yield plain_words, own_words, other_words


def price(recognizer: Recognizer, cases: Sequence[Case], trees: KeywordTrees) -> float:
    """Return the median ratio of the time with a list of 100 and without one."""
    chunks = [chunk_of(case) for case in cases[:_TIMED]]
    tree = trees.tree(lists_of(cases[0], cases)[0])
    asked = [replace(chunk, keywords=tree) for chunk in chunks]
    ratios = []
    for _ in range(_ROUNDS):
        for without, with_list in zip(chunks, asked, strict=True):
            spent = [_spent(recognizer, chunk) for chunk in (without, with_list)]
            ratios.append(spent[1] / spent[0])
    return statistics.median(ratios)


def _spent(recognizer: Recognizer, chunk: Chunk) -> float:
    started = time.process_time()
    recognizer.recognize([chunk])
    return time.process_time() - started


def build_ms(trees: KeywordTrees) -> tuple[float, float]:
    """Return the milliseconds to build the longest list, first uncached, then cached."""
    keywords = [Keyword(name) for name in itertools.islice(invented_names(), LONGEST)]

    def once() -> float:
        started = time.process_time()
        trees.tree(keywords)
        return 1000 * (time.process_time() - started)

    trees.tree(keywords[:1])
    return once(), once()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ENGLISH_MODEL)
    parser.add_argument("--recordings", type=Path, default=REAL_SPEECH)
    parser.add_argument("--names", type=Path, default=NAMES)
    options = parser.parse_args()
    cases = read_cases(options.recordings, options.names)
    recognizer = load(options.model, longest_s=60)
    trees = KeywordTrees(lambda: options.model)
    columns = list(zip(*transcribe(recognizer, cases, trees), strict=True))
    names = ("no keywords", f"its own among {LISTED}", f"{ABSENT} that are not said")
    print(f"{len(cases)} recordings\n{'keywords':24} {'names':>9} {'taken':>7} {'rest: WER %':>14}")
    for name, transcripts in zip(names, columns, strict=True):
        found = score(cases, transcripts)
        print(
            f"{name:24} {found.found:>4}/{found.said:<4} {found.right:>3}/{found.taken:<3}"
            f" {found.rest_percent:>8.2f} of {found.other_words}"
        )
    print(f"time with a list of {LISTED}: {price(recognizer, cases, trees):.2f} of that without")
    print("building a list of {}: {:.0f} ms, again {:.2f} ms".format(LONGEST, *build_ms(trees)))


if __name__ == "__main__":
    main()
