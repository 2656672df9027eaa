package outbox

import (
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzPage: the parameter "page" is what a page before named, or it is refused; and what is read of it can be put into a
// statement.
func FuzzPage(f *testing.F) {
	f.Add(pageToken{Topic: "t", After: "7", Cursor: "3-7d0a41c2:1041", Epoch: "3-7d0a41c2"}.String(), "t")
	f.Add(pageToken{Topic: "t", After: "7", Snapshot: "00000004-0000006E-1"}.String(), "t")
	f.Add(pageToken{Topic: "t", After: "\x00", Snapshot: "00000004-0000006E-1'; DROP TABLE x"}.String(), "t")
	f.Add(pageToken{Topic: "t", After: "\x00", Snapshot: "00000004-0000006E-1"}.String(), "t")
	f.Add("bnVsbA", "")
	f.Add("!", "t")
	f.Fuzz(func(t *testing.T, text, topic string) {
		for _, pages := range []Pages{VersionedPages, HeldPages} {
			token, err := parsePage(text, topic, pages)
			if err != nil {
				if p, ours := ProblemOf(err); ours || p.Status != http.StatusBadRequest {
					t.Fatalf("%q: %v", text, err)
				}
				continue
			}
			if token.Topic != topic || !validText(token.After) {
				t.Fatalf("%q, %q: %+v", text, topic, token)
			}
			if _, _, ok := parseCursor(token.Cursor); pages == VersionedPages && !ok {
				t.Fatalf("%q: %+v", text, token)
			}
			if pages == HeldPages && strings.Trim(token.Snapshot, "0123456789ABCDEF-") != "" {
				t.Fatalf("%q: %+v", text, token)
			}
			if again, err := parsePage(token.String(), topic, pages); err != nil || again != token {
				t.Fatalf("%+v became %+v, %v", token, again, err)
			}
		}
	})
}

// FuzzSaw: a Commitcast-Saw is read or refused with 400, and a cursor in it is a cursor.
func FuzzSaw(f *testing.F) {
	for _, seed := range []string{"3-7d0a41c2:1041", "3-7d0a41c2:1041;17", "17", "", ";", "x;17", " 3-7d0a41c2:0 ; 0.53 ", strings.Repeat("1", 300), "3-7d0a:9007199254740992"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		saw, err := ParseSaw(header)
		if err != nil {
			if p, ours := ProblemOf(err); ours || p.Status != http.StatusBadRequest || len(p.Detail) > 8*maxSaw {
				t.Fatalf("%q: %v", header, err)
			}
			return
		}
		if _, offset, ok := parseCursor(saw.Cursor); saw.Cursor != "" && (!ok || offset < 0 || offset >= 1<<53) || len(saw.Value) > maxSaw {
			t.Fatalf("%q: %+v", header, saw)
		}
		text := saw.Cursor + ";" + saw.Value
		if saw.Cursor == "" {
			text = saw.Value
		}
		if again, err := ParseSaw(text); err == nil && again != saw {
			t.Fatalf("%+v became %+v", saw, again)
		}
	})
}

// FuzzOperationKey: an Idempotency-Key that is let in can be kept, as it is.
func FuzzOperationKey(f *testing.F) {
	for _, seed := range []string{"a", "", "b2c8-1", strings.Repeat("k", 255), strings.Repeat("k", 256), "a\x00", "é", "\xff", "a b", "a\n"} {
		f.Add(seed, "GET", "/x?y", "body")
	}
	f.Fuzz(func(t *testing.T, key, method, target, body string) {
		if !validKey(key) {
			return
		}
		if err := (Operation{Scope: "7", Key: key}).check(); err != nil || !utf8.ValidString(key) || key != strings.TrimFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("%q: %v", key, err)
		}
		r, err := http.NewRequest(method, target, nil)
		if err != nil {
			return
		}
		if a, b := fingerprint(r, []byte(body)), fingerprint(r, []byte(body+"x")); len(a) > maxFingerprint || string(a) == string(b) {
			t.Fatalf("%q: the fingerprints %x and %x", target, a, b)
		}
	})
}

// FuzzETag: an unchanged poll is told so exactly if the tag is in the list.
func FuzzETag(f *testing.F) {
	tag := etag("a")
	for _, seed := range []string{tag, "*", `"x", ` + tag, strings.TrimPrefix(tag, "W/"), tag + "x", ",", `W/W/"x"`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		opaque := strings.TrimPrefix(tag, "W/")
		if got := etagMatches(header, tag); got && !strings.Contains(header, opaque) {
			t.Fatalf("%q matches %s", header, tag)
		}
		if !etagMatches(header+", "+tag, tag) && strings.TrimSpace(header) != "*" {
			t.Fatalf("%q with %s does not match", header, tag)
		}
	})
}
