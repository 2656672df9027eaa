// Caddy with as much of it as proxy/Caddyfile and its test take, for `internal/e2e` TestProxies: Debian 12 has no package of it.
//
//	go -C ops/deploy/check/caddy build -o /tmp/caddy . && CADDY_BIN=/tmp/caddy go test ./internal/e2e -run TestProxies
//	/tmp/caddy validate --config ops/deploy/proxy/Caddyfile
//
// It is a module of its own: two minutes of CPU to build, and nothing of it is a dependency of Commitcast.
package main

import (
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/proxyprotocol"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
)

func main() { caddycmd.Main() }
