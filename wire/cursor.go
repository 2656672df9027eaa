package wire

import (
	"fmt"
	"strconv"
	"strings"
)

// Cursor is a position in one topic: the last offset seen, and the epoch it was seen in. Its text form is
// "epoch:offset", for example "3-7d0a41c2:1041".
type Cursor struct {
	Epoch  string
	Offset int64
}

// String is the text form of c.
func (c Cursor) String() string { return c.Epoch + ":" + strconv.FormatInt(c.Offset, 10) }

// IsZero reports whether c is the zero Cursor, which stands for "no cursor".
func (c Cursor) IsZero() bool { return c == Cursor{} }

// Question asks where a topic stands and, if Cursor is not zero, whether a subscriber may go on from there, and, if Subject
// is not empty, whether its access was revoked.
type Question struct {
	Topic   string
	Cursor  Cursor
	Subject string
}

// Position is the answer: the newest offset (0: no events yet), and why the cursor is not valid ("" if it is), one of
// ReasonTrimmed, ReasonAhead, ReasonEpoch.
type Position struct {
	Head    int64
	Reason  string
	Revoked bool  // by any event up to Head, or a later one
	Changed int64 // id of the newest event that has revoked or restored the subject's access; 0: none
}

// ParseCursor reads the text form of a cursor. The error is an [*Error] with code [CodeBadCursor].
func ParseCursor(s string) (Cursor, error) {
	epoch, digits, ok := strings.Cut(s, ":")
	offset, err := parseInteger(digits)
	if !ok || err != nil || !ValidEpoch(epoch) {
		return Cursor{}, &Error{Code: CodeBadCursor, Message: fmt.Sprintf(
			"cursor %q is not epoch:offset, for example 3-7d0a41c2:1041", clip(s))}
	}
	return Cursor{Epoch: epoch, Offset: offset}, nil
}

// ValidEpoch reports whether s is the name of an epoch: a decimal ordinal, a dash, and 4 to 16 hexadecimal digits.
func ValidEpoch(s string) bool {
	ordinal, random, ok := strings.Cut(s, "-")
	if !ok || len(random) < 4 || len(random) > 16 || len(ordinal) > 10 {
		return false
	}
	if n, err := parseInteger(ordinal); err != nil || n < 1 {
		return false
	}
	for i := 0; i < len(random); i++ {
		if c := random[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

// parseInteger reads a non-negative decimal integer up to [MaxInteger] in its only spelling: no sign, no leading
// zero.
func parseInteger(s string) (int64, error) {
	if s == "" || len(s) > 16 || len(s) > 1 && s[0] == '0' {
		return 0, strconv.ErrSyntax
	}
	var n int64
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, strconv.ErrSyntax
		}
		n = n*10 + int64(s[i]-'0')
	}
	if n > MaxInteger {
		return 0, strconv.ErrRange
	}
	return n, nil
}
