"""What `executable:` means: the words of a command, or a line for the shell.

A command runs without a shell unless it contains shell syntax, because a shell costs half as much again as the
process it starts. Without a shell the absolute path of the job file is the last word of the command. With one,
`sh -c` gets it as `$1`, and it is also appended to the line, so that `OMP_NUM_THREADS=2 ./sim` and `cd run && ./sim`
hand it to `sim`. It is not appended where the line uses it itself (`$1`, `$@`, `$*`, `$FJD_JOBFILE`), ends in
something that takes no argument (`)`, `}`, `;`, `&`, `fi`, `done`, `esac`), or is a pipeline: its last command is
a filter, and `sim | tee log` would overwrite the job file.
"""

from __future__ import annotations

import os
import re
import shlex

from fjd.errors import CommandError, JobFileError

__all__ = ["argument_vector", "find_program", "script_vector", "words"]

# What stands in single quotes means nothing to a shell, and what stands in double quotes only $ and `.
_QUOTED = re.compile(r"""'[^']*'|"[^"$`]*\"""")
# Characters that mean something to a shell even in the middle of a word; quotes and backslashes are not among
# them, because splitting a command into words understands those.
_SYNTAX = re.compile(r"[|&;<>()$`*?\[\n]|(?:^|\s)[~#]|^\s*[A-Za-z_]\w*=")
# What only a shell can run. Builtins that also exist as programs (echo, test, true) need none.
_SHELL_WORDS = frozenset(
    ". : ! { alias bg case cd eval exec exit export fg for function getopts hash if local read readonly return set"
    " shift source time times trap type ulimit umask unalias unset until wait while".split()
)
_USES_ARGUMENT = re.compile(r"\$(?:[1@*]|\{[1@*]|FJD_JOBFILE|\{FJD_JOBFILE)")
_TAKES_NO_ARGUMENT = re.compile(r"(?<!\|)\|(?!\|)|(?:[)};&<>|]|\b(?:fi|done|esac))\s*\Z")


def words(executable: str) -> list[str] | None:
    """The words of `executable`, or None if it takes a shell to run it.

    Raises JobFileError for quotes that do not end.
    """
    if _SYNTAX.search(_unquoted(executable)):
        return None
    if "'" in executable or '"' in executable or "\\" in executable:
        try:
            split = shlex.split(executable)
        except ValueError as error:
            raise JobFileError("", f"executable: {str(error).lower()}: {executable}") from None
    else:
        split = executable.split()
    if not split or not split[0]:
        raise JobFileError("", "executable: the command is empty")
    return None if split[0] in _SHELL_WORDS else split


def argument_vector(executable: str, job_path: str) -> list[str]:
    """The argument vector that runs `executable` for the job file at `job_path`."""
    split = words(executable)
    if split is not None:
        return [*split, job_path]
    if not _USES_ARGUMENT.search(executable) and not _TAKES_NO_ARGUMENT.search(_unquoted(executable)):
        executable += ' "$1"'
    return ["/bin/sh", "-c", executable, "sh", job_path]


def _unquoted(executable: str) -> str:
    """`executable` without what quotes hide from a shell."""
    # A backslash may make a quote one that begins nothing; then all of it counts, which at worst takes a shell.
    return executable if "\\" in executable else _QUOTED.sub("''", executable)


def script_vector(interpreter: str, job_path: str) -> list[str]:
    """The argument vector that runs a script job: what the kernel would make of its `#!` line.

    We read that line ourselves, so that neither a missing x bit (a script that came through a pipe), nor a mount
    without execution, nor somebody who still has the file open can fail the job. As in the kernel, everything behind
    the interpreter is one argument.
    """
    return [*interpreter.split(None, 1), job_path]


def find_program(program: str, directory: str, search_path: str) -> str:
    """The absolute path of `program`, looked up as a shell in `directory` would with `search_path` as its PATH.

    Raises CommandError, with the paths tried and the shell's exit code: 127 not found, 126 not executable.
    """
    if "/" in program:
        path = os.path.join(directory, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
        raise _unusable(path)
    for folder in search_path.split(os.pathsep):
        path = os.path.join(directory, folder, program)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise CommandError(program, f"command not found in {search_path}", exit_code=127)


def _unusable(path: str) -> CommandError:
    if os.path.isdir(path):
        return CommandError(path, "is a directory", exit_code=126)
    if os.path.exists(path):
        return CommandError(path, "permission denied", f"chmod +x {shlex.quote(path)}", exit_code=126)
    return CommandError(path, "no such file", exit_code=127)
