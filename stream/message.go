package stream

import (
	"bytes"
	"errors"
	"strconv"

	"github.com/commitcast/commitcast/wire"
)

// A message is one header line and then the frames of a run, one a line, with no newline after the last:
//
//	1 3-7d0a41c2 1042 1043 market:42
//	{"op":"event",…}
//	{"op":"event",…}
//
// The header holds version, epoch, first and last offset, and topic. publish.lua writes it. A reader that does not
// know the version must ignore the message, so a new version is understood everywhere before anyone sends it.
const messageVersion = "1"

var errMessage = errors.New("stream: not a message")

// decodeMessage reads a message. The frames are slices of payload. The partition is not part of a message: the channel
// it came through tells.
func decodeMessage(payload []byte) (Run, error) {
	header, body, ok := bytes.Cut(payload, []byte{'\n'})
	if !ok {
		return Run{}, errMessage
	}
	field := bytes.Split(header, []byte{' '})
	if len(field) != 5 || string(field[0]) != messageVersion {
		return Run{}, errMessage
	}
	first, ok1 := parseOffset(field[2])
	last, ok2 := parseOffset(field[3])
	r := Run{Channel: Channel{Epoch: string(field[1]), Topic: string(field[4])}, First: first}
	if !ok1 || !ok2 || last < first || !wire.ValidEpoch(r.Epoch) || !wire.ValidTopic(r.Topic) {
		return Run{}, errMessage
	}
	// The count is compared before anything is made of it: a header may claim any number of frames.
	n := bytes.Count(body, []byte{'\n'}) + 1
	if int64(n) != last-first+1 {
		return Run{}, errMessage
	}
	r.Frames = make([][]byte, 0, n)
	for frame := range bytes.SplitSeq(body, []byte{'\n'}) {
		if len(frame) == 0 {
			return Run{}, errMessage
		}
		r.Frames = append(r.Frames, frame[:len(frame):len(frame)])
	}
	return r, nil
}

// parseOffset reads an offset, 1 to 2^53-1, in its only spelling.
func parseOffset(b []byte) (int64, bool) {
	if len(b) == 0 || b[0] < '1' || b[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	return n, err == nil && n <= wire.MaxInteger
}
