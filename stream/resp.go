package stream

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// The subscription speaks RESP2 itself, a very small part of it: see redisConn for why.

// maxBulk is the largest string accepted from a subscription: a message with its header. Larger is not ours, and the
// connection cannot be trusted.
const maxBulk = MaxMessageBytes + MaxFrameBytes + 1<<10

var errProtocol = errors.New("stream: not a reply that a subscription expects")

// push is one thing that Redis says to a subscriber: ssubscribe, sunsubscribe, smessage or pong.
type push struct {
	kind    string
	channel string
	payload []byte // smessage only; a buffer of its own
}

// replyError is an error reply.
type replyError string

func (e replyError) Error() string { return string(e) }

// readPush reads the next push. An error reply is a replyError; after any other error the connection is lost.
func readPush(br *bufio.Reader) (push, error) {
	kind, n, err := readHead(br)
	if err != nil {
		return push{}, err
	}
	if kind == '+' {
		return push{kind: "pong"}, nil // outside of subscribe mode a ping is answered with +PONG
	}
	if kind != '*' || n < 2 || n > 3 {
		return push{}, errProtocol
	}
	name, err := readBulk(br)
	if err != nil {
		return push{}, err
	}
	channel, err := readBulk(br)
	if err != nil {
		return push{}, err
	}
	p := push{kind: string(name), channel: string(channel)}
	switch {
	case p.kind == "pong" && n == 2:
		return p, nil
	case p.kind == "smessage" && n == 3:
		p.payload, err = readBulk(br)
		return p, err
	case (p.kind == "ssubscribe" || p.kind == "sunsubscribe") && n == 3:
		if kind, _, err = readHead(br); err == nil && kind != ':' {
			err = errProtocol
		}
		return p, err
	}
	return push{}, errProtocol
}

// readBulk reads one string; a null one is empty.
func readBulk(br *bufio.Reader) ([]byte, error) {
	kind, n, err := readHead(br)
	if err != nil {
		return nil, err
	}
	if kind != '$' || n > maxBulk {
		return nil, errProtocol
	}
	if n < 0 {
		return nil, nil
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(br, b); err != nil {
		return nil, err
	}
	if b[n] != '\r' || b[n+1] != '\n' {
		return nil, errProtocol
	}
	return b[:n:n], nil
}

// readHead reads one line: the kind of what follows, and its length or value. The line of an error reply is returned
// as a replyError.
func readHead(br *bufio.Reader) (kind byte, n int64, err error) {
	line, err := br.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			err = errProtocol
		}
		return 0, 0, err
	}
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return 0, 0, errProtocol
	}
	kind, line = line[0], line[1:len(line)-2]
	switch kind {
	case '+':
		return kind, 0, nil
	case '-':
		return kind, 0, replyError(line)
	case '*', '$', ':':
		if n, err = strconv.ParseInt(string(line), 10, 64); err != nil {
			return 0, 0, errProtocol
		}
		return kind, n, nil
	}
	return 0, 0, fmt.Errorf("%w: it begins with %q", errProtocol, kind)
}

// appendCommand appends a command.
func appendCommand(dst []byte, args ...string) []byte {
	dst = append(dst, '*')
	dst = strconv.AppendInt(dst, int64(len(args)), 10)
	dst = append(dst, '\r', '\n')
	for _, a := range args {
		dst = append(dst, '$')
		dst = strconv.AppendInt(dst, int64(len(a)), 10)
		dst = append(dst, '\r', '\n')
		dst = append(dst, a...)
		dst = append(dst, '\r', '\n')
	}
	return dst
}
