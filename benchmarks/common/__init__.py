"""What the benchmarks on the CPU and on a GPU share.

Rooms: ``shapes`` (what is run), ``peers`` (who runs it), ``precision`` (how float32 is multiplied),
``check`` (is the answer right), ``timing`` (how long it takes), ``machine`` (on what), ``schema``
(the results file), ``tables``, ``terminal``, ``stand_ins`` (what is in the GPU's place where there
is none).
"""
