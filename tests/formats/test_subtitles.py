from __future__ import annotations

import html
import textwrap
import time
from dataclasses import replace
from io import StringIO
from itertools import islice, pairwise

import pytest
import srt  # type: ignore[import-untyped]
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.formats.subtitles import Cue, make_cues, to_srt, to_vtt
from parakeet_api.settings import Settings
from parakeet_api.transcript import Segment, Word, join_words

DEFAULTS = Settings()
UNTOUCHED = replace(DEFAULTS, merge_short_subtitles=False, split_long_subtitles=False)

HOSTILE = [
    "-->", "--->", "->", "-", ">", "<i>", "</b>", "&amp;", "&", "a\nb", "a\r\n\r\nb", "\n\n", "",
    "\u2028", "00:00:01,000", "00:00:01.000", "NOTE", "STYLE", "WEBVTT", "{\\an8}", "\ufeff",
]  # fmt: skip

hostile_texts = st.sampled_from(HOSTILE) | st.text(max_size=12)
common_texts = st.sampled_from(["a", "so,", "Yes.", "wonderful", "incomprehensibilities", "x" * 90])
awkward_steps = st.sampled_from([0.0, 0.0004, 0.001, 0.05, 0.08, 0.3, 1.0, 7.0])
configurations = st.builds(
    replace,
    st.just(DEFAULTS),
    merge_short_subtitles=st.booleans(),
    split_long_subtitles=st.booleans(),
    min_subtitle_duration_s=st.sampled_from([0.0, 0.5, 1.5]),
    short_subtitle_merge_max_gap_s=st.sampled_from([0.0, 0.3, 5.0]),
    short_subtitle_min_chars=st.sampled_from([0, 6, 30]),
    subtitle_min_gap_s=st.sampled_from([0.0, 0.06, 2.0]),
    max_subtitle_duration_s=st.sampled_from([2.0, 6.0]),
    max_subtitle_chars=st.sampled_from([1, 20, 84]),
    preferred_line_length=st.sampled_from([1, 12, 42]),
    max_subtitle_lines=st.sampled_from([1, 2, 3]),
)


@st.composite
def recordings(
    draw: st.DrawFn, texts: st.SearchStrategy[str], steps: st.SearchStrategy[float]
) -> list[Segment]:
    """Draw consecutive segments; `steps` are the lengths of pauses and words in seconds."""
    segments: list[Segment] = []
    now = 0.0
    for words_in in draw(
        st.lists(st.lists(st.tuples(texts, steps, steps), min_size=1), max_size=6)
    ):
        words: list[Word] = []
        for text, pause, length in words_in:
            words.append(Word(text, round(now + pause, 4), round(now + pause + length, 4)))
            now = words[-1].end
        segments.append(Segment(tuple(words)))
    return segments


hostile_recordings = recordings(hostile_texts | common_texts, awkward_steps)
ordinary_recordings = recordings(common_texts, st.sampled_from([0.04, 0.08, 0.24, 0.64, 1.2]))


def segment(*timed: tuple[str, float, float]) -> Segment:
    return Segment(tuple(Word(*word) for word in timed))


def steady(text: str, *, start: float = 0.0, word_s: float = 0.25) -> Segment:
    """Make a segment of a text without pauses."""
    return segment(
        *(
            (word, start + at * word_s, start + (at + 1) * word_s)
            for at, word in enumerate(text.split())
        )
    )


def text_of(cue: Cue) -> str:
    return " ".join(cue.lines)


def texts_of(cues: list[Cue]) -> list[str]:
    return [text_of(cue) for cue in cues]


def words_of(segments: list[Segment]) -> list[str]:
    """List the visible words."""
    return [part for segment in segments for word in segment.words for part in word.text.split()]


def words_by_cue(cues: list[Cue], segments: list[Segment]) -> list[list[Word]]:
    """Return each cue the words it shows; for words without white space."""
    words = (word for segment in segments for word in segment.words)
    groups = [list(islice(words, len(text_of(cue).split()))) for cue in cues]
    assert [join_words(group) for group in groups] == texts_of(cues)
    return groups


