"""Form fields in, response bodies out: the field names and formats of OpenAI and others.

`request_params` checks the fields of OpenAI's API, `asr_api` those of whisper-asr-webservice;
`rendering` writes a transcript as json, text, srt, vtt and verbose_json (cues by `subtitles`), and
`server_sent_events` as a stream. Imports `transcript`, `languages`, `settings` and `pipeline`.
"""
