"""bcc's part of benchmarks.maps: run by the system's Python, which has bcc, not by ours.

    python3 maps_bcc.py '{"numbers": FD, "structs": FD, "per_cpu": FD, "entries": N, "slots": N, "cpus": N}'

bcc's table classes want a module compiled by bcc, only to be told what the caller knows already: they are
made without it. Prints the times in seconds, of its plain methods and of those by batch.
"""

import ctypes
import json
import sys
import time

from bcc import table

RUNS = 5


class Counts(ctypes.Structure):
    """A value of three numbers."""

    _fields_ = (("packets", ctypes.c_ulonglong), ("bytes", ctypes.c_ulonglong), ("last", ctypes.c_ulonglong))


def opened(kind, fd, leaf, entries, **more):
    """Return a table over a map's descriptor, as bcc's constructors would leave it."""
    made = object.__new__(kind)
    made.bpf, made.map_id, made.map_fd, made._name, made._cbs = None, 0, fd, b"t", {}
    made.Key, made.Leaf, made.ttype, made.flags, made.max_entries = ctypes.c_uint, leaf, 0, 0, entries
    made.__dict__.update(more)
    return made


def best(action):
    """Return the shortest of some runs, in seconds."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)


def main():
    """Measure all."""
    given = json.loads(sys.argv[1])
    count, slots, cpus = given["entries"], given["slots"], given["cpus"]
    numbers = opened(table.HashTable, given["numbers"], ctypes.c_ulonglong, count)
    structs = opened(table.HashTable, given["structs"], Counts, count)
    leaf = ctypes.c_ulonglong * cpus
    per_cpu = opened(
        table.PerCpuArray, given["per_cpu"], leaf, slots, sLeaf=ctypes.c_ulonglong, alignment=0, reducer=None
    )
    if dict(numbers.items_lookup_batch()) != {number: number for number in range(count)}:
        sys.exit("bcc read something else")
    if list(per_cpu[1]) != [1] * cpus:
        sys.exit("bcc read something else per CPU")
    keys = (ctypes.c_uint * count)(*range(count))
    values = (ctypes.c_ulonglong * count)(*range(count))

    def write():
        for number in range(count):
            numbers[ctypes.c_uint(number)] = ctypes.c_ulonglong(number)

    def fields(counts):
        return counts.packets, counts.bytes, counts.last

    plain = {
        "read numbers": best(lambda: {key.value: value.value for key, value in numbers.items()}),
        "read structs": best(lambda: {key.value: fields(value) for key, value in structs.items()}),
        "read per CPU": best(lambda: [list(value) for _, value in per_cpu.items()]),
        "write numbers": best(write),
    }
    batch = {
        "read numbers": best(lambda: dict(numbers.items_lookup_batch())),
        "read structs": best(lambda: {key: fields(value) for key, value in structs.items_lookup_batch()}),
        "write numbers": best(lambda: numbers.items_update_batch(keys, values)),
    }
    print(json.dumps([plain, batch]))


if __name__ == "__main__":
    main()
