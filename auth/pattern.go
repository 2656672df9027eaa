package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/commitcast/commitcast/wire"
)

const (
	// MaxPattern is the longest pattern, in bytes: twice the longest topic, since names of claims are longer than what
	// they stand for.
	MaxPattern = 2 * wire.MaxTopicLen
	// MaxPatterns is how many patterns one token may hold: each is looked at for each subscription and each page of a
	// replay.
	MaxPatterns = 256
)

// Pattern is a set of topics, written like a topic. Topics are segments joined by ":" or "/"; in a pattern, a segment may
// also be "*", any one segment that is not empty; "{claim}", what a claim of the token says, for example {sub}; or at the end
// "**", the rest, of any number of segments.
//
// So "market:*" is every market, but not "market:42/orders", and "user:{sub}" is the client's own topic. A star within a
// segment is an error, and so is everything else that a topic cannot hold: no pattern matches more than it seems to.
//
// The value of a claim is one segment: a subject "7:admin" does not reach "user:7:admin".
type Pattern struct {
	text     string
	segments []segment
	unfilled bool // has {claim}
}

type segment struct {
	sep  byte // before it; 0 at the beginning
	kind segmentKind
	text string // the segment, or the name of the claim
}

type segmentKind uint8

const (
	segmentLiteral segmentKind = iota
	segmentAny
	segmentRest
	segmentClaim
)

// ParsePattern reads a pattern. The error quotes it; what it wraps says what is wrong, and does not.
func ParsePattern(text string) (Pattern, error) {
	bad := func(why string) (Pattern, error) {
		return Pattern{}, fmt.Errorf("pattern %q: %w", clip(text), errors.New(why))
	}
	if text == "" || len(text) > MaxPattern {
		return bad(fmt.Sprintf("must have 1 to %d bytes", MaxPattern))
	}
	p := Pattern{text: text}
	rest, sep := text, byte(0)
	for {
		i := strings.IndexAny(rest, ":/")
		last := i < 0
		if last {
			i = len(rest)
		}
		s := segment{sep: sep, text: rest[:i]}
		switch {
		case s.text == "*":
			s.kind = segmentAny
		case s.text == "**":
			if s.kind = segmentRest; !last {
				return bad(`"**" must be the end`)
			}
		case strings.HasPrefix(s.text, "{") && strings.HasSuffix(s.text, "}"):
			s.kind, s.text = segmentClaim, s.text[1:len(s.text)-1]
			if !literal(s.text) || s.text == "" {
				return bad("{…} must hold the name of a claim")
			}
			p.unfilled = true
		case !literal(s.text):
			return bad(`a segment is letters, digits, ".", "_" and "-", or "*", or "{claim}"; "**" at the end`)
		}
		p.segments = append(p.segments, s)
		if last {
			return p, nil
		}
		sep, rest = rest[i], rest[i+1:]
	}
}

// Fill puts what the claims say into a pattern. False if one of them says nothing, or what is not one segment of a
// topic: then the pattern allows nothing.
func (p Pattern) Fill(claim func(name string) (string, bool)) (Pattern, bool) {
	if !p.unfilled {
		return p, true
	}
	filled := Pattern{text: p.text, segments: make([]segment, len(p.segments))}
	copy(filled.segments, p.segments)
	for i, s := range filled.segments {
		if s.kind != segmentClaim {
			continue
		}
		value, ok := claim(s.text)
		if !ok || value == "" || !literal(value) {
			return Pattern{}, false
		}
		filled.segments[i] = segment{sep: s.sep, kind: segmentLiteral, text: value}
	}
	return filled, true
}

// Match reports whether the pattern holds a topic. One that was not filled, and the zero Pattern, hold none.
func (p Pattern) Match(topic string) bool {
	if p.unfilled || len(p.segments) == 0 || !wire.ValidTopic(topic) {
		return false
	}
	rest := topic
	for _, s := range p.segments {
		if s.sep != 0 {
			if rest == "" || rest[0] != s.sep {
				return false
			}
			rest = rest[1:]
		}
		if s.kind == segmentRest {
			return rest != ""
		}
		i := strings.IndexAny(rest, ":/")
		if i < 0 {
			i = len(rest)
		}
		if s.kind == segmentAny && i == 0 || s.kind == segmentLiteral && rest[:i] != s.text {
			return false
		}
		rest = rest[i:]
	}
	return rest == ""
}

// Covers reports whether every topic that q holds is held by p. Patterns that were not filled cover nothing, and nothing covers them.
func (p Pattern) Covers(q Pattern) bool {
	if p.unfilled || q.unfilled || len(p.segments) == 0 || len(q.segments) == 0 {
		return false
	}
	for i, s := range p.segments {
		if i >= len(q.segments) || s.sep != q.segments[i].sep {
			return false
		}
		of := q.segments[i]
		empty := of.kind == segmentLiteral && of.text == ""
		switch s.kind {
		case segmentRest:
			return !empty || i+1 < len(q.segments)
		case segmentAny:
			if empty || of.kind == segmentRest {
				return false
			}
		default:
			if of.kind != segmentLiteral || of.text != s.text {
				return false
			}
		}
	}
	return len(p.segments) == len(q.segments)
}

// Equal reports whether two patterns are written alike, and filled with the same.
func (p Pattern) Equal(q Pattern) bool {
	return p.text == q.text && slices.Equal(p.segments, q.segments)
}

// String is the pattern as it was written.
func (p Pattern) String() string { return p.text }

// literal reports whether s holds only what one segment of a topic may.
func literal(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// clip shortens s for an error message.
func clip(s string) string {
	if len(s) <= MaxPattern {
		return s
	}
	return s[:MaxPattern] + "…"
}
