"""Which functions handle packets, from BTF made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from packet_tracer.bpf.btf_functions import FunctionType, Parameter, TypeTable
from packet_tracer.errors import NotSupportedError, UsageError
from packet_tracer.probes import kallsyms
from packet_tracer.probes.functions import Argument, ArgumentKind, FunctionTable, build_table
from tests.unit.btf_blob import Blob

STRUCTS = ("sk_buff", "xdp_buff", "xdp_frame")


def _functions(blob: Blob, base: TypeTable | None = None) -> dict[str, FunctionType]:
    return {one.name: one for one in TypeTable(blob.bytes(), base=base).functions(STRUCTS)}


class TestPositions:
    def test_two_arguments_with_a_gap(self) -> None:
        """pwru takes the second for the third here (bpf_skops_hdr_opt_len)."""
        blob = Blob()
        skb, other = blob.pointer(blob.struct("sk_buff")), blob.pointer(blob.struct("sock"))
        blob.function("both", 0, ("sk", other), ("skb", skb), ("req", other), ("syn_skb", skb))
        assert _functions(blob)["both"].parameters == (Parameter(1, "sk_buff", 1), Parameter(3, "sk_buff", 1))

    def test_sixth_and_later(self) -> None:
        blob = Blob()
        number, skb = blob.integer("int", 4), blob.pointer(blob.struct("sk_buff"))
        blob.function("late", number, *((f"a{at}", number) for at in range(7)), ("skb", skb))
        assert _functions(blob)["late"].parameters == (Parameter(7, "sk_buff", 1),)

    @pytest.mark.parametrize(("size", "slot"), [(1, 1), (8, 1), (9, 2), (16, 2)])
    def test_behind_a_struct_by_value(self, size: int, slot: int) -> None:
        blob = Blob()
        value, skb = blob.struct("value", size), blob.pointer(blob.struct("sk_buff"))
        blob.function("f", 0, ("value", blob.typedef("value_t", blob.const(value))), ("skb", skb))
        found = _functions(blob)["f"]
        assert found.parameters == (Parameter(slot, "sk_buff", 1),)
        assert found.trampoline

    def test_nothing_is_claimed_behind_a_struct_in_memory(self) -> None:
        blob = Blob()
        skb, value = blob.pointer(blob.struct("sk_buff")), blob.struct("value", 17)
        blob.function("f", 0, ("skb", skb), ("value", value), ("late", skb))
        found = _functions(blob)["f"]
        assert found.parameters == (Parameter(0, "sk_buff", 1),)
        assert not found.trampoline


class TestTypes:
    def test_qualifiers_anywhere(self) -> None:
        blob = Blob()
        skb = blob.struct("sk_buff")
        for name, type_id in {
            "const": blob.pointer(blob.const(skb)),
            "constant_pointer": blob.const(blob.pointer(skb)),
            "typedef": blob.typedef("skb_t", blob.pointer(skb)),
            "tag": blob.pointer(blob.type_tag("rcu", skb)),
        }.items():
            blob.function(name, 0, ("skb", type_id))
        found = _functions(blob)
        assert set(found) == {"const", "constant_pointer", "typedef", "tag"}
        assert {one.parameters for one in found.values()} == {(Parameter(0, "sk_buff", 1),)}

    def test_a_reference_to_a_later_type(self) -> None:
        blob = Blob()
        blob.pointer(2)
        blob.const(3)
        blob.struct("sk_buff")
        blob.function("f", 0, ("skb", 1))
        assert _functions(blob)["f"].parameters == (Parameter(0, "sk_buff", 1),)

    def test_pointers_to_pointers(self) -> None:
        blob = Blob()
        skb = blob.struct("sk_buff")
        two = blob.pointer(blob.pointer(skb))
        blob.function("two", 0, ("pskb", two))
        blob.function("three", 0, ("ppskb", blob.pointer(two)))
        blob.function("by_value", 0, ("skb", skb))
        found = _functions(blob)
        assert set(found) == {"two"}
        assert found["two"].parameters == (Parameter(0, "sk_buff", 2),)

    def test_returned(self) -> None:
        blob = Blob()
        skb = blob.pointer(blob.struct("sk_buff"))
        blob.function("alloc", skb, ("size", blob.integer("int", 4)))
        blob.function("slot", blob.pointer(skb))
        found = _functions(blob)
        assert set(found) == {"alloc"}
        assert (found["alloc"].parameters, found["alloc"].returned) == ((), "sk_buff")

    def test_names_that_share_their_end(self) -> None:
        """A string section may tell "sk_buff" as the end of another name."""
        blob = Blob()
        long = blob.name("my_sk_buff")
        mine, real = blob.struct(long), blob.struct(long + len("my_"))
        blob.function("mine", 0, ("skb", blob.pointer(mine)))
        blob.function("real", 0, ("skb", blob.pointer(real)))
        assert set(_functions(blob)) == {"real"}

    def test_what_a_trampoline_refuses(self) -> None:
        blob = Blob()
        number, skb = blob.integer("int", 4), blob.pointer(blob.struct("sk_buff"))
        value = blob.struct("value", 8)
        blob.function("variable", 0, ("skb", skb), ("", 0))
        blob.function("many", 0, ("skb", skb), *((f"a{at}", number) for at in range(12)))
        blob.function("returns_struct", blob.typedef("value_t", value), ("skb", skb))
        blob.function("most", number, ("skb", skb), *((f"a{at}", number) for at in range(11)))
        trampoline = {name: one.trampoline for name, one in _functions(blob).items()}
        assert trampoline == {"variable": False, "many": False, "returns_struct": False, "most": True}

    def test_not_btf(self) -> None:
        with pytest.raises(NotSupportedError, match="not BTF"):
            TypeTable(b"nothing of the sort, but long enough")
        blob = Blob()
        blob.add(20, "", 0, 0)
        with pytest.raises(NotSupportedError, match="kind 20"):
            TypeTable(blob.bytes())


class TestModules:
    def test_types_of_both(self) -> None:
        kernel = Blob()
        skb = kernel.pointer(kernel.struct("sk_buff"))
        shared = kernel.prototype(0, ("skb", skb))
        module = Blob(kernel)
        module.add(12, "borrowed", 0, shared)
        own = module.function("own", skb, ("dev", module.pointer(module.struct("veth_rq"))), ("skb", skb))
        module.function("copy", 0, ("skb", module.pointer(module.forward("sk_buff"))))
        module.function("other", 0, ("rq", skb + 100))
        base = TypeTable(kernel.bytes())
        found = _functions(module, base)
        assert set(found) == {"borrowed", "own", "copy"}
        assert found["own"].parameters == (Parameter(1, "sk_buff", 1),)
        table = TypeTable(module.bytes(), base=base)
        assert table.prototype(own) == "struct sk_buff *own(struct veth_rq *dev, struct sk_buff *skb)"


def test_prototypes() -> None:
    blob = Blob()
    number, skb = blob.integer("int", 4), blob.struct("sk_buff")
    text = blob.pointer(blob.const(blob.integer("char", 1)))
    row = blob.add(3, "", 0, 0, number, number, 4)
    okfn = blob.prototype(number, ("", blob.pointer(skb)))
    function = blob.function(
        "f",
        blob.pointer(blob.const(skb)),
        ("pskb", blob.pointer(blob.pointer(skb))),
        ("name", blob.const(text)),
        ("rows", blob.pointer(row)),
        ("okfn", blob.pointer(okfn)),
        ("state", blob.add(6, "state", 0, 4)),
        ("", 0),
    )
    nothing = blob.function("g", 0)
    table = TypeTable(blob.bytes())
    assert table.prototype(function) == (
        "const struct sk_buff *f(struct sk_buff **pskb, const char *const name, int (*rows)[4], "
        "int (*okfn)(struct sk_buff *), enum state state, ...)"
    )
    assert table.prototype(nothing) == "void g(void)"


class _Kernel:
    """A kernel's files in a folder: what symbols it has and what ftrace can trace."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kallsyms, self.tracefs = folder / "kallsyms", folder / "tracing"
        self.symbols("")
        monkeypatch.setattr(kallsyms, "KALLSYMS", self.kallsyms)
        monkeypatch.setattr(kallsyms, "TRACEFS", (folder / "nowhere", self.tracefs))

    def symbols(self, text: str) -> None:
        self.kallsyms.write_text("".join(f"{line}\n" for line in text.split("; ")))

    def traceable(self, text: str, addresses: str = "") -> None:
        self.tracefs.mkdir(exist_ok=True)
        (self.tracefs / "available_filter_functions").write_text(
            "".join(f"{line}\n" for line in text.split("; "))
        )
        if addresses:
            lines = "".join(f"{line}\n" for line in addresses.split("; "))
            (self.tracefs / "available_filter_functions_addrs").write_text(lines)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Kernel:
    return _Kernel(tmp_path, monkeypatch)


