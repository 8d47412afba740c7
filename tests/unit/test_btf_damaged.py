"""BTF that is damaged: the walk in C says so, or finds what a plain reading of the same bytes finds."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from packet_tracer.bpf.btf_functions import TypeTable
from packet_tracer.errors import NotSupportedError
from tests.unit.btf_blob import Blob

STRUCTS = ("sk_buff", "xdp_buff")
HEADER = 24
POINTER, STRUCT, UNION, FORWARD, FUNCTION, PROTOTYPE = 2, 4, 5, 7, 12, 13
MODIFIERS = {8, 9, 10, 11, 18}
EXTRA = {1: 1, 3: 3, 14: 1, 17: 1}
EACH = {STRUCT: 3, UNION: 3, 6: 2, PROTOTYPE: 2, 15: 3, 19: 3}
LONGEST_CHAIN = 64


def sound() -> bytes:
    """A blob with something of everything that the walk looks at."""
    blob = Blob()
    skb, number = blob.struct("sk_buff"), blob.integer("int", 4)
    buffer = blob.pointer(blob.const(blob.forward("xdp_buff")))
    pointer, wide = blob.pointer(skb), blob.typedef("wide", blob.struct("pair", 16))
    blob.add(3, "", 0, 0, number, number, 4)
    blob.add(19, "enum64", 1, 8, 0, 1, 2)
    blob.add(15, ".data", 1, 8, number, 0, 4)
    blob.function("plain", number, ("skb", pointer), ("number", number))
    blob.function("behind", 0, ("wide", wide), ("xdp", buffer), ("", 0))
    blob.function("slot", wide, ("pskb", blob.pointer(blob.type_tag("user", pointer))))
    blob.function("made", pointer)
    blob.add(FUNCTION, "alias", 0, blob.function("other", 0, ("n", number)) - 1)
    return blob.bytes()


Found = tuple[int, str, tuple[tuple[int, str, int], ...], str, bool, int]


def plainly(data: bytes) -> list[Found] | None:
    """Return what the walk should find, None where the blob can't be read."""
    types_size, strings_size = struct.unpack_from("=I", data, 12)[0], struct.unpack_from("=I", data, 20)[0]
    words = struct.unpack_from(f"={types_size // 4}I", data, HEADER)
    strings = data[HEADER + types_size : HEADER + types_size + strings_size]
    types: dict[int, tuple[int, ...]] = {}
    at = 0
    while at < len(words):
        if at + 3 > len(words) or not 0 < (kind := words[at + 1] >> 24 & 31) < 20:
            return None
        size = 3 + EXTRA.get(kind, 0) + EACH.get(kind, 0) * (words[at + 1] & 0xFFFF)
        if at + size > len(words):
            return None
        types[len(types) + 1] = words[at : at + size]
        at += size

    def kind_of(type_id: int) -> int:
        return types[type_id][1] >> 24 & 31 if type_id in types else 0

    def name(offset: int) -> str:
        return strings[offset:].split(b"\0")[0].decode(errors="replace")

    def lead(type_id: int) -> tuple[str, int]:
        pointers = 0
        for _ in range(LONGEST_CHAIN):
            kind = kind_of(type_id)
            if kind in (STRUCT, FORWARD):
                found = name(types[type_id][0])
                return (found, pointers) if found in STRUCTS and pointers else ("", 0)
            pointers += kind == POINTER
            if (kind != POINTER and kind not in MODIFIERS) or pointers > 2:
                break
            type_id = types[type_id][2]
        return "", 0

    def behind(type_id: int) -> int:
        for _ in range(LONGEST_CHAIN + 1):
            if kind_of(type_id) not in MODIFIERS:
                return type_id
            type_id = types[type_id][2]
        return 0

    def size_of(type_id: int) -> int:
        kind = kind_of(type_id := behind(type_id))
        return 8 if kind in (POINTER, 3, PROTOTYPE) else types[type_id][2] if kind else 0

    functions = {one: row for one, row in types.items() if kind_of(one) == FUNCTION}
    namesakes = Counter(row[0] for row in functions.values())
    result: list[Found] = []
    for type_id, (offset, _, prototype, *_rest) in functions.items():
        if kind_of(prototype) != PROTOTYPE:
            continue
        _, info, returned, *pairs = types[prototype]
        parameters, slot, trampoline = [], 0, (info & 0xFFFF) <= 12
        trampoline &= kind_of(behind(returned)) not in (STRUCT, UNION)
        for parameter in pairs[1::2]:
            found, pointers = lead(parameter)
            if found:
                parameters.append((slot, found, pointers))
            if not 0 < size_of(parameter) <= 16:
                trampoline = False
                break
            slot += -(-size_of(parameter) // 8)
        made, pointers = lead(returned)
        made = made if pointers == 1 else ""
        if parameters or made:
            known = namesakes[offset] if offset < len(strings) else 0
            result.append((type_id, name(offset), tuple(parameters), made, trampoline, known))
    return result


def walked(data: bytes) -> list[Found] | None:
    """Return what the walk finds, None where it refuses."""
    try:
        table = TypeTable(data)
    except NotSupportedError:
        return None
    return [
        (
            one.id,
            one.name,
            tuple((parameter.slot, parameter.struct, parameter.pointers) for parameter in one.parameters),
            one.returned,
            one.trampoline,
            one.prototypes,
        )
        for one in table.functions(STRUCTS)
    ]


SOUND = sound()
WORDS = struct.unpack_from("=I", SOUND, 12)[0] // 4
values = st.one_of(
    st.integers(0, 40),
    st.integers(0, 2**32 - 1),
    st.builds(lambda kind, count: kind << 24 | count, st.integers(0, 31), st.integers(0, 70)),
)


def test_sound() -> None:
    found = walked(SOUND)
    assert found == plainly(SOUND)
    assert [name for _, name, *_ in found or ()] == ["plain", "behind", "slot", "made"]


@settings(max_examples=500)
@given(st.lists(st.tuples(st.integers(0, WORDS - 1), values), max_size=6))
def test_words_changed(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SOUND)
    for word, value in changes:
        struct.pack_into("=I", data, HEADER + 4 * word, value)
    assert walked(bytes(data)) == plainly(bytes(data))


@settings(max_examples=500)
@given(st.binary(max_size=200), st.integers(0, len(SOUND)), st.integers(0, len(SOUND)))
@example(b"", 0, 0)
def test_anything(middle: bytes, before: int, after: int) -> None:
    """Cut off, with bytes from elsewhere in between: no crash, and no other error."""
    walked(SOUND[:before] + middle + SOUND[after:])


def test_a_circle_of_types_ends() -> None:
    blob = Blob()
    blob.const(2)
    blob.typedef("round", 1)
    blob.pointer(3)
    blob.function("f", 1, ("a", 1), ("b", 3))
    assert walked(blob.bytes()) == []


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_kernels_cut_off(kept: float) -> None:
    path = Path("/sys/kernel/btf/vmlinux")
    if not path.exists():
        pytest.skip("this kernel has no BTF")
    data = path.read_bytes()
    with pytest.raises(NotSupportedError, match="damaged"):
        TypeTable(data[: int(len(data) * kept)])