def times_of(cues: list[Cue]) -> list[tuple[float, float]]:
    return [(cue.start, cue.end) for cue in cues]


@given(hostile_recordings, configurations)
def test_every_word_appears_once_and_in_order(segments: list[Segment], settings: Settings) -> None:
    cues = make_cues(segments, settings=settings)

    assert [word for cue in cues for word in text_of(cue).split()] == words_of(segments)


@given(hostile_recordings, configurations)
def test_cues_are_in_order_and_never_overlap(segments: list[Segment], settings: Settings) -> None:
    cues = make_cues(segments, settings=settings)

    assert all(cue.start < cue.end for cue in cues)
    assert all(before.end <= after.start for before, after in pairwise(cues))


@given(hostile_recordings, configurations)
def test_a_gap_lies_between_cues_unless_it_takes_half_of_their_time(
    segments: list[Segment], settings: Settings
) -> None:
    for before, after in pairwise(make_cues(segments, settings=settings)):
        room_ms = round((after.start - before.start) * 1000)
        gap_ms = round((after.start - before.end) * 1000)
        assert gap_ms >= min(settings.subtitle_min_gap_s * 1000, room_ms // 2)


@given(hostile_recordings, configurations)
def test_lines_are_never_more_than_allowed_and_never_blank(
    segments: list[Segment], settings: Settings
) -> None:
    for cue in make_cues(segments, settings=settings):
        assert 1 <= len(cue.lines) <= settings.max_subtitle_lines
        assert all(line.split() and len(line.splitlines()) == 1 for line in cue.lines)
        if len(text_of(cue)) <= settings.preferred_line_length:
            assert len(cue.lines) == 1


@given(ordinary_recordings, configurations)
def test_lines_exceed_the_preferred_length_only_where_it_would_take_more_than_are_allowed(
    segments: list[Segment], settings: Settings
) -> None:
    width = settings.preferred_line_length
    for cue in make_cues(segments, settings=settings):
        if any(" " in line and len(line) > width for line in cue.lines):
            preferred = textwrap.wrap(
                text_of(cue), width, break_long_words=False, break_on_hyphens=False
            )
            assert len(preferred) > settings.max_subtitle_lines


@given(ordinary_recordings, configurations)
def test_only_a_single_word_is_longer_than_a_cue_may_be(
    segments: list[Segment], settings: Settings
) -> None:
    settings = replace(settings, split_long_subtitles=True)
    for words in words_by_cue(make_cues(segments, settings=settings), segments):
        if len(words) > 1:
            assert len(join_words(words)) <= settings.max_subtitle_chars
            assert round(words[-1].end - words[0].start, 4) <= settings.max_subtitle_duration_s


@given(ordinary_recordings, configurations)
def test_no_short_cue_is_left_beside_one_it_may_join(
    segments: list[Segment], settings: Settings
) -> None:
    settings = replace(settings, merge_short_subtitles=True)
    cues = make_cues(segments, settings=settings)

    def length_s(words: list[Word]) -> float:
        return round(words[-1].end - words[0].start, 4)

    def is_short(words: list[Word]) -> bool:
        return (
            length_s(words) < settings.min_subtitle_duration_s
            or len(join_words(words)) < settings.short_subtitle_min_chars
        )

    for left, right in pairwise(words_by_cue(cues, segments)):
        if is_short(left) or is_short(right):
            assert (
                round(right[0].start - left[-1].end, 4) > settings.short_subtitle_merge_max_gap_s
                or len(join_words(left + right)) > settings.max_subtitle_chars
                or length_s(left + right) > settings.max_subtitle_duration_s
            )


@given(ordinary_recordings, configurations)
def test_a_cue_starts_with_its_first_word_and_covers_its_last_except_for_the_gap(
    segments: list[Segment], settings: Settings
) -> None:
    cues = make_cues(segments, settings=settings)

    for cue, words in zip(cues, words_by_cue(cues, segments), strict=True):
        assert cue.start == words[0].start
        assert cue.end >= words[-1].end - settings.subtitle_min_gap_s - 1e-6


@given(ordinary_recordings, configurations)
def test_without_merging_or_splitting_each_segment_is_a_cue(
    segments: list[Segment], settings: Settings
) -> None:
    settings = replace(settings, merge_short_subtitles=False, split_long_subtitles=False)
    cues = make_cues(segments, settings=settings)

    assert texts_of(cues) == [segment.text for segment in segments]
    assert all(cue.end <= segment.end for cue, segment in zip(cues, segments, strict=True))


@given(hostile_recordings, configurations)
def test_srt_reads_back_as_the_same_cues(segments: list[Segment], settings: Settings) -> None:
    cues = make_cues(segments, settings=settings)
    read = list(srt.parse(to_srt(cues)))

    assert [caption.index for caption in read] == list(range(1, len(cues) + 1))
    assert [
        (caption.start.total_seconds(), caption.end.total_seconds()) for caption in read
    ] == times_of(cues)
    for caption, cue in zip(read, cues, strict=True):
        if ">" not in text_of(cue):
            assert caption.content == "\n".join(cue.lines)


@given(hostile_recordings, configurations)
def test_vtt_reads_back_as_the_same_cues(segments: list[Segment], settings: Settings) -> None:
    cues = make_cues(segments, settings=settings)
    read = webvtt.from_buffer(StringIO(to_vtt(cues))).captions

    assert [(caption.start_in_seconds, caption.end_in_seconds) for caption in read] == [
        (int(start), int(end)) for start, end in times_of(cues)
    ]
    assert [html.unescape(caption.raw_text) for caption in read] == [
        "\n".join(cue.lines) for cue in cues
    ]


def test_no_segments_make_empty_files() -> None:
    cues = make_cues([], settings=DEFAULTS)

    assert cues == []
    assert to_srt(cues) == ""
    assert to_vtt(cues) == "WEBVTT\n\n"
    assert len(webvtt.from_buffer(StringIO(to_vtt(cues)))) == 0


def test_a_segment_without_visible_text_makes_no_cue() -> None:
    assert make_cues([segment((" ", 0.0, 1.0), ("", 1.0, 2.0))], settings=DEFAULTS) == []


def test_srt_is_written_as_players_expect_it() -> None:
    cues = [Cue(5.123, 61.0, ("Hello", "there.")), Cue(3600.5, 3601.0, ("Bye.",))]

    assert to_srt(cues) == (
        "1\n00:00:05,123 --> 00:01:01,000\nHello\nthere.\n\n"
        "2\n01:00:00,500 --> 01:00:01,000\nBye.\n\n"
    )


def test_vtt_is_written_as_browsers_expect_it() -> None:
    cues = [Cue(5.123, 61.0, ("AT&T <said>", "--> no.")), Cue(3600.5, 3601.0, ("Bye.",))]

    assert to_vtt(cues) == (
        "WEBVTT\n\n"
        "00:00:05.123 --> 00:01:01.000\nAT&amp;T &lt;said&gt;\n--&gt; no.\n\n"
        "01:00:00.500 --> 01:00:01.000\nBye.\n\n"
    )


def test_more_than_99_hours_keep_their_digits() -> None:
    cues = [Cue(123 * 3600 + 5.123, 123 * 3600 + 6.0, ("Late.",))]

    assert "123:00:05,123 --> 123:00:06,000" in to_srt(cues)
    assert "123:00:05.123 --> 123:00:06.000" in to_vtt(cues)


@pytest.mark.parametrize("arrow", ["-->", "--->", "->", "- ->"])
def test_an_arrow_in_the_text_does_not_become_a_timing_line_in_srt(arrow: str) -> None:
    text = f"00:00:01,000 {arrow} 00:00:02,000"

    (caption,) = srt.parse(to_srt([Cue(0.0, 1.0, ("Look:", text))]))

    assert caption.content == "Look:\n00:00:01,000 → 00:00:02,000"


def test_a_long_sentence_splits_after_a_comma() -> None:
    segment = steady(
        "When the train had finally left the station, nobody on the platform "
        "could remember why they had come at all."
    )

    assert texts_of(make_cues([segment], settings=DEFAULTS)) == [
        "When the train had finally left the station,",
        "nobody on the platform could remember why they had come at all.",
    ]


def test_a_sentence_does_not_fall_apart_at_every_comma() -> None:
    segment = steady(", ".join(["so many words"] * 20))

    assert len(make_cues([segment], settings=DEFAULTS)) == 4


def test_a_long_sentence_without_punctuation_splits_at_its_pause() -> None:
    words = steady(" ".join(f"word{at:02}" for at in range(14))).words
    late = tuple(replace(word, start=word.start + 0.4, end=word.end + 0.4) for word in words[5:])

    cues = make_cues([Segment(words[:5] + late)], settings=DEFAULTS)

    assert [cue.start for cue in cues] == [0.0, late[0].start]


def test_a_long_sentence_without_punctuation_or_pause_splits_evenly() -> None:
    segment = steady(" ".join(f"word{at:02}" for at in range(14)))

    assert [len(text.split()) for text in texts_of(make_cues([segment], settings=DEFAULTS))] == [
        7,
        7,
    ]


def test_one_word_is_not_split_off_even_before_a_comma() -> None:
    segment = steady("Well, " + " ".join(f"word{at:02}" for at in range(12)))

    cues = make_cues([segment], settings=DEFAULTS)

    assert [len(text.split()) for text in texts_of(cues)] in ([6, 7], [7, 6])


def test_a_full_stop_of_an_abbreviation_is_no_place_to_split() -> None:
    segment = steady(
        "We would like to thank our old friend Dr. Smith "
        "for all that he has done for us over those years."
    )

    assert not any(
        text.endswith("Dr.") for text in texts_of(make_cues([segment], settings=DEFAULTS))
    )


def test_a_slow_sentence_splits_by_time() -> None:
    segment = steady("one two three four five six seven eight", word_s=1.0)

    assert texts_of(make_cues([segment], settings=DEFAULTS)) == [
        "one two three four",
        "five six seven eight",
    ]


def test_a_word_longer_than_the_limits_has_its_own_cue() -> None:
    segment = steady(f"before {'x' * 200} after")
    settings = replace(DEFAULTS, merge_short_subtitles=False)

    assert texts_of(make_cues([segment], settings=settings)) == ["before", "x" * 200, "after"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("Yes.", "I think that is right, too."), ("I think that is right, too.", "Yes.")],
)
def test_a_short_sentence_joins_its_neighbour(first: str, second: str) -> None:
    segment = steady(first)

    cues = make_cues([segment, steady(second, start=segment.end + 0.25)], settings=DEFAULTS)

    assert texts_of(cues) == [f"{first} {second}"]


