"""Packages that raygen's extras install: imported only when asked for."""

import importlib
from types import ModuleType

from raygen.errors import UserError


def require(module: str, extra: str) -> ModuleType:
    """Imports a module of an optional package.

    Raises:
        UserError: it is not there, or does not import; names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # torchvision beside another torch raises RuntimeError, say
        package = module.split(".")[0]
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{package} does not import ({reason}); pip install 'raygen[{extra}]'") from None
