package wire

import (
	"crypto/md5"
	"encoding/binary"
	"fmt"
)

// The limits of the protocol. The same numbers stand as CHECK constraints in migrations/ and in package outbox; a
// test holds the three together.
const (
	// MaxTopicLen is the longest topic name, in bytes: fits an index entry and a log line.
	MaxTopicLen = 128
	// MaxLabelLen is the longest event type or key, in bytes.
	MaxLabelLen = 128
	// MaxData is the largest data of one event, in bytes of JSON text. It keeps a journal batch and a socket write
	// small enough to be a latency, not an outage; larger things belong behind a link.
	MaxData = 256 << 10
	// MaxClientFrame is the largest message a client may send, in bytes. Tokens are the largest thing clients send.
	MaxClientFrame = 8 << 10
	// TokenProtocol begins an entry of a handshake's subprotocols that holds a token, for clients that can set no other
	// header. It is never chosen.
	TokenProtocol = "commitcast.token."
	// MaxInteger bounds offsets and event ids: the largest integer that every JSON parser keeps exact (2^53 - 1).
	MaxInteger = 1<<53 - 1
	// Partitions is the number of partitions topics hash to. Fixed: it is stored with each topic.
	Partitions = 32
)

// TopicPattern is the regular expression of a topic name, as it appears in error messages and in SQL.
const TopicPattern = `^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$`

// ValidTopic reports whether name matches [TopicPattern].
func ValidTopic(name string) bool {
	if len(name) == 0 || len(name) > MaxTopicLen {
		return false
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == ':' || c == '/' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// CheckTopic is [ValidTopic] as an error for the peer.
func CheckTopic(name string) error {
	if ValidTopic(name) {
		return nil
	}
	return &Error{Code: CodeBadTopic, Message: fmt.Sprintf("topic %q does not match %s", clip(name), TopicPattern)}
}

// Partition is the partition that a topic hashes to: the first two bytes of its MD5, big-endian, modulo
// [Partitions]. commitcast.partition_of in SQL computes the same.
func Partition(topic string) int {
	sum := md5.Sum([]byte(topic))
	return int(binary.BigEndian.Uint16(sum[:2])) % Partitions
}

// clip shortens s for an error message.
func clip(s string) string {
	if len(s) <= MaxTopicLen+16 {
		return s
	}
	return s[:MaxTopicLen+16] + "…"
}
