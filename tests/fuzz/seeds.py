"""Turn the corpus of messages into inputs of the fuzz target: `seeds.py FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

CORPUS = Path(__file__).parent.parent / "corpus" / "http1"
MODES = {"GET": 0, "HEAD": 2, "CONNECT": 4}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*CORPUS.glob("valid/*.http"), *CORPUS.glob("invalid/*.http")]:
        doc = json.loads(path.with_suffix(".json").read_text())
        mode = (doc["kind"] == "response") | MODES[doc.get("request", "GET")]
        data = path.read_bytes()
        if len(data) <= 8190:
            (folder / f"{path.parent.name}-{path.stem}").write_bytes(bytes([mode, 7]) + data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
