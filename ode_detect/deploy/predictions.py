"""The file of predictions, COCO's form: kept line by line while a command runs, written whole at its end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ode_detect.media.files import whole

FILE, PARTIAL = "predictions.json", "predictions.partial.jsonl"
Record = dict[str, Any]


class Predictions:
    """What was predicted on the inputs of a command, by the key of each input.

    Each input is a line of a file of its own until `finish`, so that a stop loses nothing. A later command with the
    same settings finds these lines and goes on.

    Args:
        folder: where the files are; it is made.
        settings: what the predictions depend on; lines that were made with others are dropped.

    Attributes:
        dropped: how many lines of a stopped command with other settings were dropped.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self._final, self._partial = folder / FILE, folder / PARTIAL
        self._settings, self.dropped = settings, 0
        folder.mkdir(parents=True, exist_ok=True)
        self._lines: dict[str, int] = {}  # key -> where its line begins
        end = self._read() if self._partial.exists() else 0
        self._file = self._partial.open("r+b" if end else "w+b")
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self._file.write(json.dumps({"settings": settings}).encode() + b"\n")
            self._file.flush()

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, key: str, entry: Mapping[str, Any], records: Sequence[Record] = ()) -> None:
        """Keep what was predicted on an input.

        Args:
            key: of the input.
            entry: what "images" or "videos" says of it.
            records: its "annotations", without ids and file name.
        """
        self._lines[key] = self._file.tell()
        line = {"key": key, "entry": dict(entry), "records": list(records)}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def finish(
        self,
        keys: Sequence[str],
        *,
        info: Mapping[str, Any],
        categories: Sequence[Record],
        failed: Sequence[Record],
    ) -> Path:
        """Write the file of predictions and remove the lines.

        Args:
            keys: the inputs in their order; those of them that were added are written, and ids count them from 1.
            info: about the command.
            categories: ids and names.
            failed: inputs that nothing could be predicted on, or not on all of it.
        """
        done = [key for key in keys if key in self._lines]
        pictures = [key for key in done if "frames" not in self._line(key)["entry"]]
        videos = (self._line(key)["entry"] for key in done if "frames" in self._line(key)["entry"])
        images = ({"id": i, **self._line(key)["entry"]} for i, key in enumerate(pictures, 1))
        # Bytes of a name that are no UTF-8 are written as JSON's escapes, which read as the same name.
        escaped = "backslashreplace"
        with whole(self._final) as partial, partial.open("w", encoding="utf-8", errors=escaped) as file:
            file.write(f'{{"info": {json.dumps(dict(info))}')
            _write_list(file, "images", images)
            _write_list(file, "annotations", self._annotations(pictures))
            _write_list(file, "categories", categories)
            _write_list(file, "videos", videos)
            _write_list(file, "failed", failed)
            file.write("}\n")
        self._file.close()
        self._partial.unlink()
        return self._final

    def _annotations(self, pictures: Sequence[str]) -> Iterator[Record]:
        count = 0
        for image_id, key in enumerate(pictures, 1):
            line = self._line(key)
            for record in line["records"]:
                count += 1
                yield {"id": count, "image_id": image_id, "file_name": line["entry"]["file_name"], **record}

    def _line(self, key: str) -> Record:
        self._file.seek(self._lines[key])
        return dict(json.loads(self._file.readline()))

    def _read(self) -> int:
        """Take up the lines of a stopped command; returns where the next one goes. A torn last line is left out."""
        end = 0
        with self._partial.open("rb") as file:
            for number, text in enumerate(iter(file.readline, b"")):
                try:
                    line = json.loads(text) if text.endswith(b"\n") else {}
                except ValueError:
                    line = {}
                line = line if isinstance(line, dict) else {}
                if number == 0 and line.get("settings") != self._settings:
                    self.dropped = sum(1 for _ in file)
                    return 0
                if number and "key" not in line:
                    break
                if number:
                    self._lines[line["key"]] = end
                end = file.tell()
        return end


def _write_list(file: Any, name: str, items: Iterable[Record]) -> None:
    file.write(f',\n"{name}": [')
    for index, item in enumerate(items):
        file.write(("," if index else "") + "\n" + json.dumps(item, ensure_ascii=False))
    file.write("]")
