"""A general libbpf CO-RE loader, ignorant of packets: objects, programs, maps, links, BTF, ring buffers."""
