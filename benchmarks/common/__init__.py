"""Shared by the benchmarks on the CPU and on a GPU.

Files: ``shapes`` (cases), ``peers`` (implementations), ``precision`` (torch's float32 settings),
``check`` (correctness), ``timing``, ``machine`` (description of the machine), ``schema`` (the
results file), ``tables``, ``terminal``, ``stand_ins`` (backends for a dry run without a GPU).
"""
