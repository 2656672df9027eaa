package wire

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// Types of events that begin with ReservedTypes are the system's own: no writer can append one.
const (
	ReservedTypes = "commitcast."
	TypeRevoke    = "commitcast.revoke"  // data holds the subject that may read the topic no longer
	TypeRestore   = "commitcast.restore" // … and again
)

// Fence is a frame that travels from worker to broadcaster as an event's does, and no further: the offset from which on a
// subject may not read its topic, or may again. Who it is not about gets [Fence.AppendSkip] in its place.
type Fence struct {
	Topic   string `json:"topic"`
	Epoch   string `json:"epoch"` // the epoch in which it was sequenced
	Offset  int64  `json:"offset"`
	ID      int64  `json:"id"`
	Subject string `json:"subject"`
	Revoked bool   `json:"revoked"`
}

// fenceMark is where the op of a finished frame begins, and of all ops only that of a fence begins with an f.
const fenceMark = len(`{"op":"`)

// IsFence tells a fence from the frame of an event, by one byte.
func IsFence(frame []byte) bool { return len(frame) > fenceMark && frame[fenceMark] == 'f' }

// AppendFence appends a fence.
func AppendFence(dst []byte, f *Fence) []byte {
	dst = append(dst, `{"op":"fence","topic":`...)
	dst = appendString(dst, f.Topic)
	dst = append(dst, `,"epoch":`...)
	dst = appendString(dst, f.Epoch)
	dst = append(dst, `,"offset":`...)
	dst = strconv.AppendInt(dst, f.Offset, 10)
	dst = append(dst, `,"id":`...)
	dst = strconv.AppendInt(dst, f.ID, 10)
	dst = append(dst, `,"subject":`...)
	dst = appendString(dst, f.Subject)
	dst = append(dst, `,"revoked":`...)
	dst = strconv.AppendBool(dst, f.Revoked)
	return append(dst, '}')
}

// ParseFence reads a frame that [IsFence].
func ParseFence(frame []byte) (Fence, error) {
	raw := struct {
		Op string `json:"op"`
		Fence
	}{}
	if err := json.Unmarshal(frame, &raw); err != nil {
		return Fence{}, fmt.Errorf("wire: fence: %w", err)
	}
	f := raw.Fence
	if raw.Op != "fence" || !ValidTopic(f.Topic) || !ValidEpoch(f.Epoch) || f.Subject == "" ||
		f.Offset < 1 || f.Offset > MaxInteger || f.ID < 0 || f.ID > MaxInteger {
		return Fence{}, fmt.Errorf("wire: fence: something of it is missing, or cannot be")
	}
	return f, nil
}

// AppendSkip appends the frame that a subscriber is shown in place of the fence.
func (f *Fence) AppendSkip(dst []byte) []byte {
	return AppendSkip(dst, f.Topic, f.Epoch, f.Offset, f.ID)
}
