"""What deployments need besides fedelta's own dependencies."""

from __future__ import annotations

from importlib.util import find_spec

from fedelta.errors import InputError

MODULES = ("flwr", "cryptography", "httpx", "starlette", "uvicorn")


def require_extra() -> None:
    """Does nothing where the extra `flower` is installed.

    Raises:
        InputError: it is not, or Flower has a version that was not tried.
    """
    if missing := [name for name in MODULES if find_spec(name) is None]:
        raise InputError(
            f"a deployment needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            hint="pip install 'fedelta[flower]'",
        )
    from fedelta.runtimes.flower.programs import flower_version

    flower_version()
