package stream

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// ErrRedisTooOld is wrapped by the error of [NewRedis], and of everything that uses a server that turned out too old
// later, when Redis is older than 7.0, which brought sharded Pub/Sub and what the scripts need.
var ErrRedisTooOld = errors.New("redis is older than 7.0")

// ErrRefused is wrapped by the error of [NewRedis] when Redis answers but does not let us in: a wrong password, a
// missing one, a user without the right to ask for INFO. Or when we do not let it: its certificate is of nobody we trust, or
// for another name.
var ErrRefused = errors.New("redis refused the connection")

// unavailableCodes are the first words of error replies that say something about the server and nothing about the run.
var unavailableCodes = map[string]bool{
	"LOADING": true, "OOM": true, "READONLY": true, "CLUSTERDOWN": true, "MASTERDOWN": true, "TRYAGAIN": true,
	"MOVED": true, "ASK": true, "NOREPLICAS": true, "MISCONF": true, "BUSY": true, "UNKILLABLE": true, "NOSCRIPT": true,
	"NOAUTH": true, "WRONGPASS": true,
}

// isUnavailable reports whether err, the error of one command, says nothing about what was published: anything that
// is not an error reply (the connection broke, a deadline passed), and the replies above.
func isUnavailable(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return true
	}
	text := strings.TrimPrefix(reply.Error(), "ERR ")
	code, rest, _ := strings.Cut(text, " ")
	switch {
	case unavailableCodes[code]:
		return true
	case code == "NOPERM":
		// No right to run scripts at all is a fault of the set-up, for every run; no right to a key, a channel or
		// SPUBLISH is told as the error of the run it hit.
		return strings.Contains(rest, "'eval")
	default:
		return strings.HasPrefix(text, "max number of clients")
	}
}

// unavailable wraps err as ErrUnavailable, with what was being done.
func unavailable(doing string, err error) error {
	return fmt.Errorf("%s: %w: %w", doing, ErrUnavailable, err)
}