def test_a_pause_keeps_short_sentences_apart() -> None:
    segments = [steady("Yes."), steady("I think that is right, too.", start=0.6)]

    assert texts_of(make_cues(segments, settings=DEFAULTS)) == [
        "Yes.",
        "I think that is right, too.",
    ]


def test_a_short_cue_lasts_longer_where_there_is_room() -> None:
    segments = [steady("Yes.", start=10.0), steady("No.", start=11.0), steady("Why?", start=20.0)]

    assert times_of(make_cues(segments, settings=DEFAULTS)) == [
        (10.0, 10.94),
        (11.0, 12.5),
        (20.0, 21.5),
    ]


def test_without_merging_no_cue_lasts_longer_than_its_words() -> None:
    cues = make_cues([steady("Yes."), steady("No.", start=5.0)], settings=UNTOUCHED)

    assert times_of(cues) == [(0.0, 0.25), (5.0, 5.25)]


def test_a_cue_ends_before_its_last_word_to_keep_the_gap() -> None:
    cues = make_cues([steady("One two."), steady("Three.", start=0.5)], settings=UNTOUCHED)

    assert times_of(cues) == [(0.0, 0.44), (0.5, 0.75)]


def test_the_gap_takes_half_of_a_very_short_cue_at_most() -> None:
    segments = [segment(("a", 0.0, 0.04)), segment(("b", 0.04, 1.0))]

    assert times_of(make_cues(segments, settings=UNTOUCHED)) == [(0.0, 0.02), (0.04, 1.0)]


