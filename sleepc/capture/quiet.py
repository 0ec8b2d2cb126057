"""torch's logs, while it is asked whether it can follow a model: what it finds comes as an exception. And transformers'
advice to install kernels, of which a program needs none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

KERNELS = "transformers.integrations.hub_kernels"


@contextmanager
def quiet() -> Iterator[None]:
    """Within it loggers of torch print nothing: neither warnings about its own symbols nor traces of what is caught."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]
    loggers = [logging.getLogger(name) for name in ("torch", KERNELS, *names)]
    before = [(logger, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in before:
            logger.disabled = disabled
