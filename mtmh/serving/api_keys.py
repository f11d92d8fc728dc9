"""Keys that allow a client to write."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence

from mtmh.config import ServiceConfig

API_KEYS = "MTMH_API_KEYS"  # environment: keys, separated by commas


def read_api_keys(settings: ServiceConfig) -> list[bytes]:
    """Digests of the keys of the environment and of the file of keys; empty: nobody may write.

    Raises:
        ValueError: the file cannot be read or holds no key.
    """
    keys = [key.strip() for key in os.environ.get(API_KEYS, "").split(",")]
    if settings.api_keys_file is not None:
        try:
            lines = [line.strip() for line in settings.api_keys_file.read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"service.api_keys_file {settings.api_keys_file}: not readable: {error}") from None
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise ValueError(f"service.api_keys_file {settings.api_keys_file}: no key in it, expected one a line")
        keys += lines
    return [hashlib.sha256(key.encode()).digest() for key in keys if key]


def key_is_valid(key: str, digests: Sequence[bytes]) -> bool:
    """Compares with every key, in a time that tells nothing about them."""
    given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    valid = False
    for digest in digests:
        valid |= hmac.compare_digest(given, digest)
    return valid
