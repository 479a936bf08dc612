"""Decode any recording to 16 kHz mono PCM, with warnings about audio that is missing.

Entry point: `decoder.FfmpegDecoder.stream`, which yields blocks of int16 samples. `ffmpeg` runs the
process, `media_info` parses its log, `media_files` parses the file's structure (`ogg_pages`,
`flash_video` and `transport_streams` for three formats), `timeline` aligns samples with timestamps,
`downmix` and `levels` convert them to mono and 16 bits; `channels` keeps channels apart that hold
different speech. `sound_files` and `pieces` are fast paths for plain wav, flac and mp3. Imports
`errors`, `settings` and `transcript`; does not import torch.
"""
