"""Speech-to-text server around NVIDIA's Parakeet-TDT, with OpenAI's API."""

__version__ = "0.1.0"
