# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
# `yes`: built by a profile of the server under load (deploy/build). `no`: without one, in less than half the time.
ARG TRAINED=yes
# What deploy/build needs.
RUN case "$TRAINED" in \
      yes) apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server >/dev/null && rustup component add llvm-tools ;; \
      no) ;; \
      *) echo "TRAINED is yes or no, not $TRAINED" >&2; exit 1 ;; \
    esac
WORKDIR /src
COPY . .
# Dependencies are cached by BuildKit mounts rather than by a layer made of dummy sources: a changed Cargo.toml then
# rebuilds only what changed, and nothing has to follow the list of targets in Cargo.toml. The mounts stay on this
# builder: a fresh CI machine compiles everything once.
# touch: Cargo goes by time stamps, and an older checkout must not pass for the build that is in the cache.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    touch src/lib.rs src/main.rs \
    && if [ "$TRAINED" = yes ]; then built=trained; deploy/build; else built=release; cargo build --release --locked --bin ratelimitd; fi \
    && mkdir /out \
    && cp "target/$built/ratelimitd" /out/ \
    && ln -s ratelimitd /out/ratelimit

# glibc and CA certificates, no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
# /bin/ratelimit is the same program, for manifests that were written for envoyproxy/ratelimit.
COPY --from=build /out/ /bin/
# Without --config and RUNTIME_ROOT the rules are read from config/, here /config: mount your own over these samples.
COPY config/ /config/
WORKDIR /
USER 65532:65532
# HTTP, gRPC, metrics.
EXPOSE 8080 8081 9090
ENTRYPOINT ["/bin/ratelimitd"]
