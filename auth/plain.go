package auth

import (
	"net/netip"
	"net/url"
	"strings"
)

// CheckURL says why a service that is trusted may not be asked at an address: "" if it may. What it answers, and what it is
// told, whoever is on the way could change and read: so https, or http on this machine, or plain if somebody insists.
func CheckURL(text string, plain bool) (why string) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return "must begin with https:// or http://"
	case u.Scheme == "http" && !plain && !onThisMachine(u.Hostname()):
		return "must be https, or http on this machine: whoever is on the way could decide instead"
	}
	return ""
}

func onThisMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.IsLoopback()
}
