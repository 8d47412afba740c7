"""Run commands, and this project's tests, on other kernels: Debian's, under QEMU's software emulation.

``python -m tests.matrix bullseye trixie -- COMMAND`` boots each kernel on a copy-on-write view of this
machine's root and runs COMMAND there as root; without COMMAND, the kernel tests.
"""
