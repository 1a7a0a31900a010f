"""unmask: train masked diffusion models faster and more stably, and measure it on your own data.

The public names are listed in __init__.pyi, and each is loaded when it is first used, as the packages inside are:
`import unmask` alone loads neither torch nor transformers nor datasets.
"""

from unmask.lazy import lazily

__version__ = "0.1.0"

__all__, __getattr__, __dir__ = lazily(__name__, __file__)
