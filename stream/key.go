package stream

import (
	"fmt"
	"strconv"

	"github.com/commitcast/commitcast/wire"
)

// tickKey is the channel of the probe: that of partition 0, which is enough where there is one server, or that of each
// partition in a cluster. No topic's key can be the same: an epoch always holds a dash.
func tickKey(partition int) string { return "cc:{p" + strconv.Itoa(partition) + "}:tick" }

// key is the name of ch in Redis, for its Stream and its Pub/Sub channel alike. The partition is the hash tag, so that
// a cluster keeps both on one node; a topic cannot hold braces, so it cannot make a tag of its own.
func (ch Channel) key() string {
	b := make([]byte, 0, len("cc:{p31}::")+len(ch.Epoch)+len(ch.Topic))
	b = append(b, "cc:{p"...)
	b = strconv.AppendInt(b, int64(ch.Partition), 10)
	b = append(b, "}:"...)
	b = append(b, ch.Epoch...)
	b = append(b, ':')
	b = append(b, ch.Topic...)
	return string(b)
}

// check says what is wrong with the name of ch.
func (ch Channel) check() error {
	switch {
	case !wire.ValidEpoch(ch.Epoch):
		return fmt.Errorf("stream: %q is not an epoch", ch.Epoch)
	case !wire.ValidTopic(ch.Topic):
		return fmt.Errorf("stream: %q is not a topic", ch.Topic)
	case ch.Partition < 0 || ch.Partition >= wire.Partitions:
		return fmt.Errorf("stream: partition %d is not in 0..%d", ch.Partition, wire.Partitions-1)
	}
	return nil
}
