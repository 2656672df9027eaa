# Everything here works on a fresh machine with Go and make only: Postgres, Redis and Node.js are found, or installed after
# saying so, and run privately. DATABASE_URL and REDIS_URL, when set, are used instead. Go modules come as usual.

# Packages whose goroutines meet most; `make ci` runs them under the race detector.
CORE = ./wire/... ./stream/... ./outbox/... ./worker/... ./broadcaster/...

# Longer than any package needs on a busy machine; a hang shows its goroutines before CI gives up.
TIMEOUT = 8m

UP = go run ./internal/services/up

.DEFAULT_GOAL := help
.PHONY: help demo seatmap test race lint bench chaos pictures ci

help: ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

bench: ## Measure throughput and latency (QUICK=1: one short round; CURVES=1: growth, with plots; HOPS="pipeline writers": some parts)
	@QUICK=$(QUICK) CURVES=$(CURVES) HOPS="$(HOPS)" $(UP) -- go run ./internal/bench

chaos: ## Break everything, and look for a lost or wrong event (ARGS="-rounds 50"; ARGS=-h shows all)
	@go run ./internal/chaos $(ARGS)

pictures: ## Take the pictures of README.md again, on an idle machine
	@$(UP) --browser -- go test -count=1 -run '^TestPictures$$' ./cmd/demo -pictures

ci: lint test ## What has to pass: lint, all tests, the core under the race detector
	@$(UP) --compiler -- go test -race -count=1 -timeout=$(TIMEOUT) $(CORE)
