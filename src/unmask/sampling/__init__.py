"""Generation: one decoding loop, by parameters. Reveal policies are those of PUMA's chain."""

from unmask.sampling.decoding import Decoding
from unmask.sampling.generation import Generation, generate

__all__ = ["Decoding", "Generation", "generate"]
