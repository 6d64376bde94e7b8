"""The peers, one file each: other ways to compute the same cases. A file's name is the peer's name on the command line.

A peer's module has `VERSIONS`, the libraries it uses, and `prepare(case, data)`, which returns a `Run`, or None for a
case that it does not have. It is imported in a process of its own.
"""
