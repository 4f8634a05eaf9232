"""One command for a machine with a GPU, ``./run gpu``: build, tests, sanitizer, benchmark, profile.

The parts run in child processes, so that a kernel that crashes or hangs costs one cell and not the
run; what is finished is in a journal and is not run again. Rooms: ``cli`` (arguments, exit status),
``plan`` (the parts, in order of worth), ``drive`` (a child process under watch), ``journal`` (what
happened), ``session`` (on what machine), ``device`` (clock, graphs, memory of the GPU), ``build``,
``suite`` (tests/gpu), ``sanitizer``, ``cells`` (what is timed), ``contenders`` (who), ``verify``
(is it right), ``measure`` (one cell), ``worker`` (a child that goes through the cells),
``profile``, ``floor``, ``report``, ``tables``, ``heatmap``. What the benchmark on the CPU has too
is in ``benchmarks/common``.
"""
