# The same image as `cargo xtask image` makes, for those who build with a container engine:
#   docker build -t orb8-agent .
# The eBPF programs come compiled, so stable Rust is all it takes.
FROM rust:1-bookworm AS build
WORKDIR /orb8
# First, so that a change of the sources does not fetch the toolchain anew.
COPY rust-toolchain.toml .
RUN rustup show
COPY . .
# Nothing of where this is built gets into the programs.
ENV RUSTFLAGS=--remap-path-prefix=/orb8=.
# With the C library that they are linked with: a static program cannot load NVML.
RUN cargo build --locked --release --package orb8-image --bin orb8-programs \
    && mkdir -p /image/lib64 /image/usr \
    && cp target/release/orb8-programs /image/ \
    && for name in orb8-agent orb8-server orb8; do ln -s orb8-programs "/image/$name"; done \
    && ln -s lib64 /image/lib && ln -s ../lib64 /image/usr/lib && ln -s ../lib64 /image/usr/lib64 \
    && case "$(uname -m)" in x86_64) start=ld-linux-x86-64.so.2 ;; *) start=ld-linux-aarch64.so.1 ;; esac \
    && for name in "$start" libc.so.6 libgcc_s.so.1 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1; do \
        cp --dereference "$(cc -print-file-name="$name")" /image/lib64/; done

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
