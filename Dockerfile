# The same image as `cargo xtask image` makes, for those who build with a container engine:
#   docker build -t orb8-agent .
# The eBPF programs come compiled, so stable Rust is all it takes.
FROM rust:1-bookworm AS build
# Some dependencies have C in them, which is to be compiled against musl.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends musl-tools \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /orb8
# First, so that a change of the sources does not fetch the toolchain anew.
COPY rust-toolchain.toml .
RUN rustup target add "$(uname -m)-unknown-linux-musl"
COPY . .
# Nothing of where this is built gets into the programs.
ENV TARGET_CC=musl-gcc RUSTFLAGS=--remap-path-prefix=/orb8=.
RUN target="$(uname -m)-unknown-linux-musl" \
    && cargo build --locked --release --target "$target" \
        --package orb8-image --bin orb8-programs \
    && mkdir /image \
    && cp "target/$target/release/orb8-programs" /image/ \
    && for name in orb8-agent orb8-server orb8; do ln -s orb8-programs "/image/$name"; done

FROM scratch
# `--build-arg VERSION=…` for another one than the workspace's.
ARG VERSION=0.1.0
LABEL org.opencontainers.image.source="https://github.com/orb8/orb8" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/ /
ENV PATH=/
WORKDIR /
ENTRYPOINT ["/orb8-agent"]
