"""Speech-to-text server around NVIDIA's Parakeet-TDT, with OpenAI's API."""

__version__ = "1.0.0"
