"""The benchmarks: `python -m bench [NAME ...]`, or `make bench`. It prints one table, and keeps the numbers as JSON.

    latency.py      from the drop of a job file to the first action of the job
    idle.py         CPU and wake-ups of workers and a dispatcher with nothing to do
    hire.py         how long `recruiter hire 32` takes
    memory.py       what an idle worker holds
    throughput.py   no-op jobs a second, beside other ways to start them; each way is one `Contender`

    figures.py      what a measurement returns
    rig.py          a temporary project with its workers and dispatcher, and how all of it goes away
    machine.py      where it was measured; reads /proc

Nothing in here fails because it took long: numbers are for people, and for comparing one run with another.
"""
