"""rankwise spends parameters, memory, compute and examples where the rank is.

Importing this package is cheap: nothing heavy is loaded. Once `peft` is imported, before or after, rankwise's PEFT
methods are registered with it, so that ``PeftModel.from_pretrained`` reads adapters made here.
"""

from __future__ import annotations

from importlib.metadata import version

from rankwise import peft_hook

__version__ = version("rankwise")
__all__ = ["__version__"]

peft_hook.install()
