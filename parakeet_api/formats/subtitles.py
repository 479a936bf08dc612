"""Convert segments to subtitle cues, and render them as SRT and WebVTT.

Long segments are split, short pieces merged or lengthened, then lines broken. All times are whole
milliseconds, the resolution of both formats, so that rounding breaks no property of a cue.
"""

from __future__ import annotations

import html
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from parakeet_api.settings import Settings
from parakeet_api.transcript import Segment

PUNCTUATION_COST = 0.2
"""Cost of splitting after a comma, relative to splitting inside a phrase.

Not 0, so that a sentence is not split at every comma.
"""

CLAUSE_PAUSE_MS = 500
"""A pause this long inside a sentence is as good a place to split as a comma."""

SPARSE_FILL = 0.2
"""A part with less than this share of a cue's limits is an orphan: too brief to read."""

_CLAUSE_END = re.compile(
    r"[,;:!?\u2013\u2014\u2026\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]"
    r"""["'\u2019\u201d\u00bb)\]]*$"""
)
"""Punctuation, Western and East Asian, then perhaps closing quotes and brackets."""

_SRT_ARROW = re.compile(r"-[- ]*>")
"""Texts that an SRT parser may take for the arrow of a timing line; some accept `- ->`."""


@dataclass(frozen=True, slots=True)
class Cue:
    """Text that is shown together."""

    start: float
    """Seconds, whole milliseconds."""
    end: float
    """Seconds, whole milliseconds; always after `start`."""
    lines: tuple[str, ...]
    """At least one; none is blank or holds a line break."""
    speaker: str | None = None
    """Who says it, where that is known."""


class _Word(NamedTuple):
    text: str
    """Never blank; a run of white space is one space."""
    start: int
    """Milliseconds."""
    end: int
    """Milliseconds."""
    speaker: str | None = None


_Piece = list[_Word]
"""The words of one cue; at least one, all of one speaker."""


def make_cues(segments: Iterable[Segment], *, settings: Settings) -> list[Cue]:
    """Convert segments to cues.

    Every word appears exactly once and in order, never cut; a word longer than the limits gets its
    own cue, and a word of white space only is omitted. A cue has one speaker. Cues start in order,
    overlap only where two speakers talk at once, and always end after they start. For the gap of
    `subtitle_min_gap_s` between them, a cue may end before its last word does, but loses at most
    half of the time until the next cue.
    """
    pieces = [piece for segment in segments if (piece := _readable_words(segment))]
    if settings.split_long_subtitles:
        pieces = [part for piece in pieces for part in _split(piece, settings)]
    if settings.merge_short_subtitles:
        pieces = _merge_short(pieces, settings)
    # Pieces of two speakers who talk at once overlap.
    pieces.sort(key=lambda piece: piece[0].start)
    return [
        Cue(start / 1000, end / 1000, _break_lines(piece, settings), piece[0].speaker)
        for piece, (start, end) in zip(pieces, _times(pieces, settings), strict=True)
    ]


def _readable_words(segment: Segment) -> _Piece:
    return [
        _Word(text, _ms(word.start), _ms(word.end), word.speaker)
        for word in segment.words
        if (text := " ".join(word.text.split()))
    ]


def _split(piece: _Piece, settings: Settings) -> list[_Piece]:
    """Split at word times into parts that fit, with the lowest total cost."""
    if _fits(piece, settings):
        return [piece]
    firsts = _cheapest_firsts(piece, settings)
    parts: list[_Piece] = []
    end = len(piece)
    while end:
        parts.append(piece[firsts[end] : end])
        end = firsts[end]
    return parts[::-1]


def _cheapest_firsts(piece: _Piece, settings: Settings) -> list[int]:
    """Find, for each n, where the last part of the cheapest split of the first n words begins.

    Dynamic programming like Knuth and Plass's line breaking: the cheapest split of n words is a
    last part after the cheapest split of the words before it.
    """
    split_costs = [0.0, *(_split_cost(before, after) for before, after in pairwise(piece))]
    best = [(0.0, 0)]
    for end in range(1, len(piece) + 1):
        best.append(
            min(
                (best[first][0] + split_costs[first] + part_cost, first)
                for first, part_cost in _last_parts(piece, end, settings)
            )
        )
    return [first for _, first in best]


def _split_cost(before: _Word, after: _Word) -> float:
    # A period does not count: a segment is a sentence, so a period inside it belongs to an
    # abbreviation ("Dr. Smith").
    if _CLAUSE_END.search(before.text):
        return PUNCTUATION_COST
    pause = min(max(after.start - before.end, 0), CLAUSE_PAUSE_MS)
    return 1 - (1 - PUNCTUATION_COST) * pause / CLAUSE_PAUSE_MS


def _last_parts(piece: _Piece, end: int, settings: Settings) -> Iterator[tuple[int, float]]:
    """Yield the possible starts of a part that ends before word `end`, each with the part's cost.

    The cost is 1 for the part, to have few parts; plus its squared fill, to have even ones; plus 1
    if it is an orphan.
    """
    chars = -1
    for first in range(end - 1, -1, -1):
        chars += 1 + len(piece[first].text)
        fill = _fill(chars, piece[end - 1].end - piece[first].start, settings)
        if fill > 1 and first < end - 1:
            return
        yield first, 1 + fill**2 + (fill < SPARSE_FILL)


