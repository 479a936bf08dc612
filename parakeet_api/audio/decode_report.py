"""What decoding has found out about a recording: its tracks, and warnings about its audio."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from parakeet_api.audio.media_info import Track
from parakeet_api.errors import TruncatedAudioError
from parakeet_api.transcript import SAMPLE_RATE, Caveat, SoundTrack

_MAX_CAVEATS = 20
"""More warnings would not help the reader."""


@dataclass(slots=True)
class DecodeReport:
    """What decoding has found out so far."""

    allow_partial: bool = False
    """Whether a truncated file is a warning instead of an error."""
    expected_s: float | None = None
    caveats: list[Caveat] = field(default_factory=list)
    tracks: list[SoundTrack] = field(default_factory=list)

    def add_caveats(self, caveats: Iterable[Caveat], offset: int) -> None:
        """Record caveats whose times count from sample `offset`."""
        shift_s = offset / SAMPLE_RATE
        for caveat in caveats:
            start, end = (
                None if at is None else round(at + shift_s, 3) for at in (caveat.start, caveat.end)
            )
            if len(self.caveats) < _MAX_CAVEATS:
                self.caveats.append(Caveat(caveat.code, caveat.message, start, end))

    def add_truncation(self, how: str, decoded_s: float) -> None:
        """Record that the file is truncated. Raises `TruncatedAudioError` unless allowed."""
        message = f"The file is cut short: {how}."
        if not self.allow_partial:
            raise TruncatedAudioError(
                f"{message} Send it again; if it is all there is, allow_partial=true transcribes"
                " what there is."
            )
        if all(caveat.code != TruncatedAudioError.code for caveat in self.caveats):
            caveat = Caveat("truncated_audio", message, start=round(decoded_s, 3))
            self.caveats.append(caveat)

    def set_tracks(self, tracks: Sequence[Track], *, used: set[int]) -> None:
        """Record the file's audio tracks, of which those numbered `used` are decoded."""
        self.tracks[:] = [track.as_sound_track(used=track.number in used) for track in tracks]
        if len(tracks) > len(used):
            numbers = ", ".join(map(str, sorted(used)))
            self.caveats.append(
                Caveat(
                    "tracks_not_used",
                    f"The file has {len(tracks)} sound tracks; track {numbers} was used."
                    " audio_track=N takes another one, audio_track=all mixes them.",
                )
            )
