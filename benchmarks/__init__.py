"""The one benchmark harness: fastlstm beside its peers, in one process, checked before it is timed.

``python -m benchmarks --help`` is the way in. Rooms: ``shapes`` (what is run), ``peers`` (who runs
it), ``check`` (is the answer right), ``timing`` (how long it takes), ``floor`` (how long it must
take), ``sweep`` (all of it, cell by cell), ``memory``, ``machine``, ``schema`` (the results file),
``report``, ``plots``, ``cli``. Nothing in ``fastlstm`` imports this package.
"""