def _blob(*names: str) -> tuple[Blob, int]:
    blob = Blob()
    skb = blob.pointer(blob.struct("sk_buff"))
    for name in names:
        blob.function(name, 0, ("skb", skb))
    return blob, skb


def _table(blob: Blob, **modules: Blob) -> FunctionTable:
    base = TypeTable(blob.bytes())
    tables = {name: TypeTable(module.bytes(), base=base) for name, module in modules.items()}
    return build_table({"vmlinux": base, **tables})


class TestTable:
    def test_only_what_ftrace_can_trace(self, kernel: _Kernel) -> None:
        kernel.symbols("ffffffff81000010 T ip_rcv; ffffffff81000020 t inlined; ffffffff81000030 d ip_rcv")
        kernel.traceable("ip_rcv; something_else")
        table = _table(_blob("ip_rcv", "inlined")[0])
        (only,) = table.functions
        assert (only.name, only.module, only.address) == ("ip_rcv", "vmlinux", 0xFFFFFFFF81000010)
        assert only.arguments == (Argument(0, ArgumentKind.SKB),)
        assert only.prototype == "void ip_rcv(struct sk_buff *skb)"
        assert list(table.left_out) == ["inlined"]
        assert table.source.endswith("tracing/available_filter_functions")

    def test_tracepoint_machinery_is_left_out_unsaid(self, kernel: _Kernel) -> None:
        names = [
            "__probestub_kfree_skb",
            "__traceiter_kfree_skb",
            "__bpf_trace_kfree_skb",
            "perf_trace_x",
            "tracer",
        ]
        kernel.traceable("; ".join(names))
        table = _table(_blob(*names)[0])
        assert [one.name for one in table.functions] == ["tracer"]
        assert not table.left_out

    def test_namesakes_by_address(self, kernel: _Kernel) -> None:
        kernel.symbols("ffffffff81000040 t twin; ffffffff81000020 t twin")
        kernel.traceable("twin; twin")
        table = _table(_blob("twin")[0])
        assert [one.address for one in table.functions] == [0xFFFFFFFF81000020, 0xFFFFFFFF81000040]
        # A trampoline is asked for by name, and the kernel takes the first.
        assert [one.trampoline for one in table.functions] == [True, False]

    def test_one_namesake_that_ftrace_can_trace(self, kernel: _Kernel) -> None:
        kernel.symbols("ffffffff81000020 t twin; ffffffff81000040 t twin")
        kernel.traceable("twin", addresses="ffffffff81000044 twin")
        table = _table(_blob("twin")[0])
        assert [one.address for one in table.functions] == [0xFFFFFFFF81000040]

    def test_namesakes_with_other_arguments(self, kernel: _Kernel) -> None:
        """Nothing says which prototype belongs to which address, so neither is guessed."""
        blob, skb = _blob("alike", "alike", "differs")
        name = blob.name("with_socket")
        blob.function("differs", 0, ("mode", blob.integer("int", 4)), ("skb", skb))
        blob.function(name, 0, ("skb", skb))
        blob.function(name, 0, ("sk", blob.pointer(blob.struct("sock"))))
        kernel.traceable("alike; alike; differs; differs; with_socket; with_socket")
        table = _table(blob)
        assert [one.name for one in table.functions] == ["alike"]
        assert set(table.left_out) == {"differs", "with_socket"}

    def test_the_argument_that_holds_the_packet_when_the_function_begins(self, kernel: _Kernel) -> None:
        blob = Blob()
        skb, xdp, frame = (blob.pointer(blob.struct(name)) for name in ("sk_buff", "xdp_buff", "xdp_frame"))
        place = blob.pointer(skb)
        functions = {
            "only_buffer": (("xdp", xdp),),
            "buffer_of_skb": (("xdp", xdp), ("pskb", place)),
            "skb_of_frame": (("skb", skb), ("frame", frame)),
            "frame_of_buffer": (("frame", frame), ("xdp", xdp)),
            "first_skb": (("pskb", place), ("skb", skb)),
        }
        for name, parameters in functions.items():
            blob.function(name, 0, *parameters)
        kernel.traceable("; ".join(functions))
        chosen = {one.name: one.packet and one.packet.kind for one in _table(blob).functions}
        assert chosen == {
            "only_buffer": ArgumentKind.XDP_BUFF,
            "buffer_of_skb": ArgumentKind.SKB_POINTER,
            "skb_of_frame": ArgumentKind.XDP_FRAME,
            "frame_of_buffer": ArgumentKind.XDP_BUFF,
            "first_skb": ArgumentKind.SKB_POINTER,
        }

    def test_what_a_function_fills_is_no_packet_yet(self, kernel: _Kernel) -> None:
        """On the stack it may hold the packet before, whole and plausible."""
        blob = Blob()
        skb = blob.pointer(blob.struct("sk_buff"))
        xdp = blob.pointer(blob.struct("xdp_buff"))
        blob.function("prepare_reply", 0, ("skbp", blob.pointer(skb)))
        blob.function("mlx5e_fill_mxbuf", 0, ("xdp", xdp))
        blob.function("__skb_try_recv_datagram", skb, ("last", blob.pointer(skb)))
        kernel.traceable("prepare_reply; mlx5e_fill_mxbuf; __skb_try_recv_datagram")
        table = _table(blob)
        (only,) = table.functions
        assert (only.name, only.packet, only.returns_skb) == ("__skb_try_recv_datagram", None, True)
        assert set(table.left_out) == {"prepare_reply", "mlx5e_fill_mxbuf"}

    def test_modules(self, kernel: _Kernel) -> None:
        blob, skb = _blob("ip_rcv")
        module = Blob(blob)
        module.function("veth_xmit", 0, ("skb", skb))
        module.function("ip_rcv", 0, ("skb", skb))
        kernel.symbols(
            "ffffffff81000010 T ip_rcv; ffffffffc0000010 t veth_xmit\t[veth]; "
            "ffffffffc0000020 t ip_rcv\t[veth]"
        )
        kernel.traceable("ip_rcv; veth_xmit [veth]")
        table = _table(blob, veth=module)
        assert [(one.module, one.name) for one in table.functions] == [
            ("vmlinux", "ip_rcv"),
            ("veth", "veth_xmit"),
        ]
        assert list(table.left_out) == ["ip_rcv [veth]"]

    def test_without_tracefs_trampolines_decide(self, kernel: _Kernel) -> None:
        blob, skb = _blob("ip_rcv", "no_code", "boot")
        blob.function("variable", 0, ("skb", skb), ("", 0))
        kernel.symbols(
            "ffffffff81000010 T ip_rcv; ffffffff81000020 T variable; "
            "ffffffff82000000 T _sinittext; ffffffff82000010 t boot; ffffffff82000020 T _einittext"
        )
        table = _table(blob)
        assert [one.name for one in table.functions] == ["ip_rcv"]
        assert set(table.left_out) == {"no_code", "variable", "boot"}
        assert "not mounted" in table.source

    def test_hidden_addresses(self, kernel: _Kernel) -> None:
        kernel.symbols(
            "0000000000000000 T ip_rcv; 0000000000000000 T _sinittext; 0000000000000000 T _einittext"
        )
        kernel.traceable("ip_rcv")
        (only,) = _table(_blob("ip_rcv")[0]).functions
        assert only.address == 0
        assert only.trampoline


