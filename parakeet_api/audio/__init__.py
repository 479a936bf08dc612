"""A recording of any kind becomes 16 kHz mono PCM, with a note of what is missing.

`decoder.FfmpegDecoder.stream` is the way in: it yields blocks of int16 samples. `ffmpeg` runs the
process, `media_info` reads its log, `media_files` reads a file's own structure, `timeline` places
samples in time, `downmix` and `levels` make them mono and 16 bits; `sound_files` and `pieces` are
the fast paths for plain wav, flac and mp3. Imports `errors`, `settings` and `transcript`.
Knows no torch.
"""
