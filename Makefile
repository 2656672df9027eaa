# Everything here works on a fresh machine with Go and make only: Postgres, Redis and Node.js are found, or installed after
# saying so, and run privately. DATABASE_URL and REDIS_URL, when set, are used instead. Go modules come as usual.

# Packages whose goroutines meet most; `make ci` runs them under the race detector.
CORE = ./wire/... ./stream/... ./outbox/... ./worker/... ./broadcaster/...

# Longer than any package needs on a busy machine; a hang shows its goroutines before CI gives up.
TIMEOUT = 25m

UP = go run ./internal/services/up

.DEFAULT_GOAL := help
.PHONY: help demo seatmap test race lint build reproducible sbom audit bench attack chaos gameday pictures ci

help: ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Run the live demonstration and say where to look
	@go run ./cmd/demo

seatmap: ## Run the example of a React seat map (examples/seatmap)
	@$(UP) --node -- examples/seatmap/run.sh

test: ## Run all tests, against real Postgres, Redis and a browser
	@$(UP) --browser --node -- go test -count=1 -timeout=$(TIMEOUT) ./...

race: ## Run all tests under the race detector
	@$(UP) --browser --node --compiler -- go test -race -count=1 -timeout=$(TIMEOUT) ./...

lint: ## Check format, go vet, staticcheck, TypeScript's types and the modules' checksums
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt -w these:"; echo "$$unformatted"; exit 1; }
	@go vet ./...
	@go tool staticcheck ./...
	@go test -count=1 -run '^TestTypes$$' ./client/ts
	@go mod verify

# A binary depends on the source and the toolchain alone: no paths, no C compiler; the commit is stamped into it.
BUILD = CGO_ENABLED=0 go build -trimpath -buildvcs=true -ldflags=-buildid=

build: ## Build bin/commitcast, the same from the same source
	@$(BUILD) -o bin/commitcast ./cmd/commitcast

reproducible: ## Build the last commit in two folders, and compare
	@set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	for copy in one another/place; do git clone -q . "$$work/$$copy"; (cd "$$work/$$copy" && $(BUILD) -o bin/commitcast ./cmd/commitcast); done; \
	cmp "$$work/one/bin/commitcast" "$$work/another/place/bin/commitcast"; sha256sum < "$$work/one/bin/commitcast"

sbom: build ## Write bin/commitcast.sbom.json: each module in the binary, its version and checksum
	@go version -m -json bin/commitcast > bin/commitcast.sbom.json

audit: ## Look for known weaknesses in what is called; asks vuln.go.dev
	@go run golang.org/x/vuln/cmd/govulncheck@latest ./...

bench: ## Measure throughput and latency (QUICK=1: one short round; CURVES=1: growth, with plots; HOPS="pipeline writers": some parts)
	@QUICK=$(QUICK) CURVES=$(CURVES) HOPS="$(HOPS)" $(UP) -- go run ./internal/bench

# The attackers get half of the cores, and nothing else runs there.
HALF = taskset -c 0-$$(( ($$(nproc) + 1) / 2 - 1 ))

attack: ## Measure what attackers do to honest clients (ARGS=-h shows all)
	@$$(command -v taskset >/dev/null && test $$(nproc) -gt 1 && echo "$(HALF)") $(UP) -- go run ./internal/attack $(ARGS)

chaos: ## Break everything, and look for a lost or wrong event (ARGS="-rounds 50"; ARGS=-h shows all)
	@go run ./internal/chaos $(ARGS)

gameday: ## Break a system in eleven ways; see which alert fires, what names the cause, and that the runbook cures it (ARGS="-run /redis")
	@go test -count=1 -v -timeout=30m -run '^TestGameday$$' ./internal/gameday -all $(ARGS)

pictures: ## Take the pictures of README.md again, on an idle machine
	@$(UP) --browser -- go test -count=1 -run '^TestPictures$$' ./cmd/demo -pictures

# Mutants build and run binaries of their own, without the race detector: once is enough.
ci: lint test ## What has to pass: lint, all tests, the core under the race detector
	@$(UP) --compiler -- go test -race -count=1 -timeout=$(TIMEOUT) -skip 'Mutants$$' $(CORE)
