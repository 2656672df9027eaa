package stream

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/commitcast/commitcast/wire"
)

// message is what publish.lua announces for a run.
func message(r Run) []byte {
	b := fmt.Appendf(nil, "1 %s %d %d %s", r.Epoch, r.First, r.Last(), r.Topic)
	for _, f := range r.Frames {
		b = append(append(b, '\n'), f...)
	}
	return b
}

func TestDecodeMessage(t *testing.T) {
	ch := channel("3-7d0a41c2", "market:42")
	for _, r := range []Run{run(ch, 1, 1), run(ch, 1042, 1050), run(ch, wire.MaxInteger, wire.MaxInteger)} {
		got, err := decodeMessage(message(r))
		if err != nil {
			t.Fatal(err)
		}
		got.Partition = ch.Partition
		wantRun(t, got, ch, r.First, r.Last())
	}
	for _, bad := range []string{
		"", "\n", "1", "1 3-7d0a 1 1 t", // no frames
		"1 3-7d0a 1 1 t\n",                           // an empty frame
		"1 3-7d0a 1 2 t\na\n", "1 3-7d0a 1 2 t\n\na", // the same
		"1 3-7d0a 1 2 t\na", "1 3-7d0a 1 1 t\na\nb", // another number of frames
		"1 3-7d0a 1 9007199254740991 t\na",        // far more
		"2 3-7d0a 1 1 t\na", " 1 3-7d0a 1 1 t\na", // another version
		"1 3-7d0a 0 0 t\na", "1 3-7d0a -1 -1 t\na", // offsets
		"1 3-7d0a 01 1 t\na", "1 3-7d0a +1 1 t\na", "1 3-7d0a 1e0 1 t\na", // their spelling
		"1 3-7d0a 2 1 t\na", "1 3-7d0a 9007199254740992 9007199254740992 t\na",
		"1 3-7D0A 1 1 t\na", "1 x 1 1 t\na", "1  1 1 t\na", // epochs
		"1 3-7d0a 1 1 {t}\na", "1 3-7d0a 1 1 \na", "1 3-7d0a 1 1 a b\na", "1 3-7d0a 1 1\na", // topics
	} {
		if r, err := decodeMessage([]byte(bad)); err == nil {
			t.Errorf("%q was read as %+v", bad, r)
		}
	}
}

// FuzzDecodeMessage: any bytes are read or refused, and what is read says the same when it is written again.
func FuzzDecodeMessage(f *testing.F) {
	ch := channel("3-7d0a41c2", "market:42")
	f.Add(message(run(ch, 1, 1)))
	f.Add(message(run(ch, 9, 12)))
	f.Add(message(run(ch, wire.MaxInteger-1, wire.MaxInteger)))
	f.Add([]byte("1 3-7d0a 1 9007199254740991 t\na"))
	f.Add([]byte("1 3-7d0a 1 2 t\n\n"))
	f.Add([]byte("2 3-7d0a 1 1 t\nx"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, err := decodeMessage(payload)
		if err != nil {
			return
		}
		for i, frame := range r.Frames {
			if len(frame) == 0 || bytes.IndexByte(frame, '\n') >= 0 {
				t.Fatalf("frame %d is %q", i, frame)
			}
		}
		if again := message(r); !bytes.Equal(again, payload) {
			t.Fatalf("%q became %q", payload, again)
		}
	})
}

func TestReadPush(t *testing.T) {
	in := "*3\r\n$10\r\nssubscribe\r\n$1\r\nc\r\n:1\r\n" +
		"*3\r\n$8\r\nsmessage\r\n$1\r\nc\r\n$4\r\na\r\nb\r\n" +
		"*2\r\n$4\r\npong\r\n$0\r\n\r\n" + "+PONG\r\n" +
		"*3\r\n$12\r\nsunsubscribe\r\n$-1\r\n:0\r\n" + "-NOPERM no\r\n"
	br := bufio.NewReader(strings.NewReader(in))
	for _, want := range []push{
		{kind: "ssubscribe", channel: "c"}, {kind: "smessage", channel: "c", payload: []byte("a\r\nb")},
		{kind: "pong"}, {kind: "pong"}, {kind: "sunsubscribe"},
	} {
		p, err := readPush(br)
		if err != nil || p.kind != want.kind || p.channel != want.channel || !bytes.Equal(p.payload, want.payload) {
			t.Fatalf("%+v, %v; want %+v", p, err, want)
		}
	}
	var refused replyError
	if _, err := readPush(br); !errors.As(err, &refused) || refused != "NOPERM no" {
		t.Fatalf("%v; want the error reply", err)
	}
	if _, err := readPush(br); err != io.EOF {
		t.Fatalf("%v; want EOF", err)
	}
	for _, bad := range []string{
		"x", "*3\n", ":1\r\n", "$1\r\na\r\n", "*4\r\n", "*1\r\n", "*-1\r\n", "*x\r\n", "*3\r\n:1\r\n", ">3\r\n",
		"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\na\r\n", "*3\r\n$8\r\nsmessage\r\n$1\r\nc\r\n$1\r\naXX",
		"*3\r\n$8\r\nsmessage\r\n$1\r\nc\r\n$999999999999\r\n", "*3\r\n$10\r\nssubscribe\r\n$1\r\nc\r\n$1\r\n1\r\n",
		"*2\r\n$10\r\nssubscribe\r\n$1\r\nc\r\n", strings.Repeat("*", 10_000) + "\r\n",
	} {
		_, err := readPush(bufio.NewReader(strings.NewReader(bad)))
		if err == nil {
			t.Errorf("%.60q was read", bad)
		}
	}
}