class TestChoice:
    @pytest.fixture
    def table(self, kernel: _Kernel) -> FunctionTable:
        blob, skb = _blob("ip_rcv", "ip_output", "tcp_v4_rcv", "dst_output")
        module = Blob(blob)
        module.function("veth_xmit", 0, ("skb", skb))
        kernel.traceable("ip_rcv; ip_output; tcp_v4_rcv; veth_xmit [veth]")
        return _table(blob, veth=module)

    @pytest.mark.parametrize(
        ("patterns", "exclude", "names"),
        [
            ([], [], "ip_output ip_rcv tcp_v4_rcv veth_xmit"),
            (["ip_*"], [], "ip_output ip_rcv"),
            (["ip_rcv"], [], "ip_rcv"),
            (["/rcv$/"], [], "ip_rcv tcp_v4_rcv"),
            (["/^tcp_v[46]/", "veth_*"], [], "tcp_v4_rcv veth_xmit"),
            (["module:veth"], [], "veth_xmit"),
            (["module:*"], ["module:vmlinux"], "veth_xmit"),
            (["ip_*", "/rcv/"], ["ip_out*"], "ip_rcv tcp_v4_rcv"),
        ],
    )
    def test_patterns(
        self, table: FunctionTable, patterns: list[str], exclude: list[str], names: str
    ) -> None:
        assert " ".join(one.name for one in table.select(patterns, exclude)) == names

    @pytest.mark.parametrize(
        ("pattern", "text"),
        [
            ("ip_rvc", "did you mean ip_rcv"),
            ("udp_*", "no function of this kernel"),
            ("dst_output", "can't be traced: ftrace can't"),
            ("module:nf_tables", r"of veth, vmlinux"),
            ("/(/", "not a regular expression"),
        ],
    )
    def test_no_match_is_an_error(self, table: FunctionTable, pattern: str, text: str) -> None:
        with pytest.raises(UsageError, match=text):
            table.select(["ip_rcv", pattern])
