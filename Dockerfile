# The image of all of Bowline's pods: the driver, the sidecars of the CSI project,
# and the file system tools that the driver calls; and the kubectl plugin, for jobs.
#
#   docker build --build-arg VERSION=v1.2.3 --tag bowline:v1.2.3 .
#
# builds everything in the image. `make image` builds the programs outside,
# where compiled packages are kept, and passes PROGRAMS=host: then they come from
# bin/image, and the Go image is not needed.
ARG PROGRAMS=build

FROM golang:1.26-bookworm AS build
WORKDIR /src
# The sidecars change seldom and take long, so they have layers of their own.
COPY hack/image hack/image
COPY hack/sidecars hack/sidecars
RUN hack/image/programs.sh /out sidecars
COPY go.mod go.sum ./
RUN go mod download
COPY api api
COPY cmd cmd
COPY controllers controllers
COPY driver driver
ARG VERSION=unknown
RUN hack/image/programs.sh /out bowline "$VERSION"

FROM scratch AS host
COPY bin/image /out

FROM ${PROGRAMS} AS programs

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends e2fsprogs mount util-linux xfsprogs \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*
COPY --from=programs /out/ /usr/local/bin/
ARG VERSION=unknown
LABEL org.opencontainers.image.title="Bowline" \
      org.opencontainers.image.description="CSI driver for node-local volumes that can be checkpointed and rolled back in place" \
      org.opencontainers.image.source="https://github.com/bowline-csi/bowline" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
# The node's part and the data plane mount file systems and make loop devices,
# so they are root; the chart gives the controller another user.
ENTRYPOINT ["bowline"]
