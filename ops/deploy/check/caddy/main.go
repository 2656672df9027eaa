// Caddy with as much of it as proxy/Caddyfile and its test take, for `internal/e2e` TestProxies, which builds it: Debian 12 has an older one.
//
//	go -C ops/deploy/check/caddy build -o /tmp/caddy . && /tmp/caddy validate --config ops/deploy/proxy/Caddyfile
//
// It is a module of its own, so that nothing of it is a dependency of Commitcast.
package main

import (
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/proxyprotocol"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
)

func main() { caddycmd.Main() }
