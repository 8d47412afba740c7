"""The bits of a record's ``flags`` as plain integers.

:class:`EventFlags` names the same bits for those who read them; its ``&`` takes a hundred times as long as an
int's, which counts where every event asks.
"""

from packet_tracer.events._layout import EventFlags

LINK_HEADER = int(EventFlags.LINK_HEADER)
IP = int(EventFlags.IP)
PORTS = int(EventFlags.PORTS)
TCP = int(EventFlags.TCP)
ICMP = int(EventFlags.ICMP)
ARP = int(EventFlags.ARP)
FRAGMENT = int(EventFlags.FRAGMENT)
VLAN = int(EventFlags.VLAN)
VLAN_IN_METADATA = int(EventFlags.VLAN_IN_METADATA)
DROP_REASON = int(EventFlags.DROP_REASON)
DROP_LOCATION = int(EventFlags.DROP_LOCATION)
VERDICT = int(EventFlags.VERDICT)
NO_PACKET = int(EventFlags.NO_PACKET)
ENCAPSULATED = int(EventFlags.ENCAPSULATED)
FIRST_SIGHT = int(EventFlags.FIRST_SIGHT)
FOLLOWED = int(EventFlags.FOLLOWED)
BYTES_MISSING = int(EventFlags.BYTES_MISSING)
MERGED = int(EventFlags.MERGED)
XDP = int(EventFlags.XDP)
OUTSIDE_TRANSMIT = int(EventFlags.OUTSIDE_TRANSMIT)
SHARED = int(EventFlags.SHARED)
