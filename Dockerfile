# Two stages: the first has compilers and makes the package, the second has what a capture needs and no more.
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
# Without pip inside, and at the path it has in the second stage: an environment can't be moved.
RUN python3 -m venv --without-pip /opt/packet-tracer \
 && pip --python /opt/packet-tracer install --no-cache-dir .

FROM docker.io/library/debian:${DEBIAN}-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends iproute2 kmod libelf1 libpcap0.8 nftables python3 zlib1g \
 && rm -rf /var/lib/apt/lists/*
COPY --from=builder /opt/packet-tracer /opt/packet-tracer
RUN ln -s /opt/packet-tracer/bin/ptrace /usr/local/bin/ptrace
ENTRYPOINT ["ptrace"]
