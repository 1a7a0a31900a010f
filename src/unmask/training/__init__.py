"""The training loop and what it leaves behind."""

from unmask.lazy import lazily

__all__, __getattr__, __dir__ = lazily(__name__, __file__)
