"""The one benchmark harness: fastlstm beside its peers, in one process, checked before it is timed.

``python -m benchmarks --help`` is the way in, on a GPU ``python -m benchmarks.gpu``. Rooms:
``common`` (what both share), ``cpu``, ``gpu``; ``machines`` writes the pages' tables of what is in
``results``. Nothing in ``fastlstm`` imports this package.
"""
