"""What a run's folder remembers of the tracker that it was sent to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pqc import files
from pqc.errors import TrackingError

FILE = "tracking.json"
HINT = f"remove {FILE} from the run's folder to send it as a new run"
MAX_BYTES = 1_000_000


@dataclass
class Sent:
    """Where a run went.

    Args:
        uri: of the tracker.
        run: its id there.
        model: the id of the logged model, empty until there is one.
        versions: the versions under which it was registered, by name.
    """

    uri: str
    run: str
    model: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it to the run's folder."""
        files.write_text(folder / FILE, json.dumps(asdict(self), indent=1))


def read(folder: Path) -> Sent | None:
    """What the folder remembers, or None.

    Raises:
        TrackingError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = files.read_json(path, MAX_BYTES)
        versions = {str(name): str(version) for name, version in content["versions"].items()}
        return Sent(str(content["uri"]), str(content["run"]), str(content["model"]), versions)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrackingError("the file is damaged", at=str(path), hint=HINT) from error
