"""Packages of the extras `search` and `cluster`, which nothing else needs."""

from __future__ import annotations

from importlib import import_module

from pqc.errors import EnvironmentFault


def require(module: str, extra: str) -> None:
    """Refuse to go on without a package.

    Raises:
        EnvironmentFault: names the extra to install.
    """
    try:
        import_module(module)
    except ImportError as error:
        raise EnvironmentFault(f"{module} is not installed", hint=f"pip install 'pqc[{extra}]'") from error
