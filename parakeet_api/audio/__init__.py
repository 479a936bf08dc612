"""Decode any recording to 16 kHz mono PCM, with warnings about audio that is missing.

Entry point: `decoder.FfmpegDecoder.stream`, which yields blocks of int16 samples.

- `recording_decoding` chooses tracks and joins a file's parts, `track_decoding` decodes one track
  of one part by a `decoding_plan`, `decode_report` collects warnings.
- `ffmpeg` runs the process, `ffmpeg_log` parses its log and `media_info` the description of the
  input in it; `pieces` runs several processes for one long mp3 or wav file, `denoising` runs the
  operator's filter.
- `timeline` aligns samples with timestamps; `downmix` and `levels` convert them to mono and 16
  bits; `channels` keeps channels apart that hold different speech.
- `media_files` inspects a file's structure: `joined_files`, `declared_sizes`, `wav_files`,
  `ogg_files` (`ogg_pages`, `opus_positions`), `mp3_files` (`mp3_frames`), `flash_video` and
  `transport_streams` know the formats, `file_parts` is the result, `mapped_files` searches.
  `file_endings` tells whether a file's end is complete.
- `sound_files` reads plain wav and flac files without ffmpeg.

Imports `errors`, `settings` and `transcript`; does not import torch.
"""
