from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from conftest import PATIENCE_S, ROOT
from hypothesis import example, given
from hypothesis import strategies as st
from language_samples import SENTENCES, UTTERANCES

from parakeet_api.languages import ENGLISH_NAMES
from parakeet_api.speech import language_detection
from parakeet_api.speech.language_detection import CONFIDENCE_FLOOR, detect_language, rank_languages

ALL = frozenset(ENGLISH_NAMES)
ANY_TEXT = st.text() | st.text(st.characters(categories=["L", "M", "Cs"]))


def detect(text: str) -> str | None:
    return detect_language(text, candidates=ALL)


def test_there_are_samples_of_all_languages() -> None:
    assert set(SENTENCES) == set(UTTERANCES) == ALL


@pytest.mark.parametrize("code", SENTENCES)
def test_a_paragraph_is_recognised(code: str) -> None:
    assert detect(" ".join(SENTENCES[code])) == code


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_likeliest_in_its_own_language(code: str) -> None:
    tops = [rank_languages(sentence, candidates=ALL)[0].code for sentence in SENTENCES[code]]

    assert tops == [code] * len(tops)


@pytest.mark.parametrize("write", [str, str.upper, str.lower])
def test_no_answer_is_wrong_and_most_sentences_have_one(write: type[str]) -> None:
    sentences = [(code, detect(write(text))) for code in SENTENCES for text in SENTENCES[code]]
    utterances = [(code, detect(write(text))) for code in UTTERANCES for text in UTTERANCES[code]]

    assert wrong(sentences + utterances) == []
    assert sum(detected is not None for _, detected in sentences) >= 93
    assert sum(detected is not None for _, detected in utterances) >= 52


def wrong(answers: list[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    return [(code, detected) for code, detected in answers if detected not in (code, None)]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Set a timer for ten minutes.", "en"),
        ("Għandek raġun, niltaqgħu għada.", "mt"),
        ("Okay.", None),
        ("Dobro jutro!", None),
        ("Хорошо.", None),
    ],
)
def test_a_short_text_is_recognised_or_undecided(text: str, language: str | None) -> None:
    assert detect(text) == language


@pytest.mark.parametrize(
    "text", ["", " \n", "...", "2024", "10, 9, 8, 7", "🎉🎉", "- 5 %", "A", "Hm"]
)
@pytest.mark.parametrize("candidates", [ALL, frozenset({"en", "de"}), frozenset({"cs", "sk"})])
def test_a_text_without_evidence_yields_no_language(text: str, candidates: frozenset[str]) -> None:
    assert detect_language(text, candidates=candidates) is None


def test_only_candidates_are_returned() -> None:
    german = SENTENCES["de"][0]

    assert detect_language(german, candidates=frozenset({"de", "fr"})) == "de"
    assert detect_language(german, candidates=frozenset({"fr", "nl"})) in {"fr", "nl", None}
    assert detect_language(german, candidates=frozenset()) is None
    assert detect_language(german, candidates=frozenset({"zz", "nb"})) is None


@pytest.mark.parametrize("text", ["", "5", "Bonjour !"])
def test_a_single_candidate_is_the_answer(text: str) -> None:
    assert detect_language(text, candidates=frozenset({"en"})) == "en"
    assert detect_language(text, candidates=frozenset({"xx"})) == "xx"


def test_a_close_language_outside_the_candidates_does_not_hide_the_one_inside() -> None:
    norwegian = "Jeg synes at vi bør snakke om dette litt senere, ikke sant? " * 200

    assert detect(norwegian) == "da"


def test_a_candidate_that_the_detector_does_not_know_is_not_taken_for_another() -> None:
    maori = "Kei te haere mātou ki te moana āpōpō i runga i te tereina."

    assert detect_language(maori, candidates=frozenset({"en", "mi"})) is None
    detected = detect_language(" ".join(SENTENCES["en"]), candidates=frozenset({"en", "mi"}))
    assert detected == "en"


def test_a_ranking_is_a_probability_distribution() -> None:
    ranked = rank_languages(SENTENCES["sl"][0], candidates=ALL)

    assert {detection.code for detection in ranked} == ALL
    assert sum(detection.confidence for detection in ranked) == pytest.approx(1, abs=1e-3)
    confidences = [detection.confidence for detection in ranked]
    assert confidences == sorted(confidences, reverse=True)


def test_a_long_text_is_recognised_by_all_of_its_parts() -> None:
    greeting = " ".join(SENTENCES["en"]) * 10
    talk = " ".join(SENTENCES["pl"]) * 1000

    assert detect(f"{greeting} {talk}") == "pl"


def test_of_a_long_text_only_a_part_is_read() -> None:
    assert language_detection._sample("a" * 6000) == "a" * 6000
    sample = language_detection._sample("a" * 50_000 + "b" * 50_000 + "c" * 50_000)

    assert sample.split() == ["a" * 2000, "b" * 2000, "c" * 2000]


@given(ANY_TEXT)
@example("\ud800")
@example("\x00")
@example("a" * 100_000)
def test_any_text_is_in_a_candidate_language_or_undecided(text: str) -> None:
    assert detect(text) in ALL | {None}


@given(ANY_TEXT, st.frozensets(st.sampled_from([*sorted(ALL), "ja", "nb", "xx"]), max_size=5))
def test_any_candidates_are_ranked(text: str, candidates: frozenset[str]) -> None:
    ranked = rank_languages(text, candidates=candidates)

    assert {detection.code for detection in ranked} <= candidates
    assert all(0 <= detection.confidence <= 1.001 for detection in ranked)
    if detect_language(text, candidates=candidates) is not None:
        assert ranked[0].confidence >= CONFIDENCE_FLOOR


def test_concurrent_first_calls_load_once_and_agree() -> None:
    language_detection._unrestricted.cache_clear()
    language_detection._restricted.cache_clear()
    start = Barrier(8)

    def first(code: str) -> str | None:
        start.wait(PATIENCE_S)
        return detect(" ".join(SENTENCES[code]))

    codes = sorted(ALL)[:8]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(first, codes)) == codes
    assert language_detection._unrestricted.cache_info().misses == 1
    assert language_detection._restricted.cache_info().misses == 1


def test_a_model_of_one_language_loads_no_detector() -> None:
    program = (
        "import sys\n"
        "from parakeet_api.speech.language_detection import detect_language\n"
        "assert detect_language('Hello.', candidates=frozenset({'en'})) == 'en'\n"
        "assert 'py3langid' not in sys.modules\n"
    )

    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=PATIENCE_S)
