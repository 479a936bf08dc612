"""A named language keeps a multilingual model to its script: real model class, random weights."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Clip, decode, demo_options, whole
from family_models import CTC, Kind, write_checkpoint

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.recognizer import NemoRecognizer, _RowDecoding
from parakeet_api.model.restore import import_libraries
from parakeet_api.model.scripts import _LATIN_PENALTY, _PENALTY, ScriptRules
from parakeet_api.transcript import Chunk, Word

TEXTS = [" the", "s", " день", "ы", "ї", " λ", "9", ".", " 東", "ß", "µ"]


@pytest.fixture(scope="module")
def sounds(clips: list[Clip], decoder: FfmpegDecoder) -> list[Chunk]:
    return [whole(decode(decoder, clip.path)) for clip in clips[:3]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, sounds: list[Chunk]) -> Path:
    """Write a small v3, some of whose pieces are Cyrillic and Greek."""
    import_libraries()
    folder, name = tmp_path_factory.mktemp("v3"), "parakeet-tdt-0.6b-v3"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_checkpoint(folder, name, sounds[0].samples.astype(np.float32) / np.float32(32768))
    return folder / f"{name}.nemo"


@pytest.fixture(scope="module")
def multilingual(checkpoint: Path) -> NemoRecognizer:
    return NemoRecognizer.load(checkpoint, demo_options())


def scripts(words: Sequence[Word]) -> set[str]:
    text = "".join(word.text for word in words)
    return {unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()}


def spoken(words: Sequence[Word]) -> list[tuple[str, float, float]]:
    return [(word.text, word.start, word.end) for word in words]


@pytest.mark.parametrize(
    ("language", "foreign", "latin"),
    [
        ("en", {" день", "ы", "ї", " λ", " 東"}, set()),
        ("ru", {"ї", " λ", " 東"}, {" the", "s", "ß"}),
        ("uk", {"ы", " λ", " 東"}, {" the", "s", "ß"}),
        ("el", {" день", "ы", "ї", " 東"}, {" the", "s", "ß"}),
        ("ja", {" день", "ы", "ї", " λ"}, {" the", "s", "ß"}),
    ],
)
def test_letters_of_other_scripts_are_penalised(
    language: str, foreign: set[str], latin: set[str]
) -> None:
    penalties = ScriptRules(TEXTS).penalties(language)

    assert penalties is not None
    for text, penalty in zip(TEXTS, penalties, strict=True):
        expected = _PENALTY if text in foreign else _LATIN_PENALTY if text in latin else 0
        assert penalty == expected, text


@pytest.mark.parametrize("language", [None, "sw"])
def test_without_a_known_language_there_are_no_penalties(language: str | None) -> None:
    assert ScriptRules(TEXTS).penalties(language) is None


def test_a_model_of_one_script_has_no_penalties() -> None:
    assert ScriptRules([" the", "s", "9", "."]).penalties("ru") is None


def test_a_named_language_is_written_in_its_script(
    multilingual: NemoRecognizer, sounds: list[Chunk]
) -> None:
    free = multilingual.recognize(sounds)
    named = multilingual.recognize([replace(chunk, language="de") for chunk in sounds])

    assert set().union(*map(scripts, free)) > {"LATIN"}
    assert set().union(*map(scripts, named)) == {"LATIN"}
    greek = multilingual.recognize([replace(chunk, language="el") for chunk in sounds])
    assert "CYRILLIC" not in set().union(*map(scripts, greek))


def test_a_batch_of_languages_gives_what_each_gives_alone(
    multilingual: NemoRecognizer, sounds: list[Chunk]
) -> None:
    batch = [
        replace(chunk, language=language)
        for language in ("de", None, "ru", "uk")
        for chunk in sounds
    ]

    together = multilingual.recognize(batch)

    for words, chunk in zip(together, batch, strict=True):
        assert spoken(words) == spoken(multilingual.recognize([chunk])[0])


def test_decoding_again_gives_what_penalties_from_the_start_give(
    multilingual: NemoRecognizer, sounds: list[Chunk]
) -> None:
    penalties = multilingual._scripts.penalties("de")
    encoded, lengths = multilingual._encode(sounds)
    rows = [_RowDecoding(row, penalties=penalties) for row in range(len(sounds))]

    at_once = multilingual._decoded_rows(encoded, lengths, rows)
    named = [replace(chunk, language="de") for chunk in sounds]
    again = multilingual._decoded(encoded, lengths, named)

    # Log-probabilities are rounded otherwise in a batch of other rows.
    assert [[emission[:3] for emission in row] for row in again] == [
        [emission[:3] for emission in row] for row in at_once
    ]


def test_a_row_in_the_right_script_is_decoded_once(
    multilingual: NemoRecognizer, sounds: list[Chunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multilingual._scripts, "_is_mixed", False)
    plain = multilingual.recognize(sounds)
    monkeypatch.undo()
    decoded: list[int] = []
    decode_rows = multilingual._decoder.decode

    def counted(encoded: object, lengths: Sequence[int], fusion: Sequence[object] = ()) -> object:
        decoded.append(len(lengths))
        return decode_rows(encoded, lengths, fusion)  # type: ignore[arg-type]

    monkeypatch.setattr(multilingual._decoder, "decode", counted)
    multilingual.recognize(sounds)
    assert decoded == [3]
    wrong = [row for row, words in enumerate(plain) if scripts(words) != {"LATIN"}]
    multilingual.recognize([replace(chunk, language="de") for chunk in sounds])
    assert decoded == [3, 3, *([len(wrong)] if wrong else [])]


def test_a_ctc_model_keeps_to_the_script_and_to_its_blanks(
    tmp_path: Path, sounds: list[Chunk]
) -> None:
    kind = Kind(CTC, durations=(), vocabulary=1000, words=("слово", "λέξη"))
    floats = sounds[0].samples.astype(np.float32) / np.float32(32768)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_checkpoint(tmp_path, "ctc", floats, kind)
    ctc = NemoRecognizer.load(tmp_path / "ctc.nemo", demo_options())

    free = ctc.recognize(sounds)
    mixed = ctc.recognize([replace(sounds[0], language="de"), sounds[1]])

    assert set().union(*map(scripts, free)) > {"LATIN"}
    assert scripts(free[0]) != {"LATIN"}
    assert scripts(mixed[0]) == {"LATIN"}
    assert spoken(mixed[1]) == spoken(free[1])
    first = [word.start for word in free[0]]
    assert {word.start for word in mixed[0]} >= {first[0]}
    assert all(t.logprob is not None and t.logprob <= 0 for w in mixed[0] for t in w.tokens)
    ctc.close()


def test_a_beam_keeps_to_the_script(checkpoint: Path, sounds: list[Chunk]) -> None:
    beam = NemoRecognizer.load(checkpoint, demo_options(strategy="beam", beam_size=4))

    [free] = beam.recognize(sounds[:1])
    [named] = beam.recognize([replace(sounds[0], language="de")])

    assert scripts(free) != {"LATIN"}
    assert scripts(named) == {"LATIN"}
    beam.close()
