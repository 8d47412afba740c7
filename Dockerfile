# Two stages: the first has compilers and makes the wheel, the second has what a capture needs and no more.
#
#   docker build -t packet-tracer .
#   docker run --rm --privileged --pid=host --network=host packet-tracer capture -i eth0
ARG DEBIAN=trixie

FROM docker.io/library/debian:${DEBIAN}-slim AS builder
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      ca-certificates clang gcc libc6-dev libelf-dev llvm make python3-dev python3-pip python3-venv zlib1g-dev
WORKDIR /src
COPY . .
# The wheels of the dependencies too, so that the second stage needs no network but apt's.
RUN python3 -m venv /venv && /venv/bin/pip wheel --wheel-dir /wheels .

FROM docker.io/library/debian:${DEBIAN}-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends iproute2 kmod libelf1 libpcap0.8 nftables python3 python3-venv zlib1g \
 && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=builder,source=/wheels,target=/wheels \
    python3 -m venv /opt/packet-tracer \
 && /opt/packet-tracer/bin/pip install --no-cache-dir --no-index --find-links /wheels packet-tracer \
 && ln -s /opt/packet-tracer/bin/ptrace /usr/local/bin/ptrace \
 && ptrace --version
ENTRYPOINT ["ptrace"]
