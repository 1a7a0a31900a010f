"""The training loop and what it leaves behind."""

from unmask.lazy import homes, loader

__all__ = sorted(homes(__file__))
__getattr__ = loader(__name__, homes(__file__))
