"""A general libbpf CO-RE loader, ignorant of packets.

- :mod:`~packet_tracer.bpf.object`: ``BpfObject.open(path)`` -> prepare -> load, a type for each state
- :mod:`~packet_tracer.bpf.program`: programs before and after loading; :mod:`~packet_tracer.bpf.constants`
  patches numbers into them, :mod:`~packet_tracer.bpf.parallel` loads several at once
- :mod:`~packet_tracer.bpf.link`: attach to tracepoints, functions, XDP, TC, netfilter, cgroups
- :mod:`~packet_tracer.bpf.maps`: a class for every type of map
- :mod:`~packet_tracer.bpf.ring`: ring buffers read by the batch, merged by time
- :mod:`~packet_tracer.bpf.btf`: types of the kernel, its modules and objects
- :mod:`~packet_tracer.bpf.features`, :mod:`~packet_tracer.bpf.privileges`: what this kernel and this
  process can do
- :mod:`~packet_tracer.bpf.errors`: what can go wrong, with fields and one line of text

Importing this package imports none of them: the compiled module is loaded where it is used.
"""
