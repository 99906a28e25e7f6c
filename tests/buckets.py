"""A bucket that is none: gs://bucket in memory, read and written through epath and fsspec."""

from __future__ import annotations

import builtins
import threading
from typing import Any

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from p2p_jax import storage


class Bucket(MemoryFileSystem):
    """As gcsfs has it: no folders to make, no appending, and listings that it remembers.

    Attributes:
      puts: name and bytes of all that was put.
      broken: raised by each put, if there is one.
    """

    protocol = ("gs", "gcs")
    cachable = False

    def __init__(self, *, finalize_on_close: bool = False) -> None:
        super().__init__(global_store=False)
        self.puts: list[tuple[str, bytes]] = []
        self.broken: Exception | None = None
        self._listed: dict[str, set[str]] = {}
        self._turn = threading.RLock()

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        path = str(path).removeprefix("gs://")
        return "/" + path.strip("/")

    def _remembered(self, path: str) -> None:
        path = self._strip_protocol(path)
        listed = self._listed.get(path.rpartition("/")[0])
        if listed is not None and path not in listed:
            raise FileNotFoundError(path)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        with self._turn:
            if self.broken:
                raise self.broken
            super().pipe_file(path, value, mode=mode)
            self.puts.append((self._strip_protocol(path), bytes(value)))
            self.invalidate_cache()

    def info(self, path: str, **kwargs: Any) -> Any:
        self._remembered(path)
        return super().info(path, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        found = super().ls(path, detail=True)
        self._listed[self._strip_protocol(path)] = {entry["name"] for entry in found}
        return found if detail else sorted(entry["name"] for entry in found)

    def invalidate_cache(self, path: str | None = None) -> None:
        self._listed.clear()

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        assert "a" not in mode, "a bucket cannot append"
        if mode == "rb":
            self._remembered(path)
        return super()._open(path, mode, **kwargs)

    def mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a bucket has no folders to make: {path}")

    def by_another(self, path: str, data: bytes) -> None:
        """What another machine puts: nothing remembered here knows of it."""
        super().pipe_file(path, data)

    def names(self) -> list[str]:
        """All objects."""
        return sorted(name.removeprefix("/bucket/") for name in self.store)


def make(monkeypatch: Any) -> Bucket:
    """A fresh gs://bucket for a test; anything that takes such a path for a file of the disk fails.

    To be used as a fixture's value.
    """
    made = Bucket()
    monkeypatch.setenv("EPATH_USE_TF", "false")
    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: made)
    real = builtins.open

    def guarded(file: Any, *args: Any, **named: Any) -> Any:
        assert "gs:/" not in str(file), file
        return real(file, *args, **named)

    monkeypatch.setattr(builtins, "open", guarded)
    return made


def workdir(name: str = "run") -> Any:
    """A folder of the bucket."""
    return storage.at(f"gs://bucket/{name}")
