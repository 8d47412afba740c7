"""BPF maps: the generic :class:`Map` over bytes; typed classes, one a map type, stand beside it."""