def _merge_short(pieces: Iterable[_Piece], settings: Settings) -> list[_Piece]:
    """Append pieces to the previous one if either is short and both fit into one cue."""
    merged: list[_Piece] = []
    for piece in pieces:
        if merged and _should_merge(merged[-1], piece, settings):
            merged[-1] = merged[-1] + piece
        else:
            merged.append(piece)
    return merged


def _should_merge(left: _Piece, right: _Piece, settings: Settings) -> bool:
    return (
        left[0].speaker == right[0].speaker
        and right[0].start - left[-1].end <= _ms(settings.short_subtitle_merge_max_gap_s)
        and (_is_short(left, settings) or _is_short(right, settings))
        and _fits(left + right, settings)
    )


def _is_short(piece: _Piece, settings: Settings) -> bool:
    return (
        _duration(piece) < _ms(settings.min_subtitle_duration_s)
        or _chars(piece) < settings.short_subtitle_min_chars
    )


def _fits(piece: _Piece, settings: Settings) -> bool:
    return _fill(_chars(piece), _duration(piece), settings) <= 1


def _fill(chars: int, duration_ms: int, settings: Settings) -> float:
    """Return the used share of a cue's limits, in characters or in time, whichever is larger."""
    return max(
        chars / settings.max_subtitle_chars, duration_ms / _ms(settings.max_subtitle_duration_s)
    )


def _chars(piece: _Piece) -> int:
    return sum(1 + len(word.text) for word in piece) - 1


def _duration(piece: _Piece) -> int:
    return piece[-1].end - piece[0].start


def _times(pieces: list[_Piece], settings: Settings) -> Iterator[tuple[int, int]]:
    """Yield each cue's start and end, in milliseconds."""
    min_duration = (
        max(1, _ms(settings.min_subtitle_duration_s)) if settings.merge_short_subtitles else 1
    )
    gap = _ms(settings.subtitle_min_gap_s)
    # Words may share a start; cues may not.
    starts = list(
        accumulate((piece[0].start for piece in pieces), lambda last, start: max(start, last + 1))
    )
    next_starts = [*starts, None][1:]
    own_next_starts = _own_next_starts(pieces, starts)
    for piece, start, next_start, own_next_start in zip(
        pieces, starts, next_starts, own_next_starts, strict=True
    ):
        end = max(piece[-1].end, start + min_duration)
        if next_start is not None:
            # The gap may cut the end of the last word: 60 ms is less than a frame of the model.
            before_next = next_start - min(gap, (next_start - start) // 2)
            is_interrupted = own_next_start != next_start and piece[-1].end > next_start
            end = piece[-1].end if is_interrupted else min(end, before_next)
        if own_next_start is not None:
            end = min(end, own_next_start - min(gap, (own_next_start - start) // 2))
        yield start, end


def _own_next_starts(pieces: list[_Piece], starts: list[int]) -> list[int | None]:
    """Return the start of the same speaker's next cue, for each cue; `None` = it is the last."""
    found: list[int | None] = []
    upcoming: dict[str | None, int] = {}
    for piece, start in zip(reversed(pieces), reversed(starts), strict=True):
        found.append(upcoming.get(piece[0].speaker))
        upcoming[piece[0].speaker] = start
    return found[::-1]


def _break_lines(piece: _Piece, settings: Settings) -> tuple[str, ...]:
    """Break text into as few lines as the preferred length allows, of lengths as even as possible.

    If that needs more than `max_subtitle_lines`, lines get longer.
    """
    texts = [word.text for word in piece]
    count = min(len(_lines(texts, settings.preferred_line_length)), settings.max_subtitle_lines)
    narrowest = bisect_left(
        range(_chars(piece)), True, key=lambda width: len(_lines(texts, width)) <= count
    )
    return tuple(_lines(texts, narrowest))


def _lines(texts: list[str], width: int) -> list[str]:
    """Fill lines of `width` characters; a longer word gets its own line."""
    lines: list[list[str]] = []
    room = 0
    for text in texts:
        if lines and len(text) < room:
            lines[-1].append(text)
            room -= 1 + len(text)
        else:
            lines.append([text])
            room = width - len(text)
    return [" ".join(line) for line in lines]


def to_srt(cues: Iterable[Cue]) -> str:
    """Render cues as SubRip; without cues, an empty file.

    A change of speaker is marked by the name and a colon. SRT cannot escape its timing arrow:
    `-->` in a text becomes `→`.
    """
    blocks = []
    before: str | None = None
    for number, cue in enumerate(cues, start=1):
        name = f"{cue.speaker}: " if cue.speaker not in (None, before) else ""
        before = cue.speaker
        blocks.append(
            f"{number}\n{_timestamp(cue.start, ',')} --> {_timestamp(cue.end, ',')}\n"
            f"{_SRT_ARROW.sub('→', name + _joined(cue))}\n\n"
        )
    return "".join(blocks)


def to_vtt(cues: Iterable[Cue]) -> str:
    """Render cues as WebVTT; without cues, a header only. Speakers are voice tags."""
    return "WEBVTT\n\n" + "".join(
        f"{_timestamp(cue.start, '.')} --> {_timestamp(cue.end, '.')}\n"
        f"{_voice(cue)}{html.escape(_joined(cue), quote=False)}\n\n"
        for cue in cues
    )


def _voice(cue: Cue) -> str:
    return f"<v {html.escape(cue.speaker, quote=False)}>" if cue.speaker else ""


def _joined(cue: Cue) -> str:
    return "\n".join(cue.lines)


def _timestamp(seconds: float, mark: str) -> str:
    minutes, ms = divmod(_ms(seconds), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}{mark}{ms % 1000:03}"


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
