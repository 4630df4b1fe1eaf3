"""A job: reads its parameters from its job file, and writes its result where the job file says."""

import configparser
import sys
import time

job = configparser.ConfigParser(interpolation=None)
with open(sys.argv[1], encoding="utf-8") as job_file:
    job.read_file(job_file)

# A real job would compute something now.
time.sleep(0.2)

# fjd has made the directory of `logfile`.
with open(job["control"]["logfile"], "w", encoding="utf-8") as result:
    result.write(f"The result for {job['params']['param1']}\n")