def test_segments_at_the_same_moment_become_cues_one_after_the_other() -> None:
    segments = [segment((text, 1.0, 1.0)) for text in "abc"]

    assert times_of(make_cues(segments, settings=UNTOUCHED)) == [
        (1.0, 1.001),
        (1.001, 1.002),
        (1.002, 1.003),
    ]


def laid_out(**environ: str) -> list[str]:
    """Convert six sentences to cues: times and text, with `/` between lines."""
    cues = make_cues(
        [
            steady("Yes."),
            steady("I think that is right, too.", start=0.6),
            steady("One two three four five six seven eight nine ten eleven twelve", start=5.0),
            segment(("Well.", 20.0, 22.0)),
            steady("Now we shall see what comes of it.", start=22.2),
            steady("Slow, slower and slower still", start=30.0, word_s=1.4),
        ],
        settings=Settings.from_env(environ),
    )
    return [f"{cue.start:g}-{cue.end:g} {'/'.join(cue.lines)}" for cue in cues]


BY_DEFAULT = (
    (YES := "0-0.54 Yes."),
    (RIGHT := "0.6-2.1 I think that is right, too."),
    (NUMBERS := "5-8 One two three four five six seven/eight nine ten eleven twelve"),
    (WELL := "20-24.2 Well. Now we shall see what comes of it."),
    (SLOW := "30-31.34 Slow,"),
    (SLOWER := "31.4-37 slower and slower still"),
)
NUMBERS_IN_A_LINE = NUMBERS.replace("/", " ")
UNMERGED = ("20-22 Well.", "22.2-24.2 Now we shall see what comes of it.")
UNSPLIT = "30-37 Slow, slower and slower still"


