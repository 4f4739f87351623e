# `make help` lists the targets.
SHELL := /bin/bash
BIN := bin/musique
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOLANGCI_LINT_VERSION := v2.15.0
GOVULNCHECK_VERSION := v1.9.0
TEST_FLAGS ?= -race -timeout 20m

.PHONY: help run build player-arm64 player-armv7 player-armv6 test lint vuln bench image fuzz clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

run: build ## build, then serve with everything embedded, on ./data
	@exec $(BIN) serve

build: ## build bin/musique
	@mkdir -p bin
	@CGO_ENABLED=0 go build -trimpath -ldflags "-X main.version=$(VERSION)" -o $(BIN) ./cmd/musique

player-arm64: export GOARCH = arm64
player-arm64: ## bin/musique-linux-arm64, for a Raspberry Pi with a 64-bit system
player-armv7: export GOARCH = arm
player-armv7: export GOARM = 7
player-armv7: ## bin/musique-linux-armv7, for a Raspberry Pi 2 or later with a 32-bit system
player-armv6: export GOARCH = arm
player-armv6: export GOARM = 6
player-armv6: ## bin/musique-linux-armv6, for a Raspberry Pi 1 or Zero
player-arm64 player-armv7 player-armv6:
	@mkdir -p bin
	@GOOS=linux CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/musique-linux-$(@:player-%=%) ./cmd/musique

test: ## every test, with the race detector, on embedded parts
	go test $(TEST_FLAGS) ./...

lint: ## golangci-lint, at the pinned version
	go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION) run ./...

vuln: ## govulncheck, at the pinned version (asks the vulnerability database)
	go run golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION) ./...

bench: build ## the main path's figures, each beside its baseline
	$(BIN) bench

image: ## the container image musique:$(VERSION), for docker-compose.yml (needs Docker)
	docker build --build-arg VERSION=$(VERSION) --tag musique:$(VERSION) .

FUZZTIME ?= 30s
fuzz: ## each fuzz target for FUZZTIME
	@set -e; for pkg in $$(grep -rl --include='*_test.go' 'func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for name in $$(grep -hoE 'func (Fuzz[A-Za-z0-9]+)' $$pkg/*_test.go | awk '{print $$2}'); do \
	    echo "$$pkg $$name"; go test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) $$pkg; done; done

clean: ## remove what was built (not ./data)
	rm -rf bin