// FuzzReadPush: whatever a server says is read or refused, without end or harm.
func FuzzReadPush(f *testing.F) {
	f.Add([]byte("*3\r\n$8\r\nsmessage\r\n$1\r\nc\r\n$1\r\na\r\n"))
	f.Add([]byte("*3\r\n$10\r\nssubscribe\r\n$1\r\nc\r\n:1\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n"))
	f.Add([]byte("-ERR\r\n+OK\r\n"))
	f.Add([]byte("*3\r\n$8\r\nsmessage\r\n$-1\r\n$-1\r\n"))
	f.Add([]byte("*3\r\n$99999999999999999999\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		br := bufio.NewReaderSize(bytes.NewReader(in), 64)
		for range len(in) + 1 {
			p, err := readPush(br)
			if errors.As(err, new(replyError)) {
				continue
			}
			if err != nil {
				return
			}
			switch p.kind {
			case "pong", "smessage", "ssubscribe", "sunsubscribe":
			default:
				t.Fatalf("kind %q", p.kind)
			}
		}
		t.Fatal("more pushes than bytes")
	})
}

// FuzzReplies: whatever the scripts are made to answer, an answer is one that the contract knows or an error, and a
// range holds frames only.
func FuzzReplies(f *testing.F) {
	for _, s := range []string{"A\x001", "D\x009007199254740992", "G\x00-1", "G\x00x", "A\x001\x002", "", "X\x001", "{}\x00\n\x00{}", "A\x00+1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		reply := strings.Split(in, "\x00")
		switch a := decodeAnswer(reply); {
		case a.Err != nil && a.Outcome == 0 && a.Next == 0:
		case a.Err == nil && a.Outcome >= Appended && a.Outcome <= Gap && a.Next >= 1 && a.Next <= wire.MaxInteger+1:
		default:
			t.Fatalf("%q was read as %+v", reply, a)
		}
		frames := decodeRange(reply)
		for i, frame := range frames {
			if string(frame) != reply[i] || len(frame) == 0 || bytes.IndexByte(frame, '\n') >= 0 {
				t.Fatalf("frame %d of %q is %q", i, reply, frame)
			}
		}
		if len(frames) < len(reply) && len(frames) < MaxRangeFrames {
			if bad := reply[len(frames)]; bad != "" && len(bad) <= MaxFrameBytes && !strings.Contains(bad, "\n") {
				t.Fatalf("%q was left out", bad)
			}
		}
	})
}

func TestCommands(t *testing.T) {
	got := string(appendCommand(nil, "SSUBSCRIBE", "a\r\nb", ""))
	if want := "*3\r\n$10\r\nSSUBSCRIBE\r\n$4\r\na\r\nb\r\n$0\r\n\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestUnavailable: which error replies say something about the server, and which about the run.
func TestUnavailable(t *testing.T) {
	for text, want := range map[string]bool{
		"LOADING Redis is loading the dataset in memory":                      true,
		"OOM command not allowed when used memory > 'maxmemory'.":             true,
		"READONLY You can't write against a read only replica.":               true,
		"CLUSTERDOWN The cluster is down":                                     true,
		"MASTERDOWN Link with MASTER is down":                                 true,
		"MISCONF Redis is configured to save RDB snapshots":                   true,
		"NOREPLICAS Not enough good replicas to write.":                       true,
		"BUSY Redis is busy running a script":                                 true,
		"MOVED 1 127.0.0.1:1":                                                 true,
		"TRYAGAIN Multiple keys":                                              true,
		"NOAUTH Authentication required.":                                     true,
		"NOSCRIPT No matching script. Please use EVAL.":                       true,
		"ERR max number of clients reached":                                   true,
		"NOPERM this user has no permissions to run the 'evalsha' command":    true,
		"NOPERM User worker has no permissions to run the 'eval' command":     true,
		"NOPERM this user has no permissions to access one of the keys used":  false,
		"NOPERM this user has no permissions to access one of the channels":   false,
		"NOPERM User worker has no permissions to run the 'spublish' command": false,
		"ERR The user executing the script can't run this command":            false,
		"WRONGTYPE Operation against a key holding the wrong kind of value":   false,
		"ERR something new":                                                   false,
	} {
		if got := isUnavailable(fakeReply(text)); got != want {
			t.Errorf("%q: unavailable is %v, want %v", text, got, want)
		}
		if got := isUnavailable(fmt.Errorf("wrapped: %w", fakeReply(text))); got != want {
			t.Errorf("wrapped %q: unavailable is %v, want %v", text, got, want)
		}
	}
	if !isUnavailable(io.EOF) || !isUnavailable(fmt.Errorf("dial: %w", io.ErrUnexpectedEOF)) {
		t.Error("a broken connection is not unavailable")
	}
}

// fakeReply is an error reply as go-redis makes them.
type fakeReply string

func (e fakeReply) Error() string { return string(e) }
func (e fakeReply) RedisError()   {}