@pytest.mark.parametrize(
    ("variable", "text", "instead_of", "cues"),
    [
        ("MERGE_SHORT_SUBTITLES", "no", (YES, WELL), ("0-0.25 Yes.", *UNMERGED)),
        ("MIN_SUBTITLE_DURATION_SECONDS", "0.2", (YES,), ("0-0.25 Yes.",)),
        (
            "SHORT_SUBTITLE_MERGE_MAX_GAP_SECONDS",
            "0.4",
            (YES, RIGHT),
            ("0-2.1 Yes. I think that is right, too.",),
        ),
        ("SHORT_SUBTITLE_MIN_CHARS", "5", (WELL,), UNMERGED),
        ("SUBTITLE_MIN_GAP_SECONDS", "0.2", (YES, SLOW), ("0-0.4 Yes.", "30-31.2 Slow,")),
        ("SPLIT_LONG_SUBTITLES", "no", (SLOW, SLOWER), (UNSPLIT,)),
        ("MAX_SUBTITLE_DURATION_SECONDS", "7", (SLOW, SLOWER), (UNSPLIT,)),
        (
            "MAX_SUBTITLE_CHARS_PER_SEGMENT",
            "61",
            (NUMBERS,),
            (
                "5-6.69 One two three four five six seven",
                "6.75-8.25 eight nine ten eleven twelve",
            ),
        ),
        ("PREFERRED_LINE_LENGTH", "65", (NUMBERS,), (NUMBERS_IN_A_LINE,)),
        ("MAX_SUBTITLE_LINES", "1", (NUMBERS,), (NUMBERS_IN_A_LINE,)),
    ],
)
def test_each_setting_of_cues_has_its_effect(
    variable: str, text: str, instead_of: tuple[str, ...], cues: tuple[str, ...]
) -> None:
    changed = laid_out(**{variable: text})

    assert laid_out() == list(BY_DEFAULT)
    assert tuple(cue for cue in BY_DEFAULT if cue not in changed) == instead_of
    assert tuple(cue for cue in changed if cue not in BY_DEFAULT) == cues


def test_a_long_text_breaks_into_even_lines() -> None:
    (cue,) = make_cues(
        [steady("The quick brown fox jumps over the very lazy dog.", word_s=0.2)], settings=DEFAULTS
    )

    assert cue.lines == ("The quick brown fox jumps", "over the very lazy dog.")


