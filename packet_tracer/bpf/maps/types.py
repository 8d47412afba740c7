"""From a map's BTF ids to the codecs of its keys and values."""

from __future__ import annotations

import errno
from contextlib import suppress
from functools import lru_cache
from typing import Any

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.btf import Btf
from packet_tracer.bpf.errors import BtfError, describe
from packet_tracer.bpf.maps.codecs import Bytes, Codec
from packet_tracer.bpf.maps.codecs.btf import BtfCodecs
from packet_tracer.bpf.maps.errors import CodecError
from packet_tracer.bpf.maps.generic import Map


def map_btf(map: Map) -> Btf | None:  # noqa: A002
    """Return the types a map was made with; None where it has none, or they may not be read.

    Reading them by id needs CAP_SYS_ADMIN, more than using the map does. Raises BtfError.
    """
    return _types(map.btf_id)[0] if map.btf_id else None


def map_codec(map: Map, type_id: int, size: int) -> Codec[Any]:  # noqa: A002
    """Return the codec of a type of the map's BTF, or of ``size`` plain bytes where it says nothing."""
    if map.btf_id and type_id:
        _, codecs = _types(map.btf_id)
        if codecs is not None:
            return codec_of_type(codecs, type_id, size)
    return Bytes(size)


def codec_of_type(codecs: BtfCodecs, type_id: int, size: int) -> Codec[Any]:
    """Return the codec of a type that is ``size`` bytes long, of plain bytes where it is no such value."""
    with suppress(CodecError):  # what BTF describes need not be a value: a function, a forward
        codec = codecs.codec(type_id)
        if codec.size == size:
            return codec
    return Bytes(size)


@lru_cache(maxsize=64)  # ids are not reused before 2**31 others
def _types(btf_id: int) -> tuple[Btf, BtfCodecs] | tuple[None, None]:
    handle = lib.btf__load_from_kernel_by_id(btf_id)
    if not handle:
        number = ffi.errno
        if number in (errno.EPERM, errno.EACCES):
            return None, None
        raise BtfError(f"BTF {btf_id} cannot be read: {describe(number)}", errno=number)
    btf = Btf(ffi.gc(handle, lib.btf__free), name=f"BTF {btf_id}")
    return btf, BtfCodecs(btf)
