#!/bin/sh
# Migrates DATABASE_URL, starts Commitcast, bundles the page, and serves it: `make seatmap` calls this.
set -e
cd "$(dirname "$0")/../.."
test -d client/ts/node_modules/react-dom || npm ci --silent --prefix client/ts
node client/ts/scripts/example.mjs examples/seatmap
go build -o "${TMPDIR:-/tmp}/" ./cmd/commitcast
"${TMPDIR:-/tmp}/commitcast" migrate up
"${TMPDIR:-/tmp}/commitcast" all --auth=off &
trap 'kill $!' EXIT INT TERM
go run ./examples/seatmap
