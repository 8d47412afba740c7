"""What bpf_src/vmlinux.h says of the kernel: each member is in the running one's types, in its size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from packet_tracer.bpf.btf import Array, Btf, Int, Kind, Prototype, Reference, Struct

HEADER = Path(__file__).parents[2] / "bpf_src/vmlinux.h"
pytestmark = pytest.mark.requires("btf")

#: Bytes of the types that members are declared with; structs are not measured, their members are.
SIZES = {
    "__u8": 1,
    "u8": 1,
    "char": 1,
    "unsigned char": 1,
    "__u16": 2,
    "u16": 2,
    "__be16": 2,
    "unsigned short": 2,
    "__u32": 4,
    "u32": 4,
    "__be32": 4,
    "int": 4,
    "unsigned int": 4,
    "atomic_t": 4,
    "s64": 8,
    "u64": 8,
    "atomic64_t": 8,
    "unsigned long": 8,
    "netmem_ref": 8,
}

#: Where kernels differ, the ways in which they do: one must be true. A member of none must always be there.
ALTERNATIVES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("net.net_cookie",), ("net___atomic_cookie.net_cookie",)),
    (("sock_cgroup_data.cgroup",), ("sock_cgroup_data___val.val",)),
    (("sk_buff.vlan_all",), ("sk_buff___vlan_present.vlan_present",)),
    (
        ("skb_frag.netmem", "skb_frag.len", "skb_frag.offset"),
        ("bio_vec.bv_page", "bio_vec.bv_len", "bio_vec.bv_offset"),
    ),
    # All members of an xdp_frame are read as bit-fields are, whatever their size.
    (("xdp_frame.len", "xdp_frame.headroom"), ("xdp_frame___short.len", "xdp_frame___short.headroom")),
    # Before multi-buffer XDP nothing reads these: 2e88d4ff0301 and d16697cb6261 (v5.18).
    (("xdp_buff.flags", "xdp_frame.flags", "skb_shared_info.xdp_frags_size"), ()),
    # Without netfilter links nothing reads these: 84601d6ee68a (v6.4).
    (("bpf_nf_ctx.state", "bpf_nf_ctx.skb"), ()),
    (("nf_hook_state.hook",), ()),
)


class Declared(NamedTuple):
    """A member of vmlinux.h. ``size`` is in bytes, None for a struct; ``bits`` is 0 for no bit-field."""

    struct: str
    name: str
    size: int | None
    bits: int

    def __str__(self) -> str:
        return f"{self.struct}.{self.name}"


_STRUCT = re.compile(
    r"(?:struct (?P<tag>\w+)|typedef struct) \{\n(?P<body>.*?)\n\}(?: (?P<typedef>\w+))?;", re.S
)
_MEMBER = re.compile(
    r"\t(?:const )?(?P<type>[\w ]+?) ?(?P<stars>\**)(?P<name>\w+)"
    r"(?:\[(?P<count>\d+)\])?(?: : (?P<bits>\d+))?;"
)


def declared() -> list[Declared]:
    """Return all members that programs reach by name: those under preserve_access_index."""
    text = HEADER.read_text()
    relocated = text.split("#pragma clang attribute push")[1].split("#pragma clang attribute pop")[0]
    found = []
    for struct in _STRUCT.finditer(relocated):
        for line in struct["body"].splitlines():
            member = _MEMBER.fullmatch(line.split("/*")[0].rstrip())
            assert member, f"not understood: {line}"
            size: int | None = 8
            if not member["stars"]:
                kind = member["type"]
                size = None if kind.startswith("struct ") or kind == "possible_net_t" else SIZES[kind]
            if size is not None and member["count"]:
                size *= int(member["count"])
            found.append(
                Declared(struct["tag"] or struct["typedef"], member["name"], size, int(member["bits"] or 0))
            )
    return found


def members_of(btf: Btf, type_id: int) -> dict[str, tuple[int, int]]:
    """Return type and bit-field size of each member, those of anonymous structs inside included."""
    described = btf.resolve(type_id)
    assert isinstance(described, Struct)
    found: dict[str, tuple[int, int]] = {}
    for member in described.members:
        if member.name:
            found[member.name] = member.type_id, member.bit_size
        else:
            found |= members_of(btf, member.type_id)
    return found


def struct_id(btf: Btf, name: str) -> int | None:
    """Return the kernel's type for a struct; three underscores and what follows tell flavours apart."""
    bare = name.split("___")[0]
    return btf.get(bare, Kind.STRUCT) or btf.get(bare, Kind.TYPEDEF)


def wrong(btf: Btf, member: Declared) -> str:
    """Return what is not true of a member in this kernel, "" if it is as declared."""
    found = struct_id(btf, member.struct)
    if found is None:
        return f"{member}: this kernel has no struct {member.struct}"
    there = members_of(btf, found)
    if member.name not in there:
        return f"{member}: this kernel has no such member"
    type_id, bits = there[member.name]
    if bits or member.bits:
        # The kernel's own count of bits is what the access is relocated to.
        return "" if bits else f"{member}: no bit-field in this kernel"
    size = btf.size_of(type_id)
    if member.size is not None and size != member.size:
        return f"{member}: {member.size} bytes here, {size} in this kernel"
    return ""


