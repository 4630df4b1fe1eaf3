"""Every exception of fjd.

    FjdError                 somebody outside can mend it; the message says what happened, where, and what to do
    |-- UsageError           a wrong option, setting or name                                     (exit code 2)
    |-- ProjectError         the project directory is missing, read-only or somebody else's      (exit code 75)
    |-- RecruitError         workers did not come up, or did not go                              (exit code 75)
    |-- JobFileError         a file in jobqueue/ that is not a job: the reason it is rejected
    |-- CommandError         a job's executable cannot be run: the reason its attempt failed
    |-- SlotLost             a worker's slot is gone: somebody judged the worker lost, or it left
    `-- TargetTaken          a move would have overwritten a file, and was not made

    InternalError            a bug in fjd. Outside the tree on purpose, so that nothing catches it.

Competing for a job is no error: a transition that lost the race returns None. What the operating system says
stays an OSError until somebody knows what it means there.
"""

from __future__ import annotations

__all__ = [
    "CommandError",
    "FjdError",
    "InternalError",
    "JobFileError",
    "ProjectError",
    "RecruitError",
    "SlotLost",
    "TargetTaken",
    "UsageError",
    "printable",
]


def printable(text: str) -> str:
    """`text` with everything that a terminal could obey (or not show) escaped: names of files are strangers' text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class FjdError(Exception):
    """Trouble that a person can do something about.

    Keeps its three fields in `args`, so that it survives pickling.
    """

    def __init__(self, path: str, reason: str, remedy: str = "") -> None:
        """`path` is what it is about (a file, an option), `remedy` what to do; both may be empty."""
        super().__init__(path, reason, remedy)
        self.path = path
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        what_to_do = f" ({self.remedy})" if self.remedy else ""
        return printable(f"{where}{self.reason}{what_to_do}")


class UsageError(FjdError):
    """A wrong option, setting or name."""


class ProjectError(FjdError):
    """The project directory cannot be used."""


class RecruitError(FjdError):
    """Workers did not come up, or did not go."""


class JobFileError(FjdError):
    """A file that is not a job; `reason` is what its writer has to change."""


class CommandError(FjdError):
    """The job's executable cannot be run; `exit_code` is what a shell would answer: 126 or 127."""

    def __init__(self, path: str, reason: str, remedy: str = "", exit_code: int = 127) -> None:
        super().__init__(path, reason, remedy)
        self.args = (path, reason, remedy, exit_code)
        self.exit_code = exit_code


class SlotLost(FjdError):
    """The slot's directory is gone."""


class TargetTaken(FjdError):
    """Something is already there under the name that a move was to create."""


class InternalError(Exception):
    """A bug in fjd; never caught."""
