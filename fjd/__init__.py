"""fjd distributes jobs over every machine that mounts the same directory: the directory is the queue."""

__version__ = "1.0.0.dev0"
