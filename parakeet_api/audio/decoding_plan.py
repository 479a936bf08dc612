"""How ffmpeg is to decode a track: which options it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from parakeet_api.audio.ffmpeg import DEMUXERS
from parakeet_api.audio.ffmpeg_log import CLOCK
from parakeet_api.audio.pieces import Piece
from parakeet_api.audio.timeline import MARK
from parakeet_api.transcript import SAMPLE_RATE

Mix = Literal["stereo", "surround", "discrete"]

_LAYOUTS: dict[Mix, str] = {
    "stereo": ":channel_layouts=mono|stereo",
    "surround": ":channel_layouts=stereo",
    "discrete": "",
}
"""How ffmpeg outputs channels: one or two unchanged, a surround layout downmixed by the standard
coefficients, channels without a speaker layout unchanged. The downmix is to stereo: its mean is the
downmix to mono, in which pairs in antiphase would be lost unnoticed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How ffmpeg is to decode a track."""

    track: int
    mix: Mix = "stereo"
    as_float: bool = False
    """Whether samples are output as floats instead of 16 bits."""
    marked: bool = False
    """Whether to insert a mark at the start of each filter graph; it slows decoding by a fifth."""
    pieces: tuple[Piece, ...] = ()
    """Pieces to decode in parallel; none = one ffmpeg decodes everything."""

    def options(self, piece: Piece) -> list[str]:
        """Return ffmpeg's options for one piece."""
        source = piece.source
        samples = "f32le" if self.as_float else "s16le"
        demuxers, format_options = DEMUXERS, list(piece.options)
        if piece.demuxer is not None:
            demuxers, format_options = piece.demuxer, ["-f", piece.demuxer, *piece.options]
        # fmt: off
        return [
            "-loglevel", "repeat+info", "-copyts",
            "-protocol_whitelist", source.protocols, "-format_whitelist", demuxers,
            "-guess_layout_max", "2", "-threads", "1", *format_options, "-i", source.url,
            "-map", f"0:a:{self.track - 1}", "-vn", "-sn", "-dn",
            "-af", piece.filters() + self._filters(),
            # Keep a downmix within full scale, as for 16-bit samples.
            "-rematrix_maxval", "1",
            # The log would describe all tags and chapters again, as the output's.
            "-map_metadata", "-1", "-map_chapters", "-1",
            # Waking the reader for every frame would cost more than decoding it.
            "-flush_packets", "0", "-c:a", f"pcm_{samples}", "-f", samples, "pipe:1",
        ]
        # fmt: on

    def _filters(self) -> str:
        # With marks, ffmpeg 5 cannot choose between two layouts.
        is_stereo = self.marked and self.mix == "stereo"
        layouts = ":channel_layouts=stereo" if is_stereo else _LAYOUTS[self.mix]
        if not self.as_float:
            return f"{CLOCK},aformat=sample_fmts=s16:sample_rates={SAMPLE_RATE}{layouts}"
        # Resample 16-bit audio as 16-bit, even if the output is float.
        formats = f"aformat=sample_fmts=s16|flt:sample_rates={SAMPLE_RATE}{layouts}"
        # Layouts again: some decoders give frames without one, and ffmpeg could not choose.
        sound = f"{CLOCK},{formats},aresample,aformat=sample_fmts=flt{layouts}"
        if not self.marked:
            return sound
        mark = f"atrim=end_sample=1,aeval={MARK:.0f}:c=same"
        return (
            f"{sound},asplit[first][sound];[first]{mark}[mark];[mark][sound]concat=v=0:a=1"
            ",asetpts=NAN"
        )
