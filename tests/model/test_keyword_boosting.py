"""Keywords in the decoder, with the real model class, the small English model and real speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, REAL_SPEECH, decode, demo_options, whole

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.errors import InvalidRequestError, ModelNotReadyError, SettingsError
from parakeet_api.keywords import Keyword, parse_keywords
from parakeet_api.model.batching import halve
from parakeet_api.model.keyword_trees import _KEPT, KeywordTrees, read_keywords_file
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Word

ABSENT = [f"Zarq{first}{second}ovich" for first in "aeiou" for second in "bdfglmnprstvz"]


@pytest.fixture(scope="module")
def english() -> NemoRecognizer:
    return NemoRecognizer.load(ENGLISH_MODEL, demo_options())


@pytest.fixture(scope="module")
def trees() -> KeywordTrees:
    return KeywordTrees(lambda: ENGLISH_MODEL)


@pytest.fixture(scope="module")
def rusks(decoder: FfmpegDecoder) -> Chunk:
    """Return "Illustration, rusks.", which the model recognises as "rusts"."""
    return whole(decode(decoder, REAL_SPEECH / "librispeech_dev_clean_mp3-0062.ogg"))


@pytest.fixture(scope="module")
def others(decoder: FfmpegDecoder) -> list[Chunk]:
    names = ("misc-0098", "misc-0099", "misc-0101", "librispeech_dev_clean_mp3-0063")
    return [whole(decode(decoder, REAL_SPEECH / f"{name}.ogg")) for name in names]


def with_keywords(chunk: Chunk, trees: KeywordTrees, *phrases: str) -> Chunk:
    return replace(chunk, keywords=trees.tree([Keyword(phrase) for phrase in phrases]))


def text_of(words: Sequence[Word]) -> str:
    return " ".join(f"{word.text}*" if word.from_keyword else word.text for word in words)


def test_a_keyword_is_recognised_and_marked(
    english: NemoRecognizer, trees: KeywordTrees, rusks: Chunk
) -> None:
    asked = [rusks, with_keywords(rusks, trees, "Rusks"), with_keywords(rusks, trees, *ABSENT)]

    plain, boosted, unhelped = [text_of(words) for words in english.recognize(asked)]

    assert plain == unhelped == "Illustration, rusts."
    assert boosted.lower() == "illustration, rusks.*"


def test_a_batch_of_different_lists_has_the_same_results_as_each_alone(
    english: NemoRecognizer, trees: KeywordTrees, rusks: Chunk, others: list[Chunk]
) -> None:
    """Some rows have no list."""
    batch = [
        with_keywords(chunk, trees, "Rusks", ABSENT[number]) if number % 3 else chunk
        for number, chunk in enumerate([rusks, *others] * 6)
    ]

    together = english.recognize(batch)

    assert len(batch) == 30
    alone = {id(chunk): english.recognize([chunk])[0] for chunk in batch[:10]}
    for chunk, words in zip(batch[:10], together, strict=False):
        assert text_of(words) == text_of(alone[id(chunk)])
    assert any(word.from_keyword for words in together for word in words)


def test_a_batch_without_keywords_is_not_boosted(
    english: NemoRecognizer, rusks: Chunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from parakeet_api.model import recognizer

    monkeypatch.setattr(recognizer, "KeywordBoosts", None)
    english.recognize([rusks])

    computer = english._decoder.nemo.decoding.decoding_computer
    assert not computer.has_fusion_models()


def test_beam_search_supports_keywords(trees: KeywordTrees, rusks: Chunk) -> None:
    beam = NemoRecognizer.load(ENGLISH_MODEL, demo_options(strategy="beam", beam_size=4))
    heard = [rusks, with_keywords(rusks, trees, "Rusks")]

    plain, boosted = [text_of(words).lower() for words in beam.recognize(heard)]

    assert "rusks" not in plain
    assert "rusks" in boosted


def test_parts_of_a_chunk_keep_its_keywords(trees: KeywordTrees) -> None:
    chunk = with_keywords(whole(np.ones(20 * SAMPLE_RATE, np.int16)), trees, "Rusks")

    parts = [*halve(chunk), chunk.part(5 * SAMPLE_RATE, 7 * SAMPLE_RATE)]

    assert all(part.keywords is chunk.keywords for part in parts)


def test_a_tree_is_built_once_and_the_oldest_is_evicted(trees: KeywordTrees) -> None:
    one = trees.tree([Keyword("first")])

    assert trees.tree([Keyword("first")]) is one
    for number in range(_KEPT):
        trees.tree([Keyword(f"name {number}")])
    assert trees.tree([Keyword("first")]) is not one


def test_without_phrases_there_is_no_tree_and_no_checkpoint_is_needed() -> None:
    def missing() -> Path:
        raise ModelNotReadyError("not yet")

    assert KeywordTrees(missing).tree() is None


def test_a_phrase_that_the_model_cannot_spell_is_named(trees: KeywordTrees) -> None:
    with pytest.raises(
        InvalidRequestError, match="'\u0394\u03b5\u03bb\u03c6\u03bf\u03af'"
    ) as caught:
        trees.tree([Keyword("Delphi"), Keyword("\u0394\u03b5\u03bb\u03c6\u03bf\u03af")])

    assert caught.value.param == "keywords[]"
    assert trees.tree([Keyword("Bob & Sons")]) is not None


def test_a_file_has_one_phrase_per_line(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("# ours\nKaliko:2\n\n  Rusks \n", encoding="utf-8-sig")

    assert read_keywords_file(file, name="KEYWORDS_FILE") == parse_keywords(
        ["Kaliko:2", "Rusks"], param="keywords[]"
    )


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"a<b"])
def test_an_unusable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(SettingsError, match="KEYWORDS_FILE="):
        read_keywords_file(file, name="KEYWORDS_FILE")


def test_a_phrase_of_the_keywords_file_that_the_model_cannot_spell_is_skipped_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    always = [Keyword("Rusks"), Keyword("\u0394\u03b5\u03bb\u03c6\u03bf\u03af")]

    tree = KeywordTrees(lambda: ENGLISH_MODEL, always=always).tree()

    assert tree is not None
    assert "KEYWORDS_FILE" in caplog.text
