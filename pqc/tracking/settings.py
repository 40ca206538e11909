"""Where runs are tracked: the section of a schedule, and what an address may be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints

from pqc.schedule_sections import Section

SQLITE = "sqlite:///"
MAX_NAME = 250
"""How long MLflow's names may be in every database that it knows."""


def address(text: str | None) -> str | None:
    """The URI that `text` says: itself, or the database in a local folder; None leaves the choice to MLflow.

    Raises:
        ValueError: see `refuse`.
    """
    if not text:
        return None
    refuse(text)
    return text.rstrip("/") if ":" in text else f"{SQLITE}{Path(text).expanduser().resolve() / 'mlflow.db'}"


def database(uri: str) -> Path | None:
    """The file of a local store, or None for a server."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def refuse(uri: str) -> str:
    """Give back an address that may be used and written down.

    Raises:
        ValueError: it holds credentials, or cannot be read. The message does not repeat it.
    """
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("the tracking address is not a URI; give http://HOST:PORT or a folder") from None
    if "@" in parts.netloc:
        raise ValueError(
            "the tracking address holds credentials; give it without them, and set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if parts.scheme in ("http", "https") and (not host or host.strip() != host):
        raise ValueError("the tracking address has no host; give http://HOST:PORT or a folder")
    if parts.scheme == "sqlite" and (not uri.startswith(SQLITE) or uri in (SQLITE, f"{SQLITE}:memory:")):
        raise ValueError("the tracking address has no file, so nothing would be kept; give sqlite:///FILE or a folder")
    if parts.scheme == "file":
        raise ValueError("MLflow's file store is out of use; give the folder itself, which gets a database")
    return uri


def _is_model_name(name: str) -> str:
    if "/" in name or ":" in name:
        raise ValueError("a registered model's name has no '/' and no ':'")
    return name


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_NAME)]
ModelName = Annotated[Name, AfterValidator(_is_model_name)]


class Mlflow(Section):
    """How a run is sent to MLflow.

    Args:
        uri: a server, a database, or a local folder; null is where MLflow itself would log.
        experiment: the experiment, made where there is none.
        registered_model: register the clean model by this name; null registers nothing.
    """

    uri: Annotated[str, AfterValidator(refuse), Field(max_length=2000)] | None = None
    experiment: Name = "pqc"
    registered_model: ModelName | None = None


class Tracking(Section):
    """The trackers that a run is sent to."""

    mlflow: Mlflow | None = None
