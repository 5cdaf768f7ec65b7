"""What can be set about a server: where it listens, what it accepts, and how long a queue may grow.

Every limit is on by default. A server without limits works until the day it does not.
"""

from pydantic import Field

from puna.core.config import Config


class ServeConfig(Config):
    """Settings of `puna serve`."""

    host: str = "127.0.0.1"
    """Address to listen on. The default can be reached from this machine only."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes any free one."""

    api_key: str | None = Field(default=None, min_length=1)
    """When set, everything but /health needs it: `Authorization: Bearer KEY`, or as the password a browser asks for."""

    max_running: int = Field(default=16, ge=1)
    """Answers written at the same time."""

    max_waiting: int = Field(default=64, ge=0)
    """Answers that may wait; beyond it the server says 429 and when to come back."""

    max_body_bytes: int = Field(default=2 * 2**20, ge=1024)
    """Largest request body."""

    max_choices: int = Field(default=8, ge=1)
    """Largest `n` of a request."""

    max_stop_texts: int = Field(default=64, ge=1)
    """Most stop texts of a request. OpenAI allows 4; evaluation harnesses send more."""

    max_tokens: int = Field(default=1024, ge=1)
    """New tokens when the request does not say."""

    temperature: float = Field(default=0.6, ge=0.0, le=2.0)
    """Temperature when the request does not say (0.6 is in Llama 3's generation_config.json)."""

    top_p: float = Field(default=0.9, ge=0.0, le=1.0)
    """Nucleus when the request does not say (0.9 is in Llama 3's generation_config.json)."""

    ping_seconds: float = Field(default=15.0, gt=0)
    """A comment is sent this often into a silent stream, so that proxies keep it open."""

    drain_seconds: int = Field(default=30, ge=0)
    """After SIGTERM, how long running answers may still take."""

    guard_every_characters: int = Field(default=200, ge=1)
    """With a guard: a streamed answer is shown in portions of this many characters, each checked before."""