def test_header_is_understood() -> None:
    """Were the reading of the header to miss structs, all else here would prove nothing."""
    text = HEADER.read_text().split("#pragma clang attribute push")[1]
    members = declared()
    structs = {each.struct for each in members}
    assert structs == set(re.findall(r"^struct (\w+) \{", text, re.M)) | {"possible_net_t"}
    assert len(members) == len(set(members)) >= 60
    assert Declared("sk_buff", "cloned", 1, 1) in members
    assert Declared("task_struct", "comm", 16, 0) in members
    assert Declared("sk_buff", "head", 8, 0) in members
    assert Declared("net_device", "nd_net", None, 0) in members


def test_every_member_is_in_this_kernel() -> None:
    btf = Btf.vmlinux()
    by_name = {str(member): member for member in declared()}
    varying = {name for alternatives in ALTERNATIVES for names in alternatives for name in names}
    assert varying <= set(by_name), "an alternative that vmlinux.h does not have"
    flavours = {name for name in by_name if "___" in name}
    assert flavours <= varying, "a flavour without the member it stands in for"
    faults = [
        fault for name, member in by_name.items() if name not in varying and (fault := wrong(btf, member))
    ]
    for alternatives in ALTERNATIVES:
        tried = [[fault for name in names if (fault := wrong(btf, by_name[name]))] for names in alternatives]
        if all(tried):
            faults.append(" or ".join(", ".join(found) for found in tried))
    assert not faults


def test_a_wrong_member_is_found() -> None:
    """The check can fail: names, sizes and structs that no kernel has."""
    btf = Btf.vmlinux()
    assert "no such member" in wrong(btf, Declared("sk_buff", "nothing_like_it", 4, 0))
    assert "2 bytes here, 4" in wrong(btf, Declared("sk_buff", "mark", 2, 0))
    assert "no struct" in wrong(btf, Declared("nothing_like_it", "mark", 4, 0))
    assert "no bit-field" in wrong(btf, Declared("sk_buff", "mark", 4, 1))
    assert wrong(btf, Declared("sk_buff", "mark", 4, 0)) == ""


def test_fragments_of_a_packet_lie_behind_each_other() -> None:
    """pages.bpf.h has the step from page to page, SKB_FRAG_BYTES: the size of the array's elements."""
    btf = Btf.vmlinux()
    members = members_of(btf, btf.find("skb_shared_info", Kind.STRUCT))
    frags = btf.resolve(members["frags"][0])
    assert isinstance(frags, Array)
    text = (HEADER.parent / "pages.bpf.h").read_text()
    declared_bytes = re.search(r"#define SKB_FRAG_BYTES (\d+)", text)
    assert declared_bytes is not None
    assert btf.size_of(frags.type_id) == int(declared_bytes[1])


def test_helpers_have_the_numbers_declared() -> None:
    """enum bpf_func_id: only asked for, but by name, so a wrong number would call another helper."""
    text = HEADER.read_text()
    numbers = {name: int(number) for name, number in re.findall(r"(BPF_FUNC_\w+) = (\d+),", text)}
    there = Btf.vmlinux().enum("bpf_func_id")
    assert numbers
    for name, number in numbers.items():
        # A kernel without the helper is asked at load time, bpf_core_enum_value_exists().
        assert there.get(name, number) == number


@pytest.mark.parametrize(
    ("enum", "names"),
    [
        ("xdp_action", ("XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT")),
        (
            "bpf_map_type",
            (
                "BPF_MAP_TYPE_HASH",
                "BPF_MAP_TYPE_ARRAY",
                "BPF_MAP_TYPE_PERCPU_ARRAY",
                "BPF_MAP_TYPE_LRU_HASH",
                "BPF_MAP_TYPE_ARRAY_OF_MAPS",
                "BPF_MAP_TYPE_RINGBUF",
            ),
        ),
    ],
)
def test_constants_are_the_kernels(enum: str, names: tuple[str, ...]) -> None:
    body = re.search(rf"enum {enum} \{{(.*?)\}}", HEADER.read_text(), re.S)
    assert body is not None
    here: dict[str, int] = {}
    for entry in filter(None, (part.strip() for part in body[1].split(","))):
        name, _, value = entry.partition(" = ")
        here[name] = int(value) if value else max(here.values()) + 1
    there = Btf.vmlinux().enum(enum)
    assert set(names) <= set(here)
    assert {name: there[name] for name in here} == here


def test_kfree_skb_gives_a_reason_where_there_are_reasons() -> None:
    """What is attached depends on the enum; an argument of another size or place would be read wrongly."""
    btf = Btf.vmlinux()
    typedef = btf.type(btf.find("btf_trace_kfree_skb", Kind.TYPEDEF))
    assert isinstance(typedef, Reference)
    pointer = btf.type(typedef.type_id)
    assert isinstance(pointer, Reference)
    prototype = btf.type(pointer.type_id)
    assert isinstance(prototype, Prototype)
    # The first is the tracepoint's own; then come skb and location.
    _, skb, location, *more = prototype.parameters
    assert [btf.resolve(each.type_id).kind for each in (skb, location)] == [Kind.POINTER, Kind.POINTER]
    if btf.get("skb_drop_reason", Kind.ENUM) is None:
        assert not more
    else:
        assert (btf.resolve(more[0].type_id).name, btf.size_of(more[0].type_id)) == ("skb_drop_reason", 4)
        assert "SKB_DROP_REASON_NOT_SPECIFIED" in btf.enum("skb_drop_reason")


def test_the_kernel_is_one_of_64_bits() -> None:
    found = Btf.vmlinux().type(Btf.vmlinux().find("long unsigned int", Kind.INT))
    assert isinstance(found, Int)
    assert found.size == 8
