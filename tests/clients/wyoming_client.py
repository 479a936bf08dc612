"""Ask a Wyoming server as Home Assistant does: wyoming_client.py PORT FILE."""

from __future__ import annotations

import asyncio
import sys
import wave

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient

_WIDTH = 2
"""Bytes in a sample."""


async def transcribe(port: int, path: str) -> str:
    """Send a mono recording; return its transcript."""
    with wave.open(path) as recording:
        rate = recording.getframerate()
        samples = recording.readframes(recording.getnframes())
    async with AsyncTcpClient("127.0.0.1", port) as client:
        await client.write_event(Transcribe(language="en").event())
        await client.write_event(AudioStart(rate, _WIDTH, 1).event())
        await client.write_event(AudioChunk(rate, _WIDTH, 1, samples).event())
        await client.write_event(AudioStop().event())
        while event := await client.read_event():
            if Transcript.is_type(event.type):
                return str(Transcript.from_event(event).text)
    raise RuntimeError("the connection was closed before a transcript came")


if __name__ == "__main__":
    print(asyncio.run(transcribe(int(sys.argv[1]), sys.argv[2])))