def test_a_line_breaks_only_beyond_the_preferred_length() -> None:
    settings = replace(DEFAULTS, preferred_line_length=11)

    (fitting,) = make_cues([steady("Hello world")], settings=settings)
    (longer,) = make_cues([steady("Hello world!")], settings=settings)

    assert (fitting.lines, longer.lines) == (("Hello world",), ("Hello", "world!"))


def test_lines_get_longer_rather_than_lose_a_word() -> None:
    settings = replace(DEFAULTS, preferred_line_length=10, max_subtitle_lines=2)

    (cue,) = make_cues([steady("The quick brown fox jumps over the lazy dog.")], settings=settings)

    assert cue.lines == ("The quick brown fox", "jumps over the lazy dog.")


@pytest.mark.parametrize("words_per_segment", [1, 10, 100_000])
def test_the_time_for_ten_hours_of_speech_is_not_quadratic(words_per_segment: int) -> None:
    hour_s = _cpu_s_of_subtitles(10_000, words_per_segment)
    ten_hours_s = _cpu_s_of_subtitles(100_000, words_per_segment)

    # Ten times as long if it is linear, a hundred times if it is quadratic.
    assert ten_hours_s < 40 * hour_s


def _cpu_s_of_subtitles(count: int, words_per_segment: int) -> float:
    spoken = steady("word " * count, word_s=0.36).words
    segments = [
        Segment(spoken[first : first + words_per_segment])
        for first in range(0, len(spoken), words_per_segment)
    ]
    began = time.process_time()
    cues = make_cues(segments, settings=DEFAULTS)
    written = to_srt(cues), to_vtt(cues)
    took_s = time.process_time() - began
    assert [text.count("word") for text in written] == [count, count]
    return took_s


def said_by(speaker: str, *segments: Segment) -> list[Segment]:
    return [
        Segment(tuple(replace(word, speaker=speaker) for word in segment.words))
        for segment in segments
    ]


class TestSpeakers:
    @given(ordinary_recordings, ordinary_recordings, configurations)
    def test_a_cue_has_one_speaker_whose_own_cues_never_overlap(
        self, left: list[Segment], right: list[Segment], settings: Settings
    ) -> None:
        both = [*said_by("A", *left), *said_by("B", *right)]
        both.sort(key=lambda segment: segment.start)
        cues = make_cues(both, settings=settings)

        assert all(cue.start < cue.end for cue in cues)
        assert [cue.start for cue in cues] == sorted(cue.start for cue in cues)
        for speaker, segments in (("A", left), ("B", right)):
            own = [cue for cue in cues if cue.speaker == speaker]
            assert [word for cue in own for word in text_of(cue).split()] == words_of(segments)
            assert all(before.end <= after.start for before, after in pairwise(own))

    def test_who_is_interrupted_stays_on_screen_to_the_end_of_the_sentence(self) -> None:
        long = steady("I would rather not say anything about it today.", word_s=0.5)
        cues = make_cues(
            [*said_by("A", long), *said_by("B", segment(("Why?", 2.0, 2.4)))], settings=DEFAULTS
        )

        assert [(cue.speaker, cue.start, cue.end) for cue in cues] == [
            ("A", 0.0, 4.5),
            ("B", 2.0, 3.5),
        ]

    def test_short_pieces_of_two_speakers_are_not_merged(self) -> None:
        cues = make_cues(
            [*said_by("A", steady("Yes.")), *said_by("B", steady("No.", start=0.3))],
            settings=DEFAULTS,
        )

        assert texts_of(cues) == ["Yes.", "No."]
        assert cues[0].end <= cues[1].start

    def test_the_formats_name_the_speaker(self) -> None:
        cues = [
            Cue(0.0, 1.0, ("Yes.",), "Ann & Co"),
            Cue(1.0, 2.0, ("Indeed.",), "Ann & Co"),
            Cue(2.0, 3.0, ("No.",), "B"),
        ]

        captions = webvtt.from_buffer(StringIO(to_vtt(cues))).captions
        assert [html.unescape(str(caption.voice)) for caption in captions] == [
            *("Ann & Co", "Ann & Co", "B")
        ]
        assert [caption.content for caption in srt.parse(to_srt(cues))] == [
            *("Ann & Co: Yes.", "Indeed.", "B: No.")
        ]
