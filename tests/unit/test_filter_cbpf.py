"""Classic BPF: its text is tcpdump's, and libpcap's messages reach the user."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.errors import EXIT_USAGE
from packet_tracer.filter import FilterError, LinkType, PcapMissingError, cbpf, pcap
from packet_tracer.filter.expression import compile_filter
from tests.filter_corpus import expressions


def image_of_libpcap(instruction: cbpf.Instruction, index: int) -> str:
    library = ctypes.CDLL(next(name for name in pcap._LIBRARIES if _opens(name)))
    library.bpf_image.restype = ctypes.c_char_p
    row = pcap._Instruction(*instruction)
    return str(library.bpf_image(ctypes.byref(row), index).decode())


def _opens(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


_CODES = st.builds(
    lambda a, b, c: a | b | c,
    st.integers(0, 7),
    st.sampled_from([0, 8, 16, 24]),
    st.sampled_from(range(0, 0x100, 0x20)),
)


@given(_CODES | st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_text_of_any_instruction_is_libpcaps(code: int, jump_true: int, jump_false: int, k: int) -> None:
    instruction = cbpf.Instruction(code, jump_true, jump_false, k)
    assert instruction.text(12) == image_of_libpcap(instruction, 12)


@given(st.sampled_from(range(0, 72, 4)), st.sampled_from([cbpf.W, cbpf.H, cbpf.B]))
def test_text_of_metadata_is_libpcaps(offset: int, size: int) -> None:
    instruction = cbpf.Instruction(cbpf.LD | cbpf.ABS | size, 0, 0, cbpf.ANCILLARY + offset)
    assert instruction.text(0) == image_of_libpcap(instruction, 0)


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="no tcpdump to compare with")
@pytest.mark.parametrize(
    "expression", ["tcp port 443 and host 10.0.0.1", "ip6", "arp", "vlan 100 and udp", "mpls"]
)
def test_programs_are_printed_as_tcpdump_prints_them(expression: str) -> None:
    program = pcap.compile_expression(expression)
    for option, text in (("-d", cbpf.disassemble(program)), ("-dd", cbpf.c_array(program))):
        command = ["tcpdump", "-y", "EN10MB", option, expression]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if done.returncode:
            # Without the right to open an interface tcpdump still compiles, but for its own default one.
            pytest.skip(f"tcpdump says: {done.stderr.strip()}")
        assert text == done.stdout.rstrip("\n")


def test_a_syntax_error_shows_the_expression_and_libpcaps_message() -> None:
    with pytest.raises(FilterError) as caught:
        compile_filter("tcp prt 80")
    assert caught.value.expression == "tcp prt 80"
    assert "syntax error" in caught.value.reason
    assert str(caught.value) == f"filter 'tcp prt 80': {caught.value.reason}"
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    "expression", ["ip protochain 6", "ip6 protochain 17", "protochain 6 and host 10.0.0.1"]
)
def test_a_loop_is_refused_by_name(expression: str) -> None:
    with pytest.raises(FilterError, match="protochain"):
        compile_filter(expression)


@pytest.mark.parametrize(
    "expression", ["tcp\0", "host nowhere.invalid", "ip broadcast", "1 = 2", "(", "tcp and"]
)
def test_what_libpcap_refuses_is_a_filter_error(expression: str) -> None:
    with pytest.raises(FilterError):
        compile_filter(expression)


@given(st.text(max_size=40))
def test_no_text_does_anything_but_compile_or_be_refused(text: str) -> None:
    # A name would be looked up in the DNS.
    text = "".join(c for c in text if not (c.isalpha() or c in "._-")) + " and tcp"
    with suppress(FilterError):
        compile_filter(text)


def test_without_libpcap_only_expressions_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    pcap._library.cache_clear()
    monkeypatch.setattr(pcap, "_LIBRARIES", ("libpcap-that-is-not-here.so",))
    try:
        with pytest.raises(PcapMissingError, match="install libpcap"):
            compile_filter("tcp")
    finally:
        pcap._library.cache_clear()


def test_an_expression_of_the_link_layer_rejects_packets_without_one() -> None:
    arp = compile_filter("arp")
    assert arp.raw == (cbpf.Instruction(cbpf.RET, 0, 0, 0),)
    assert not arp.matches(bytes(100), link_type=LinkType.RAW)


@pytest.mark.parametrize(
    ("expression", "without_link_layer"),
    [
        ("port 80 or (vlan and port 80)", "port 80"),
        ("port 80 or 443 || (vlan and port 80)", "port 80 or 443"),
        (
            "ether host 02:00:00:00:00:01 or (udp and (port 1 or port 2)) or icmp",
            "(udp and (port 1 or port 2)) or icmp",
        ),
        # What stands behind a tag is about what is behind a tag.
        ("vlan or udp", ""),
        ("tcp or vlan or udp", "tcp"),
        # From the left: (ether host ... or udp) and port 53.
        ("ether host 02:00:00:00:00:01 or udp and port 53", ""),
        ("ether host 02:00:00:00:00:01 or 02:00:00:00:00:02", ""),
    ],
)
def test_alternatives_that_need_no_link_layer(expression: str, without_link_layer: str) -> None:
    """Of `a or b` the one part is left where the other can't be had, and nothing else matches."""
    raw = compile_filter(expression).raw
    if without_link_layer:
        assert raw == compile_filter(without_link_layer).raw
    else:
        assert raw == (cbpf.Instruction(cbpf.RET, 0, 0, 0),)


def test_there_are_enough_expressions() -> None:
    made = 0
    for expression in expressions():
        try:
            compile_filter(expression)
            made += 1
        except FilterError:
            pass
    assert made >= 400
