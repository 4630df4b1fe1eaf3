"""Puts ten jobs into jobqueue/, as any program can: a job is a file."""

import os

JOB = """\
[control]
executable: python3 ajob.py
logfile: data/job{n}.dat

[params]
param1: value{n}
"""

os.makedirs("jobqueue", exist_ok=True)
for n in range(10):
    # A name with a leading dot is ignored while the file is being written; the rename submits the job whole.
    unfinished = f"jobqueue/.job{n}.conf"
    with open(unfinished, "w", encoding="utf-8") as job_file:
        job_file.write(JOB.format(n=n))
    os.rename(unfinished, f"jobqueue/job{n}.conf")
