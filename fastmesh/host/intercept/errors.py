"""What can go wrong with interception."""

from __future__ import annotations


class InterceptError(Exception):
    """Traffic cannot be taken over, or left alone again; the text says why, and what to do about it."""
