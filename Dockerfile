# syntax=docker/dockerfile:1
# The program alone: it is static, and works with servers of its own (docker-compose.yml). To run everything embedded in a container, PostgreSQL's programs
# would have to be in the image, which they are not.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS TARGETARCH VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /out/musique ./cmd/musique && mkdir /out/data

# It has the certificates of authorities, a folder /tmp, and a user who is not root; no shell.
FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/musique /musique
COPY --from=build --chown=65532:65532 /out/data /data
ENV MUSIQUE_DATA_DIR=/data MUSIQUE_HTTP_ADDR=0.0.0.0:8080 MUSIQUE_LOG_FORMAT=json
VOLUME /data
EXPOSE 8080 9090
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["/musique", "health"]
ENTRYPOINT ["/musique"]
CMD ["serve"]
