"""What watches over identity: both sides number the functions of a session alike."""

from __future__ import annotations

from packet_tracer.bpf.btf import Btf
from packet_tracer.bpf.object import BpfObject
from packet_tracer.probes.identity import SESSION_FUNCTIONS, _takes
from packet_tracer.probes.setup import objects_directory


def test_the_program_numbers_the_functions_alike() -> None:
    with BpfObject.open(objects_directory() / "identity_session.bpf.o") as opened:
        numbers = Btf.from_object(opened).enum("session_function")
    assert numbers == {f"SESSION_{name}": number for number, name in enumerate(SESSION_FUNCTIONS, 1)}


def test_a_function_with_other_arguments_is_not_taken() -> None:
    btf = Btf.vmlinux()
    assert _takes(btf, "skb_copy_expand", {0: "sk_buff"})
    assert not _takes(btf, "skb_copy_expand", {1: "sk_buff"})
    assert not _takes(btf, "skb_copy_expand", {0: "xdp_frame"})
    assert not _takes(btf, "skb_copy_expand", {9: "sk_buff"})
    assert not _takes(btf, "no_such_function", {0: "sk_buff"})
