"""The families of errors, each for one person: the program, the owner of a file or a flag, and us."""

from __future__ import annotations

import os


class UapiError(OSError):
    """A call the uAPI refuses. The program gets `errno`; the reader of the log gets the sentence `why`."""

    errno: int

    def __init__(self, errno: int, why: str = "") -> None:
        super().__init__(errno, why or os.strerror(errno))

    @property
    def why(self) -> str:
        """The sentence that says why the call was refused."""
        return str(self.strerror)


class ConfigError(Exception):
    """A machine description or a command line is wrong: says the file, the line and what was expected."""


class TraceError(Exception):
    """A recording or a trace is wrong: says the file, the line and what was expected."""


class ModelError(Exception):
    """We are wrong: always a bug of softiommu."""
